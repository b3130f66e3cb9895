"""Attention with torch's own functions: on every device, for every layer, without a compiler.

Keys and values are gathered from their pages. Rows that decode are taken together where they are
about as long; each prompt is computed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from numpy.typing import NDArray

from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.step import Step

# A row joins the longer ones where it has at least this share of their length: what is gathered
# beyond a row's end is read for nothing, and every further group costs its own calls.
LENGTH_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class _Decoding:
    """Rows of one token each: their places, pages [rows · blocks], and keys seen [rows, 1, 1, n].

    `unseen` are the places of the other keys of all rows, one row behind the other.
    """

    rows: torch.Tensor
    pages: torch.Tensor
    seen: torch.Tensor
    unseen: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Tokens [start, end) of one row, its pages, and which keys each query sees [tokens, keys].

    `unseen` are the places of keys that no query sees.

    No pages where the row's keys are all among these tokens and each query sees all before it.
    """

    start: int
    end: int
    pages: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    unseen: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    slots: torch.Tensor
    decoding: Sequence[_Decoding]
    prompts: Sequence[_Prompt]


class TorchAttention:
    """An `AttentionBackend`."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens

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
        prepared = self._prepared(layer, group, step)
        cache.keys.view(-1, *key.shape[1:]).index_copy_(0, prepared.slots, key)
        cache.values.view(-1, *value.shape[1:]).index_copy_(0, prepared.slots, value)
        output = query.new_empty(*query.shape[:2], layer.value_size)
        for part in prepared.decoding:
            output.index_copy_(0, part.rows, _decode(layer, cache, part, query))
        for prompt in prepared.prompts:
            tokens = slice(prompt.start, prompt.end)
            if prompt.pages is None or prompt.unseen is None:
                keys, values = key[tokens], value[tokens]
            else:
                keys, values = _gathered(cache, prompt.pages, prompt.unseen, 1)
                keys, values = keys[0], values[0]
            output[tokens] = _prefill(layer, query[tokens], keys, values, prompt.seen)
        return output

    def _prepared(self, layer: AttentionLayer, group: int, step: Step) -> _Prepared:
        key = ("torch", group, layer.device)
        known = step.prepared.get(key)
        if not isinstance(known, _Prepared):
            known = self._prepare(layer, group, step)
            step.prepared[key] = known
        return known

    def _prepare(self, layer: AttentionLayer, group: int, step: Step) -> _Prepared:
        tables, device = step.groups[group].tables, layer.device
        return _Prepared(
            slots=torch.from_numpy(step.groups[group].slots).to(device),
            decoding=[
                self._decoding(rows, tables, step.lengths, layer.window, device)
                for rows in _alike(step.lengths[: step.decode_rows], layer.window)
            ],
            prompts=[
                self._prompt(row, tables[row], step, layer)
                for row in range(step.decode_rows, step.rows)
            ],
        )

    def _decoding(
        self,
        rows: NDArray[np.int64],
        tables: NDArray[np.int32],
        lengths: NDArray[np.int32],
        window: int | None,
        device: torch.device,
    ) -> _Decoding:
        size = self._page_tokens
        ends = lengths[rows].astype(np.int64)
        begins = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
        first = begins // size
        width = int((-(-ends // size) - first).max())
        columns = first[:, None] + np.arange(width)
        pages = tables[rows[:, None], np.minimum(columns, tables.shape[1] - 1)]
        positions = (first * size)[:, None] + np.arange(width * size)
        seen = (positions >= begins[:, None]) & (positions < ends[:, None])
        # Blocks that a row does not have are not its own pages, but some page: nothing is seen.
        return _Decoding(
            rows=torch.from_numpy(rows).to(device),
            pages=torch.from_numpy(pages.astype(np.int64)).flatten().to(device),
            seen=torch.from_numpy(seen)[:, None, None].to(device),
            unseen=torch.from_numpy(np.flatnonzero(~seen)).to(device),
        )

    def _prompt(
        self, row: int, table: NDArray[np.int32], step: Step, layer: AttentionLayer
    ) -> _Prompt:
        size, window = self._page_tokens, layer.window
        start, end = int(step.starts[row]), int(step.starts[row + 1])
        length = int(step.lengths[row])
        before = length - (end - start)
        if before == 0 and (window is None or length <= window):
            return _Prompt(start, end)
        first = 0 if window is None else max(0, before - window + 1) // size
        pages = torch.from_numpy(table[first : -(-length // size)].astype(np.int64))
        keys = torch.arange(first * size, first * size + len(pages) * size)
        queries = torch.arange(before, length)[:, None]
        seen = keys <= queries
        if window is not None:
            seen &= keys > queries - window
        unseen = (~seen.any(0)).nonzero()[:, 0]
        device = layer.device
        return _Prompt(start, end, pages.to(device), seen.to(device), unseen.to(device))


def _alike(lengths: NDArray[np.int32], window: int | None) -> list[NDArray[np.int64]]:
    """Rows in groups of about the same length."""
    if window is not None:
        lengths = np.minimum(lengths, window)
    order = np.argsort(-lengths, kind="stable")
    found: list[NDArray[np.int64]] = []
    begin = 0
    while begin < len(order):
        shorter = lengths[order[begin:]] < LENGTH_SHARE * lengths[order[begin]]
        end = begin + int(np.argmax(shorter)) if shorter.any() else len(order)
        found.append(order[begin:end])
        begin = end
    return found


def _gathered(
    cache: LayerCache, pages: torch.Tensor, unseen: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [rows, tokens, heads, size] of `pages` [rows · blocks].

    Those `unseen` are zero: whatever they were, infinite or no number, weighs nothing then.
    """
    keys, values = (
        part.index_select(0, pages)
        .flatten(0, 1)
        .index_fill_(0, unseen, 0)
        .view(rows, -1, *part.shape[2:])
        for part in (cache.keys, cache.values)
    )
    return keys, values


