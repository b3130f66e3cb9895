"""A transformers model that computes steps: rows of any length, one behind the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import torch

from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.cache import KvCache
from uellm_cli.engines.inflight.layers import use_attention
from uellm_cli.engines.inflight.native_attention import NativeAttention
from uellm_cli.engines.inflight.step import Step
from uellm_cli.engines.loaded import input_device

_numbers = count()


def _flushes() -> bool:
    """Whether this thread takes numbers next to zero for zero: Python's floats are no exception."""
    return sys.float_info.min * 0.5 == 0.0


@contextmanager
def _without_denormals() -> Iterator[None]:
    """`Kernels.without_denormals` as far as torch has it: for the calling thread alone.

    Its OpenMP workers keep what they were started with, and no call of torch's reaches them: the
    setting is each thread's own, and only code that runs in a worker can change it.
    """
    before = _flushes()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class StepModel(Protocol):
    """A model that computes steps over a cache."""

    @property
    def cache(self) -> KvCache: ...

    def logits(self, step: Step) -> torch.Tensor:
        """The scores [rows that draw, vocabulary] of what follows the tokens at `drawn_at`."""
        ...


class PackedModel:
    """The model with `attention` for its own, over `cache`."""

    def __init__(self, model: Any, attention: PackedAttention, cache: KvCache) -> None:
        self.model = model
        self.attention = attention
        self.cache = cache
        devices = {layer.device for group in cache.groups for layer in group.layers}
        self._is_spread = devices != {input_device(model)}
        backend = attention.backend
        # Numbers next to zero take a processor a hundred times as long. They count during a step
        # alone: what compares with the smallest numbers (`top_p: 0` is refused by such a bound),
        # and whatever else computes on these threads between steps, is to find them as they are.
        self._without_denormals = (
            backend.kernels.without_denormals
            if isinstance(backend, NativeAttention)
            else _without_denormals
        )
        attention.use(cache)
        use_attention(model, f"uellm-{next(_numbers)}", attention)

    def logits(self, step: Step) -> torch.Tensor:
        """See `StepModel`."""
        # Whatever device the last layer's tokens are on, they can be told by numbers on the host.
        drawn_at = step.drawn_at.cpu() if self._is_spread else step.drawn_at
        with self.attention.computing(step), torch.inference_mode(), self._without_denormals():
            output = self.model(
                input_ids=step.token_ids,
                position_ids=step.positions,
                use_cache=False,
                logits_to_keep=drawn_at,
            )
        logits: torch.Tensor = output.logits[0]
        return logits
