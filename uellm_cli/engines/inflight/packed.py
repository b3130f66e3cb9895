"""A transformers model that computes steps: rows of any length, one behind the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

import torch

from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.cache import KvCache
from uellm_cli.engines.inflight.layers import use_attention
from uellm_cli.engines.inflight.step import Step

_numbers = count()


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers next to zero are zero here: they take a processor a hundred times as long.

    Here only, for it changes what comparisons with the smallest numbers mean to everyone else.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


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
        self._is_spread = devices != {model.device}
        attention.use(cache)
        use_attention(model, f"uellm-{next(_numbers)}", attention)

    def logits(self, step: Step) -> torch.Tensor:
        """See `StepModel`."""
        # Whatever device the last layer's tokens are on, they can be told by numbers on the host.
        drawn_at = step.drawn_at.cpu() if self._is_spread else step.drawn_at
        with self.attention.computing(step), torch.inference_mode(), _without_denormals():
            output = self.model(
                input_ids=step.token_ids,
                position_ids=step.positions,
                use_cache=False,
                logits_to_keep=drawn_at,
            )
        logits: torch.Tensor = output.logits[0]
        return logits
