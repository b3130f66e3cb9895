"""From options and a context to a running engine: load, look, choose the parts, try them."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import torch

from uellm_cli.engines import EngineContext, default_step_tokens
from uellm_cli.engines.inflight import Inflight, cuda_start
from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.cache import (
    KvCache,
    LayerGroup,
    blocks,
    page_counts,
)
from uellm_cli.engines.inflight.check import Trial, refuse_what_shows_late
from uellm_cli.engines.inflight.cuda_memory import share_with_room
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.engines.inflight.flights import Flights, Limits
from uellm_cli.engines.inflight.native import DTYPES, why_not
from uellm_cli.engines.inflight.native import load as load_kernels
from uellm_cli.engines.inflight.native_attention import NativeAttention
from uellm_cli.engines.inflight.packed import PackedModel, StepModel
from uellm_cli.engines.inflight.rewrite import Parts, Spoiled, faster
from uellm_cli.engines.inflight.torch_attention import TorchAttention
from uellm_cli.engines.inflight.unsupported import Unsupported
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.loading import check_dtype, load
from uellm_cli.engines.memory import is_out_of_memory
from uellm_cli.engines.scores import find_largest
from uellm_cli.engines.static import StaticEngine
from uellm_cli.errors import EngineError
from uellm_cli.types import DeviceKind, Engine

# Of the memory for the KV cache, what may go into packing a head that is the embedding too, which
# stays beside it. On two cores with AVX512, 32 rows take 2 ms instead of 13 with a head of
# [8192, 384], and 36 instead of 136 with one of [32000, 1024]: up to half of a step, for which an
# eighth of the rows is little. The head of a big vocabulary could be all of a small cache.
TIED_HEAD_SHARE = 1 / 8


def start(options: Inflight, context: EngineContext) -> Engine:
    """An engine for the context's model; the static one where that cannot be served in flight."""
    check_dtype(options.dtype)
    parts = Parts()
    while True:
        loaded = load(context, options.dtype)
        own_attention = loaded.model.config._attn_implementation
        try:
            return _inflight(options, context, loaded, parts)
        except Spoiled as spoiled:
            # Outside of here nothing holds on to the model, which takes as much memory as the next.
            parts = spoiled.parts
        except Unsupported as reason:
            loaded.model.set_attn_implementation(own_attention)
            context.note(
                f"{context.model} runs in static batches, as --engine static does, since {reason}"
            )
            return StaticEngine(context, loaded)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise EngineError(
                f"the memory does not do to start {context.model} ({error}); use more devices, or "
                "leave more memory free"
            ) from error
        del loaded
        gc.collect()


def _inflight(
    options: Inflight, context: EngineContext, loaded: LoadedModel, parts: Parts
) -> InflightEngine:
    model = loaded.model
    refuse_what_shows_late(model.config.get_text_config())
    trial = Trial.of(model, loaded.eos_ids, options.page_tokens)
    attention, why_torch = _attention(options, context, trial)
    kv_bytes = context.budget.kv_bytes
    if loaded.device.type == "cpu":
        # What is spent here is no cache's any more: both together are what was promised.
        kv_bytes -= faster(attention, trial, parts, int(TIED_HEAD_SHARE * kv_bytes))
    if why_torch is not None:
        context.note(f"uellm's compiled kernels are not used, which is slower: {why_torch}")
    limits = _limits(options, context, loaded.device)
    heads_first = attention.backend.heads_first
    cache = _cache(options, context, model, trial.groups, limits, kv_bytes, heads_first)
    packed = PackedModel(model, attention, cache)
    steps: StepModel = cuda_start.graphed(packed, context.note) if options.graphs else packed
    flights = Flights(
        trial.groups, cache.pools, options.page_tokens, limits, options.share_prefixes
    )
    lookahead = options.lookahead and cuda_start.looks_ahead(loaded.device)
    backend = attention.backend
    find = backend.kernels.argmax if isinstance(backend, NativeAttention) else find_largest
    return InflightEngine(context, loaded, steps, flights, lookahead, find)


def _attention(
    options: Inflight, context: EngineContext, trial: Trial
) -> tuple[PackedAttention, str | None]:
    """The fastest there is that was tried and does; and why no compiled one, if that is news.

    Raises Unsupported where none does.
    """
    why = None
    if options.kernels == "auto":
        own = cuda_start.attention(trial, options.page_tokens, context.note)
        if own is None:
            own, why = _native_attention(trial)
        if own is not None:
            return own, None
    attention = PackedAttention(trial.layers, TorchAttention(options.page_tokens))
    off = trial.differs(attention)
    if off is not None:
        raise Unsupported(f"it does not compute several texts at once as it does each alone: {off}")
    return attention, why


def _native_attention(trial: Trial) -> tuple[PackedAttention | None, str | None]:
    """Attention by the compiled kernels, tried; else None, and why, if there is a word to say."""
    if not all(layer.device.type == "cpu" and layer.dtype in DTYPES for layer in trial.layers):
        return None, None
    kernels = load_kernels()
    if kernels is None:
        return None, None if os.environ.get("UELLM_KERNELS", "").lower() == "off" else why_not()
    attention = PackedAttention(trial.layers, NativeAttention(kernels))
    off = trial.differs(attention)
    return (attention, None) if off is None else (None, off)


def _limits(options: Inflight, context: EngineContext, device: torch.device) -> Limits:
    wanted = options.step_tokens or default_step_tokens(DeviceKind(device.type))
    budget = context.budget
    return Limits(budget.max_sequences, min(wanted, budget.prefill_tokens))


def _cache(
    options: Inflight,
    context: EngineContext,
    model: Any,
    groups: Sequence[LayerGroup],
    limits: Limits,
    kv_bytes: int,
    heads_first: bool,
) -> KvCache:
    """As many pages as the budget allows and there is memory for, but none never to be used."""
    size = options.page_tokens
    counts = page_counts(groups, size, kv_bytes, limits.rows, limits.step_tokens)
    if min(counts) < 1:
        page_bytes = sum(group.bytes_per_token for group in groups) * size
        raise EngineError(
            f"the budget leaves {kv_bytes} bytes for the KV cache, of which "
            f"{size} tokens alone take {page_bytes}; use more devices, or a smaller page_tokens"
        )
    context_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context_tokens:
        most = limits.rows * blocks(context_tokens, size)
        counts = [min(count, most) for count in counts]
    share = share_with_room(groups, size, counts)
    if share < 1:
        context.note(f"the GPU has room for {share:.0%} of the planned KV cache only")
        counts = [max(1, int(share * count)) for count in counts]
    return KvCache(groups, size, counts, heads_first)
