"""The KV cache: memory in pages, one set of pages for all layers that see equally far back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.pages import PagePool


def blocks(tokens: int, page_tokens: int) -> int:
    """Pages that `tokens` tokens take."""
    return -(-tokens // page_tokens)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers with one window, by their indices; a page of the group is a page in each of them."""

    window: int | None
    layers: tuple[AttentionLayer, ...]

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.bytes_per_token for layer in self.layers)

    def first_block(self, position: int, page_tokens: int) -> int:
        """The first block that a query at `position` sees a key of."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // page_tokens


def layer_groups(layers: Sequence[AttentionLayer]) -> tuple[LayerGroup, ...]:
    """The layers by their windows, the one without a window first."""
    windows = sorted({layer.window for layer in layers}, key=lambda w: (w is not None, w or 0))
    return tuple(
        LayerGroup(window, tuple(layer for layer in layers if layer.window == window))
        for window in windows
    )


def page_counts(
    groups: Sequence[LayerGroup], page_tokens: int, kv_bytes: int, rows: int, step_tokens: int
) -> list[int]:
    """How many pages each group gets, so that all of them take at most `kv_bytes`.

    All get the same number, but none with a window more than `rows` rows can use while a step
    computes `step_tokens` tokens; what is left goes to the others.
    """
    page_bytes = [group.bytes_per_token * page_tokens for group in groups]
    counts = [kv_bytes // sum(page_bytes)] * len(groups)
    for i, group in enumerate(groups):
        if group.window is not None:
            # A window that begins and ends within a page touches one page more.
            most = rows * (blocks(group.window, page_tokens) + 1) + blocks(step_tokens, page_tokens)
            counts[i] = min(counts[i], most)
    left = kv_bytes - sum(count * size for count, size in zip(counts, page_bytes, strict=True))
    unbounded = [i for i, group in enumerate(groups) if group.window is None]
    for i in unbounded:
        counts[i] += left // sum(page_bytes[j] for j in unbounded)
    return counts


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys [pages, page tokens, KV heads, key size] and values of one layer.

    In memory a page's heads come before its tokens where the cache is `heads_first`.
    """

    keys: torch.Tensor
    values: torch.Tensor


class KvCache:
    """The memory of all groups' pages, and which of them are free.

    `layers` has the cache of each layer, by the layer's index, and its group's number.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        page_tokens: int,
        counts: Sequence[int],
        heads_first: bool = False,
    ) -> None:
        self.groups = tuple(groups)
        self.page_tokens = page_tokens
        self.pools = [PagePool(count) for count in counts]
        self.layers: dict[int, tuple[LayerCache, int]] = {}
        for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
            for layer in group.layers:
                keys, values = (
                    _zeros((count, layer.kv_heads, page_tokens, size), layer).transpose(1, 2)
                    if heads_first
                    else _zeros((count, page_tokens, layer.kv_heads, size), layer)
                    for size in (layer.key_size, layer.value_size)
                )
                self.layers[layer.index] = (LayerCache(keys, values), number)

    @property
    def total_bytes(self) -> int:
        """What all pages take."""
        return sum(
            part.nbytes for cache, _ in self.layers.values() for part in (cache.keys, cache.values)
        )

    @property
    def held_bytes(self) -> int:
        """What the pages take that are not free."""
        return sum(
            (pool.count - pool.free) * group.bytes_per_token * self.page_tokens
            for pool, group in zip(self.pools, self.groups, strict=True)
        )

    def clear_page(self, group: int, page: int) -> None:
        """Overwrites a page, whose numbers are not to meet others' even with weight zero."""
        for layer in self.groups[group].layers:
            cache, _ = self.layers[layer.index]
            cache.keys[page].zero_()
            cache.values[page].zero_()


def _zeros(shape: tuple[int, ...], layer: AttentionLayer) -> torch.Tensor:
    if layer.device.type != "cpu":
        return torch.zeros(shape, dtype=layer.dtype, device=layer.device)
    # numpy's zeros are pages that the system hands out when they are first written to; torch's are
    # written at once, though a budget is often larger than what a run comes to use.
    raw = np.zeros(int(np.prod(shape)) * layer.dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(layer.dtype).view(shape)
