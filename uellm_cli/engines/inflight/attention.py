"""Attention over the KV cache, for a model that believes it computes one long text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from uellm_cli.engines.inflight.cache import KvCache, LayerCache
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.step import Step


class AttentionBackend(Protocol):
    """Computes attention of a step's tokens, each over the keys of its own row."""

    @property
    def heads_first(self) -> bool:
        """Whether a page's heads come before its tokens in the memory of the cache it wants."""
        ...

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
        """[tokens, query heads, value size], of [tokens, heads, size] each.

        Puts keys and values into the cache first, so that a row may see what another one, whose
        pages it shares, computes in the same step.
        """
        ...


class PackedAttention:
    """What transformers calls for each attention layer, in the step and over the cache it is told.

    `layers` has each layer by its index, with its cache and the number of its group.
    """

    def __init__(self, layers: Sequence[AttentionLayer], backend: AttentionBackend) -> None:
        self.backend = backend
        self.layers: dict[int, tuple[AttentionLayer, LayerCache, int]] = {}
        self._all = tuple(layers)
        self._step: Step | None = None

    def use(self, cache: KvCache) -> None:
        self.layers = {layer.index: (layer, *cache.layers[layer.index]) for layer in self._all}

    @contextmanager
    def computing(self, step: Step) -> Iterator[None]:
        self._step = step
        try:
            yield
        finally:
            self._step = None

    @property
    def step(self) -> Step:
        if self._step is None:
            raise RuntimeError("attention outside of a step")
        return self._step

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """[1, tokens, heads, value size] of [1, heads, tokens, size] each."""
        layer, cache, group = self.layers[module.layer_idx]
        packed = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
        output = self.backend.attend(layer, cache, group, self.step, *packed)
        return output[None], None
