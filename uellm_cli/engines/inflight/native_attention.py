"""Attention by the compiled kernels: each row's keys are read where they are, and once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.native import AttendPlan, Kernels
from uellm_cli.engines.inflight.step import Step


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the kernels need of a step for one group of layers."""

    plan: AttendPlan
    slots: torch.Tensor


class NativeAttention:
    """An `AttentionBackend`, for layers on the CPU of one of the kernels' `DTYPES`."""

    heads_first: ClassVar[bool] = False

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def attend(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        group: int,
        step: Step,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        prepared = self.prepared(group, step)
        self.kernels.store(key, value, cache.keys, cache.values, prepared.slots)
        return self.attended(layer, cache, prepared.plan, query)

    def attended(
        self, layer: AttentionLayer, cache: LayerCache, plan: AttendPlan, query: torch.Tensor
    ) -> torch.Tensor:
        """Attention over what is in the cache already: [tokens, query heads, value size]."""
        return self.kernels.attend(
            query,
            cache.keys,
            cache.values,
            plan,
            layer.scale,
            layer.window or 0,
            layer.softcap or 0.0,
            layer.sinks,
        )

    def prepared(self, group: int, step: Step) -> Prepared:
        """Of a step and a group of layers, made once for all its layers."""
        known = step.prepared.get(group)
        if not isinstance(known, Prepared):
            parts = step.groups[group]
            plan = self._plan(step.starts, step.lengths, parts.tables)
            known = Prepared(plan, torch.from_numpy(parts.slots))
            step.prepared[group] = known
        return known

    def plan_of_drawn(self, group: int, step: Step) -> AttendPlan:
        """For queries of the rows that draw alone, one each: those of `drawn_at`."""
        starts = np.arange(len(step.drawing) + 1, dtype=np.int32)
        tables = step.groups[group].tables[step.drawing]
        return self._plan(starts, step.lengths[step.drawing], tables)

    def _plan(
        self, starts: NDArray[np.int32], lengths: NDArray[np.int32], tables: NDArray[np.int32]
    ) -> AttendPlan:
        return self.kernels.plan(*map(torch.from_numpy, (starts, lengths, tables)))
