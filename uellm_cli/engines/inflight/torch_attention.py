"""Attention with torch's own functions: on every device, for every layer, without a compiler.

Rows that decode look at their keys page by page, where these lie: what each page says is weighed by
how much of a row's attention is on it, and added up. Each prompt is computed by itself, from keys
that are gathered from their pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from numpy.typing import NDArray

from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.step import Step

# The cache is read as it lies from its first page to the last one that is needed, if at least this
# share of them is: what is not is read for nothing, and to gather pages is to read and write them
# once more.
NEEDED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Decoding:
    """All rows of one token each, as pairs of a row and one of its pages.

    `pages` [pairs] are gathered; None: the pairs are the cache's first ones, `owners.shape[0]` of
    them, each with one row's. `owners` [pairs] are the rows, `rows` for a page that is no row's.
    `pairs` [rows, most] are each row's own, filled up with its first one. `seen` [pairs, 1, 1,
    page tokens] are the keys that the row sees.
    """

    rows: int
    pages: torch.Tensor | None
    owners: torch.Tensor
    pairs: torch.Tensor
    seen: torch.Tensor


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
    """`places` [tokens] are the keys' places in their `pages` [tokens]; `begun` are new pages."""

    pages: torch.Tensor
    places: torch.Tensor
    begun: torch.Tensor
    decoding: _Decoding | None
    prompts: Sequence[_Prompt]


class TorchAttention:
    """An `AttentionBackend`."""

    heads_first: ClassVar[bool] = True

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
        # Places that nothing was written to yet are read too, and weigh nothing: not even what is
        # no number must be there.
        cache.values.index_fill_(0, prepared.begun, 0)
        cache.keys[prepared.pages, prepared.places] = key
        cache.values[prepared.pages, prepared.places] = value
        output = query.new_empty(*query.shape[:2], layer.value_size)
        if prepared.decoding is not None:
            rows = prepared.decoding.rows
            output[:rows] = _decode(layer, cache, prepared.decoding, query[:rows])
        for prompt in prepared.prompts:
            tokens = slice(prompt.start, prompt.end)
            if prompt.pages is None or prompt.unseen is None:
                keys, values = key[tokens], value[tokens]
            else:
                keys, values = _gathered(cache, prompt.pages, prompt.unseen)
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
        parts, device = step.groups[group], layer.device
        pages, places = np.divmod(parts.slots, self._page_tokens)
        return _Prepared(
            pages=torch.from_numpy(pages).to(device),
            places=torch.from_numpy(places).to(device),
            begun=torch.from_numpy(pages[places == 0]).to(device),
            decoding=self._decoding(parts.tables, step, layer) if step.decode_rows else None,
            prompts=[
                self._prompt(row, parts.tables[row], step, layer)
                for row in range(step.decode_rows, step.rows)
            ],
        )

    def _decoding(self, tables: NDArray[np.int32], step: Step, layer: AttentionLayer) -> _Decoding:
        size, rows = self._page_tokens, step.decode_rows
        ends = step.lengths[:rows].astype(np.int64)
        begins = np.zeros_like(ends) if layer.window is None else np.maximum(ends - layer.window, 0)
        first = begins // size
        counts = -(-ends // size) - first
        owners = np.repeat(np.arange(rows), counts)
        before = np.cumsum(counts) - counts
        blocks = np.arange(len(owners)) - before[owners] + first[owners]
        pages = tables[owners, blocks].astype(np.int64)
        positions = (blocks * size)[:, None] + np.arange(size)
        seen = (positions >= begins[owners, None]) & (positions < ends[owners, None])
        pairs = before[:, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)
        gathered: torch.Tensor | None = torch.from_numpy(pages).to(layer.device)
        most = int(pages.max()) + 1
        if len(pages) >= NEEDED_SHARE * most and len(np.unique(pages)) == len(pages):
            all_owners, all_seen = np.full(most, rows), np.zeros((most, size), dtype=np.bool_)
            all_owners[pages], all_seen[pages] = owners, seen
            gathered, owners, seen, pairs = None, all_owners, all_seen, pages[pairs]
        return _Decoding(
            rows=rows,
            pages=gathered,
            owners=torch.from_numpy(owners).to(layer.device),
            pairs=torch.from_numpy(pairs).to(layer.device),
            seen=torch.from_numpy(seen)[:, None, None].to(layer.device),
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


def _gathered(
    cache: LayerCache, pages: torch.Tensor, unseen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [tokens, heads, size] of `pages`.

    Those `unseen` are zero: whatever they were, infinite or no number, weighs nothing then.
    """
    keys, values = (
        part.index_select(0, pages).flatten(0, 1).index_fill_(0, unseen, 0)
        for part in (cache.keys, cache.values)
    )
    return keys, values


def _decode(
    layer: AttentionLayer, cache: LayerCache, part: _Decoding, query: torch.Tensor
) -> torch.Tensor:
    """[rows, query heads, value size]"""
    count, rows = part.owners.shape[0], part.rows
    heads_first = (cache.keys.transpose(1, 2), cache.values.transpose(1, 2))
    keys, values = (
        each[:count] if part.pages is None else each.index_select(0, part.pages)
        for each in heads_first
    )
    # The query heads of a KV head as that many queries: no key is copied for each of them.
    queries = query.reshape(rows, layer.kv_heads, -1, layer.key_size)
    owners = part.owners.clamp(max=rows - 1)
    scores = _scores(layer, queries.index_select(0, owners), keys)
    scores.masked_fill_(~part.seen, -torch.inf)  # [pairs, KV heads, queries, page tokens]
    # [rows, KV heads, queries]: the highest of each row, that no weight is infinite.
    highest = scores.amax(-1)[part.pairs].amax(1)
    weights = scores.sub_(highest.index_select(0, owners)[..., None]).exp_()
    # One row more, for pages that are none's, whatever they hold.
    total, summed = (
        each.new_zeros(rows + 1, *each.shape[1:]).index_add_(0, part.owners, each)[:rows]
        for each in (weights.sum(-1), (weights.to(values.dtype) @ values).float())
    )
    if layer.sinks is not None:  # one logit more for the denominator, however large it is
        total = total + torch.exp(layer.sinks.float().view(1, layer.kv_heads, -1) - highest)
    output = (summed / total[..., None]).to(query.dtype)
    return output.view(rows, layer.query_heads, layer.value_size)


def _scores(layer: AttentionLayer, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """float32 [.., n, tokens] of queries [.., n, size] and keys [.., tokens, size]"""
    scores = (queries @ keys.transpose(-2, -1)).float() * layer.scale
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    return scores


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
    scores = _scores(layer, queries, keys).masked_fill(~seen, float("-inf"))
    if layer.sinks is not None:
        heads = layer.query_heads // layer.kv_heads
        sinks = layer.sinks.float().view(1, layer.kv_heads, heads, 1)
        sinks = sinks.repeat_interleave(scores.shape[2] // heads, dim=2)
        scores = torch.cat([scores, sinks.expand(len(scores), -1, -1, -1)], dim=3)
    weights = torch.softmax(scores, dim=-1)
    return weights[..., : keys.shape[2]].to(values.dtype) @ values
