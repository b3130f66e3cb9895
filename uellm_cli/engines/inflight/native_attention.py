"""Attention by the compiled kernels: each row's keys are read where they are, and once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.native import AttendPlan, Kernels
from uellm_cli.engines.inflight.step import Step

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the kernels need of a step for one group of layers."""

    plan: AttendPlan
    slots: torch.Tensor


class NativeAttention:
    """An `AttentionBackend`, for layers on the CPU of one of `DTYPES`."""

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
        return self.attended(layer, cache, prepared, query)

    def attended(
        self, layer: AttentionLayer, cache: LayerCache, prepared: Prepared, query: torch.Tensor
    ) -> torch.Tensor:
        """Attention over what is in the cache already: [tokens, query heads, value size]."""
        return self.kernels.attend(
            query,
            cache.keys,
            cache.values,
            prepared.plan,
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
            plan = self.kernels.plan(
                torch.from_numpy(step.starts),
                torch.from_numpy(step.lengths),
                torch.from_numpy(parts.tables),
            )
            known = Prepared(plan, torch.from_numpy(parts.slots))
            step.prepared[group] = known
        return known
