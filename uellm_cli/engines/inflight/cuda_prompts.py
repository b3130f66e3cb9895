"""Attention of prompts by the FlashAttention that torch has built in.

It knows no pages in the versions of it that come with torch, so the keys of rows that have some in
the cache already are gathered first. Its signature is another one in every version of torch, and
what a version computes is tried before it is believed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.step import Step
from uellm_cli.engines.inflight.uploads import upload

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
HEAD_MULTIPLE = 8
# Of the result's norm; a wrong mask is off by about 1.
TOLERANCE = 2e-2

VarlenAttention = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """The rows of a step that have more than one token, from the token `first` on.

    Row r has the queries from `queries[r]` to `queries[r + 1]` of these, and of the keys those from
    `keys[r]` to `keys[r + 1]`; the longest row has `most_queries` and `most_keys`. The keys are at
    `slots` of the cache, or, where that is None, those of the step.
    """

    first: int
    queries: torch.Tensor
    keys: torch.Tensor
    most_queries: int
    most_keys: int
    slots: torch.Tensor | None

    @classmethod
    def of(cls, step: Step, group: int, layer: AttentionLayer, page_tokens: int) -> PackedPrompts:
        rows = np.arange(step.decode_rows, step.rows)
        first = int(step.starts[step.decode_rows])
        counts = np.diff(step.starts)[rows].astype(np.int64)
        lengths = step.lengths[rows].astype(np.int64)
        before = lengths - counts
        # Keys that no query of the row sees are left out, for their pages may be others' by now.
        begins = np.zeros_like(before)
        if layer.window is not None:
            begins = np.maximum(before - layer.window + 1, 0)
        seen = lengths - begins
        key_ends = _ends(seen)
        arrays = [(step.starts[step.decode_rows :] - first).astype(np.int32), key_ends]
        if before.any():
            of_row = np.repeat(np.arange(len(rows)), seen)
            positions = np.arange(len(of_row)) - key_ends[of_row] + begins[of_row]
            pages = step.groups[group].tables[rows[of_row], positions // page_tokens]
            arrays.append(pages.astype(np.int64) * page_tokens + positions % page_tokens)
        elif begins.any():
            raise AssertionError("a row without cached tokens sees its first key")
        queries, keys, *slots = upload(arrays, layer.device)
        most_queries, most_keys = int(counts.max()), int(seen.max())
        return cls(first, queries, keys, most_queries, most_keys, slots[0] if slots else None)


class FlashPrompts:
    """torch's `varlen_attn`, for the layers that it `fits`."""

    def __init__(self, varlen_attention: VarlenAttention) -> None:
        self._varlen = varlen_attention
        self._knows = inspect.signature(varlen_attention).parameters.keys()
        self._fits: dict[tuple[object, ...], bool] = {}

    @classmethod
    def of_torch(cls) -> FlashPrompts | None:
        """None where this torch has no such function."""
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return None
        return cls(varlen_attn)

    def fits(self, layer: AttentionLayer) -> bool:
        """Whether it computes a layer's attention, which is tried once for each kind of layer."""
        name = (
            *(layer.query_heads, layer.kv_heads, layer.key_size, layer.value_size),
            *(layer.scale, layer.window, layer.is_plain, layer.dtype, layer.device),
        )
        if name not in self._fits:
            self._fits[name] = self._may_fit(layer) and self._is_right(layer)
        return self._fits[name]

    def attend(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        prompts: PackedPrompts,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """[tokens of prompts, query heads, size], of a step's [tokens, heads, size]."""
        if prompts.slots is None:
            key, value = key[prompts.first :], value[prompts.first :]
        else:
            key, value = (
                part.view(-1, *part.shape[2:]).index_select(0, prompts.slots)
                for part in (cache.keys, cache.values)
            )
        return self._called(layer, prompts, query[prompts.first :], key, value)

    def _called(
        self,
        layer: AttentionLayer,
        prompts: PackedPrompts,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        options: dict[str, object] = {}
        if "scale" in self._knows:
            options["scale"] = layer.scale
        if "enable_gqa" in self._knows:
            options["enable_gqa"] = layer.query_heads != layer.kv_heads
        if "window_size" in self._knows:
            # Keys before a query's own, and after it.
            options["window_size"] = (-1 if layer.window is None else layer.window - 1, 0)
        if "is_causal" in self._knows:
            options["is_causal"] = layer.window is None or "window_size" not in self._knows
        output: torch.Tensor = self._varlen(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            prompts.queries,
            prompts.keys,
            prompts.most_queries,
            prompts.most_keys,
            **options,
        )
        return output

    def _may_fit(self, layer: AttentionLayer) -> bool:
        has_scale = abs(layer.scale * layer.key_size**0.5 - 1) < 1e-6
        return (
            layer.is_plain
            and layer.dtype in DTYPES
            and layer.key_size == layer.value_size <= LARGEST_HEAD
            and layer.key_size % HEAD_MULTIPLE == 0
            and (has_scale or "scale" in self._knows)
            and (layer.window is None or "window_size" in self._knows)
        )

    def _is_right(self, layer: AttentionLayer) -> bool:
        """Tries two rows, of which one has more keys than queries, and more than a window."""
        counts, lengths = np.array([5, 40]), np.array([75, 40])
        query_ends, key_ends = _ends(counts), _ends(lengths)
        queries, keys = upload([query_ends, key_ends], layer.device)
        prompts = PackedPrompts(0, queries, keys, 40, 75, None)
        generator = torch.Generator().manual_seed(0)

        def drawn(tokens: int, heads: int) -> torch.Tensor:
            numbers = torch.randn(tokens, heads, layer.key_size, generator=generator)
            return numbers.to(layer.device, layer.dtype)

        query = drawn(int(counts.sum()), layer.query_heads)
        key, value = (drawn(int(lengths.sum()), layer.kv_heads) for _ in range(2))
        try:
            made = self._called(layer, prompts, query, key, value).float()
        except (RuntimeError, TypeError, ValueError):
            return False
        wanted = [
            _attention(
                layer,
                query[query_ends[i] : query_ends[i + 1]],
                key[key_ends[i] : key_ends[i + 1]],
                value[key_ends[i] : key_ends[i + 1]],
            )
            for i in range(2)
        ]
        off = (made - torch.cat(wanted)).norm() / torch.cat(wanted).norm()
        return bool(off < TOLERANCE)


def _ends(counts: Any) -> Any:
    """Where each of so many begins, and where the last one ends, as 32-bit integers."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _attention(
    layer: AttentionLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """One row's, in single precision: its queries are the last of its keys."""
    heads = layer.query_heads // layer.kv_heads
    keys, values = (part.float().repeat_interleave(heads, 1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * layer.scale
    at = torch.arange(len(key), device=key.device)
    positions = at[len(key) - len(query) :, None]
    seen = at <= positions
    if layer.window is not None:
        seen &= at > positions - layer.window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)
