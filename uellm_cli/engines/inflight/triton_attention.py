# mypy: disable-error-code="import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
"""Attention over the pages of the KV cache in Triton: for rows that decode, and for prompts.

One kernel is for both. A program takes one KV head and some tokens of one row, with all query
heads that share the KV head: each key is read once for all of them. A row that decodes is read by
several programs, each a part of its keys, whose results a second kernel puts together: few rows
would not keep a GPU busy otherwise, and long ones would keep it waiting (Flash-Decoding, Dao et
al., 2023). Scores are kept in units of log 2, since that is the exponential a GPU has.

Nothing here depends on how long rows are but what it is told on the device, so that a CUDA graph of
these kernels serves all steps of as many rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.cuda_attention import PagedRows, PromptBlocks
from uellm_cli.engines.inflight.layers import AttentionLayer

# Bytes of keys that a program holds at a time; of values it holds about as many.
TILE_BYTES = 16 * 1024
# So many programs keep any GPU busy; rows are split as far as it takes to have them.
ENOUGH_PROGRAMS = 1024
FEWEST_SPLITS, MOST_SPLITS = 4, 64
# A part of a row has at least so many keys: with few rows, and where there are enough as it is.
FEW_KEYS, MANY_KEYS = 256, 1024
# Query heads times tokens of a prompt that a program takes; products of 32-bit floats are made
# without matrix units, by as many registers.
PROMPT_QUERIES = {torch.float32: 16}
DEFAULT_PROMPT_QUERIES = 64


@triton.jit
def _store(  # pragma: no cover - runs on a GPU, or in Triton's interpreter
    key,
    value,
    keys,
    values,
    slots,
    key_token,
    key_head,
    value_token,
    value_head,
    HEADS: tl.constexpr,  # noqa: N803
    KEY: tl.constexpr,  # noqa: N803
    VALUE: tl.constexpr,  # noqa: N803
    BLOCK_H: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
    BLOCK_V: tl.constexpr,  # noqa: N803
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    heads = tl.arange(0, BLOCK_H)[:, None]
    of_key = tl.arange(0, BLOCK_K)[None, :]
    there = (heads < HEADS) & (of_key < KEY)
    part = tl.load(key + token * key_token + heads * key_head + of_key, mask=there)
    tl.store(keys + slot * (HEADS * KEY) + heads * KEY + of_key, part, mask=there)
    of_value = tl.arange(0, BLOCK_V)[None, :]
    there = (heads < HEADS) & (of_value < VALUE)
    part = tl.load(value + token * value_token + heads * value_head + of_value, mask=there)
    tl.store(values + slot * (HEADS * VALUE) + heads * VALUE + of_value, part, mask=there)


@triton.jit
def _attend(  # pragma: no cover
    query,
    keys,
    values,
    output,
    partial,
    partial_log,
    tables,
    table_width,
    lengths,
    starts,
    block_rows,
    block_tokens,
    sinks,
    scale,
    softcap,
    query_token,
    query_head,
    DECODES: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    HEADS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    KEY: tl.constexpr,  # noqa: N803
    VALUE: tl.constexpr,  # noqa: N803
    WINDOW: tl.constexpr,  # noqa: N803
    CAPPED: tl.constexpr,  # noqa: N803
    SINKS: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
    SPLIT_KEYS: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
    BLOCK_V: tl.constexpr,  # noqa: N803
):
    LOG2_E: tl.constexpr = 1.4426950408889634  # noqa: N806
    TOKENS: tl.constexpr = BLOCK_M // GROUP  # noqa: N806
    head = tl.program_id(1)
    split = tl.program_id(2)
    if DECODES:
        row = tl.program_id(0)
        first_token = row
        behind = 1  # tokens of the row from the first of this program on
    else:
        row = tl.load(block_rows + tl.program_id(0))
        before = tl.load(block_tokens + tl.program_id(0))
        row_start = tl.load(starts + row)
        first_token = row_start + before
        behind = tl.load(starts + row + 1) - first_token
    length = tl.load(lengths + row)
    width = tl.load(table_width)

    # Each line of the program's matrices is a token and a query head of it.
    lines = tl.arange(0, BLOCK_M)
    of_token = lines // GROUP
    query_heads = head * GROUP + lines % GROUP
    first_position = length - behind
    positions = first_position + of_token
    are_lines = (of_token < behind) & (of_token < TOKENS)

    # The keys that any of the tokens sees, and this program's share of them.
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0)
    end = tl.minimum(first_position + TOKENS, length)
    share = tl.maximum(tl.cdiv(end - begin, SPLITS), SPLIT_KEYS)
    share = tl.cdiv(share, BLOCK_N) * BLOCK_N
    parts = tl.cdiv(end - begin, share)
    if split >= parts:
        return
    begin = begin + split * share
    end = tl.minimum(begin + share, end)

    of_key = tl.arange(0, BLOCK_K)
    of_value = tl.arange(0, BLOCK_V)
    tokens = (first_token + of_token).to(tl.int64)
    asked = tokens[:, None] * query_token + query_heads[:, None] * query_head + of_key[None, :]
    queries = tl.load(query + asked, mask=are_lines[:, None] & (of_key[None, :] < KEY), other=0.0)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        # The first part of a row has the sink for all of them.
        sink = tl.load(sinks + query_heads, mask=are_lines, other=0.0).to(tl.float32)
        highest = tl.where(split == 0, sink * LOG2_E, highest)
        weight = tl.where(split == 0, 1.0, weight)
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    for first in range(begin, end, BLOCK_N):
        at = first + tl.arange(0, BLOCK_N)
        are_keys = at < end
        page = tl.load(tables + row * width + at // PAGE, mask=are_keys, other=0).to(tl.int64)
        slot = page * PAGE + at % PAGE
        some_keys = tl.load(
            keys + slot[None, :] * (HEADS * KEY) + head * KEY + of_key[:, None],
            mask=are_keys[None, :] & (of_key[:, None] < KEY),
            other=0.0,
        )
        scores = tl.dot(queries, some_keys, input_precision="ieee") * scale
        if CAPPED:
            # tanh(x) = 2 sigmoid(2x) - 1
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        are_seen = are_keys[None, :] & (at[None, :] <= positions[:, None])
        if WINDOW > 0:
            are_seen = are_seen & (at[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(are_seen, scores * LOG2_E, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # A token of a prompt may see none of these keys.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        weight = weight * fade + tl.sum(weights, 1)
        some_values = tl.load(
            values + slot[:, None] * (HEADS * VALUE) + head * VALUE + of_value[None, :],
            mask=are_keys[:, None] & (of_value[None, :] < VALUE),
            other=0.0,
        )
        sums = sums * fade[:, None] + tl.dot(
            weights.to(some_values.dtype), some_values, input_precision="ieee"
        )
        highest = higher

    sums = sums / tl.where(weight == 0.0, 1.0, weight)[:, None]
    are_there = are_lines[:, None] & (of_value[None, :] < VALUE)
    lines_there = tokens * (HEADS * GROUP) + query_heads
    if parts == 1:
        whole = output + lines_there[:, None] * VALUE + of_value[None, :]
        tl.store(whole, sums.to(output.dtype.element_ty), mask=are_there)
    else:
        places = lines_there * SPLITS + split
        part = partial + places[:, None] * VALUE + of_value[None, :]
        tl.store(part, sums.to(partial.dtype.element_ty), mask=are_there)
        tl.store(
            partial_log + places,
            (highest + tl.log2(weight)).to(partial_log.dtype.element_ty),
            mask=are_lines,
        )


@triton.jit
def _join(  # pragma: no cover
    partial,
    partial_log,
    output,
    lengths,
    QUERY_HEADS: tl.constexpr,  # noqa: N803
    VALUE: tl.constexpr,  # noqa: N803
    WINDOW: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
    SPLIT_KEYS: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_V: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(lengths + row)
    if WINDOW > 0:
        seen = tl.minimum(seen, WINDOW)
    share = tl.maximum(tl.cdiv(seen, SPLITS), SPLIT_KEYS)
    share = tl.cdiv(share, BLOCK_N) * BLOCK_N
    parts = tl.cdiv(seen, share)
    if parts == 1:
        return
    head = row * QUERY_HEADS + tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    of_value = tl.arange(0, BLOCK_V)
    are_parts = splits < parts
    places = head * SPLITS + splits
    logs = tl.load(partial_log + places, mask=are_parts, other=float("-inf"))
    weights = tl.exp2(logs - tl.max(logs, 0))
    sums = tl.load(
        partial + places[:, None] * VALUE + of_value[None, :],
        mask=are_parts[:, None] & (of_value[None, :] < VALUE),
        other=0.0,
    )
    joined = tl.sum(sums * weights[:, None], 0) / tl.sum(weights, 0)
    joined = joined.to(output.dtype.element_ty)
    tl.store(output + head * VALUE + of_value, joined, mask=of_value < VALUE)


class TritonKernels:
    """`cuda_attention.PagedKernels`, on CUDA devices, and in Triton's interpreter on a CPU."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens

    def store(
        self, key: torch.Tensor, value: torch.Tensor, cache: LayerCache, slots: torch.Tensor
    ) -> None:
        """See `PagedKernels`."""
        key, value = _with_even_heads(key), _with_even_heads(value)
        tokens, heads, key_size = key.shape
        value_size = value.shape[2]
        with _on(key):
            _store[(tokens,)](
                key,
                value,
                cache.keys,
                cache.values,
                slots,
                key.stride(0),
                key.stride(1),
                value.stride(0),
                value.stride(1),
                HEADS=heads,
                KEY=key_size,
                VALUE=value_size,
                BLOCK_H=_power(heads),
                BLOCK_K=_power(key_size),
                BLOCK_V=_power(value_size),
            )

    def decode(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        count: int,
    ) -> None:
        """See `PagedKernels`."""
        splits, split_keys = split_of(count * layer.kv_heads)
        shape = (count, layer.query_heads, splits, layer.value_size)
        partial = torch.empty(shape, dtype=torch.float32, device=query.device)
        partial_log = torch.empty(shape[:3], dtype=torch.float32, device=query.device)
        # Matrix units take sixteen lines, and no fewer.
        lines = max(16, _power(layer.query_heads // layer.kv_heads))
        self._attend(
            layer,
            cache,
            query,
            output,
            rows,
            (rows.starts, rows.starts),
            (partial, partial_log),
            grid=(count, layer.kv_heads, splits),
            DECODES=True,
            SPLITS=splits,
            SPLIT_KEYS=split_keys,
            BLOCK_M=lines,
        )
        with _on(query):
            _join[(count, layer.query_heads)](
                partial,
                partial_log,
                output,
                rows.lengths,
                QUERY_HEADS=layer.query_heads,
                VALUE=layer.value_size,
                WINDOW=layer.window or 0,
                SPLITS=splits,
                SPLIT_KEYS=split_keys,
                BLOCK_N=_keys_at_once(layer),
                BLOCK_V=_size(layer.value_size),
            )

    def prompts(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        blocks: PromptBlocks,
    ) -> None:
        """See `PagedKernels`."""
        self._attend(
            layer,
            cache,
            query,
            output,
            rows,
            (blocks.rows, blocks.tokens),
            (output, output),  # nothing is written there: no row is split
            grid=(len(blocks.rows), layer.kv_heads, 1),
            DECODES=False,
            SPLITS=1,
            SPLIT_KEYS=MANY_KEYS,
            BLOCK_M=_prompt_lines(layer),
        )

    def prompt_tokens(self, layer: AttentionLayer) -> int:
        """See `PagedKernels`."""
        return _prompt_lines(layer) // (layer.query_heads // layer.kv_heads)

    def _attend(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        blocks: tuple[torch.Tensor, torch.Tensor],
        partial: tuple[torch.Tensor, torch.Tensor],
        grid: tuple[int, int, int],
        **sizes: int | bool,
    ) -> None:
        query = _with_even_heads(query)
        tile = _keys_at_once(layer) * (_size(layer.key_size) + _size(layer.value_size))
        with _on(query):
            _attend[grid](
                query,
                cache.keys,
                cache.values,
                output,
                *partial,
                rows.tables,
                rows.width,
                rows.lengths,
                rows.starts,
                *blocks,
                query if layer.sinks is None else layer.sinks,
                layer.scale,
                layer.softcap or 1.0,
                query.stride(0),
                query.stride(1),
                PAGE=self._page_tokens,
                HEADS=layer.kv_heads,
                GROUP=layer.query_heads // layer.kv_heads,
                KEY=layer.key_size,
                VALUE=layer.value_size,
                WINDOW=layer.window or 0,
                CAPPED=layer.softcap is not None,
                SINKS=layer.sinks is not None,
                BLOCK_N=_keys_at_once(layer),
                BLOCK_K=_size(layer.key_size),
                BLOCK_V=_size(layer.value_size),
                num_warps=4,
                num_stages=2 if tile * layer.dtype.itemsize <= 2 * TILE_BYTES else 1,
                **sizes,
            )


def split_of(programs: int) -> tuple[int, int]:
    """Into how many parts a row is read where so many rows and heads there are; the least part."""
    splits = _power(-(-ENOUGH_PROGRAMS // programs))
    few = programs < ENOUGH_PROGRAMS // FEWEST_SPLITS
    return min(MOST_SPLITS, max(FEWEST_SPLITS, splits)), FEW_KEYS if few else MANY_KEYS


def _prompt_lines(layer: AttentionLayer) -> int:
    wanted = PROMPT_QUERIES.get(layer.dtype, DEFAULT_PROMPT_QUERIES)
    if max(layer.key_size, layer.value_size) > 256:
        wanted = 16
    return max(wanted, _power(layer.query_heads // layer.kv_heads))


def _keys_at_once(layer: AttentionLayer) -> int:
    widest = max(_size(layer.key_size), _size(layer.value_size)) * layer.dtype.itemsize
    return min(128, max(16, TILE_BYTES // widest))


def _size(size: int) -> int:
    """What a head's size is filled up to: a power of two that matrix units take."""
    return max(16, _power(size))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _with_even_heads(rows: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, size], where a head's numbers lie one behind the other."""
    return rows if rows.stride(2) == 1 else rows.contiguous()


def _on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device it is given tensors of."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)