def _decode(
    layer: AttentionLayer, cache: LayerCache, part: _Decoding, query: torch.Tensor
) -> torch.Tensor:
    """[rows, query heads, value size]"""
    rows = len(part.rows)
    keys, values = (
        each.transpose(1, 2) for each in _gathered(cache, part.pages, part.unseen, rows)
    )
    # The query heads of a KV head as that many queries: no key is copied for each of them.
    queries = query.index_select(0, part.rows).view(rows, layer.kv_heads, -1, layer.key_size)
    if layer.is_plain:
        output = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=part.seen, scale=layer.scale
        )
    else:
        output = _attention(layer, queries, keys, values, part.seen)
    return output.reshape(rows, layer.query_heads, layer.value_size)


def _prefill(
    layer: AttentionLayer,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor | None,
) -> torch.Tensor:
    """[tokens, query heads, value size] of one row's [tokens, heads, size]"""
    grouped = layer.query_heads // layer.kv_heads
    queries, keys, values = (each.transpose(0, 1)[None] for each in (query, keys, values))
    if layer.is_plain:
        output = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=seen,
            is_causal=seen is None,
            scale=layer.scale,
            enable_gqa=grouped > 1,
        )
    else:
        tokens = len(query)
        if seen is None:
            seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
        shape = (1, layer.kv_heads, grouped * tokens, layer.key_size)
        output = _attention(layer, queries.reshape(shape), keys, values, seen.repeat(grouped, 1))
        output = output.view(1, layer.query_heads, tokens, layer.value_size)
    return output[0].transpose(0, 1)


def _attention(
    layer: AttentionLayer,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor,
) -> torch.Tensor:
    """What no kernel of torch computes: softly capped scores, and sinks.

    [rows, KV heads, n, value size] of queries [rows, KV heads, n, size], where n runs over the
    query heads of each KV head, and, within one, over its queries.
    """
    scores = (queries @ keys.transpose(2, 3)).float() * layer.scale
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    scores = scores.masked_fill(~seen, float("-inf"))
    if layer.sinks is not None:
        heads = layer.query_heads // layer.kv_heads
        sinks = layer.sinks.float().view(1, layer.kv_heads, heads, 1)
        sinks = sinks.repeat_interleave(scores.shape[2] // heads, dim=2)
        scores = torch.cat([scores, sinks.expand(len(scores), -1, -1, -1)], dim=3)
    weights = torch.softmax(scores, dim=-1)
    return weights[..., : keys.shape[2]].to(values.dtype) @ values
