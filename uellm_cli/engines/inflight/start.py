"""From options and a context to a running engine: load, look, choose the parts, try them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch

from uellm_cli.engines import EngineContext
from uellm_cli.engines.inflight import Inflight, cuda_start
from uellm_cli.engines.inflight.attention import AttentionBackend, PackedAttention
from uellm_cli.engines.inflight.cache import (
    KvCache,
    LayerGroup,
    blocks,
    page_counts,
)
from uellm_cli.engines.inflight.check import Trial, refuse_what_shows_late, texts
from uellm_cli.engines.inflight.cuda_memory import share_with_room
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.engines.inflight.flights import Flights, Limits
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.native import load as load_kernels
from uellm_cli.engines.inflight.native_attention import DTYPES, NativeAttention
from uellm_cli.engines.inflight.packed import PackedModel, StepModel
from uellm_cli.engines.inflight.rewrite import Spoiled, faster
from uellm_cli.engines.inflight.torch_attention import TorchAttention
from uellm_cli.engines.inflight.unsupported import Unsupported
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.loading import check_dtype, load
from uellm_cli.engines.scores import find_largest
from uellm_cli.engines.static import StaticEngine
from uellm_cli.errors import EngineError
from uellm_cli.types import Engine

# Enough for a CPU's matrix products to be at their best, and few enough that a step is soon over.
CPU_STEP_TOKENS = 512
GPU_STEP_TOKENS = 8192

# What a model raises that is handed something it was not written for.
_NOT_MADE_FOR_IT = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


def start(options: Inflight, context: EngineContext) -> Engine:
    """An engine for the context's model; the static one where that cannot be served in flight."""
    check_dtype(options.dtype)
    loaded = load(context, options.dtype)
    own_attention = loaded.model.config._attn_implementation
    try:
        return _inflight(options, context, loaded, whole_layers=True)
    except Spoiled:
        pass  # outside of here nothing holds on to the spoiled model, which takes as much memory
    except Unsupported as reason:
        loaded.model.set_attn_implementation(own_attention)
        context.note(
            f"{context.model} runs in static batches, as --engine static does, since {reason}"
        )
        return StaticEngine(context, loaded)
    del loaded
    gc.collect()
    return _inflight(options, context, load(context, options.dtype), whole_layers=False)


def _inflight(
    options: Inflight, context: EngineContext, loaded: LoadedModel, whole_layers: bool
) -> InflightEngine:
    model = loaded.model
    refuse_what_shows_late(model.config.get_text_config())
    try:
        trial = Trial.of(model, texts(model, loaded.eos_ids), options.page_tokens)
        attention, off = _gpu_attention(options, context, trial), None
        if attention is None:
            attention = PackedAttention(trial.layers, _backend(options, trial.layers))
            off = trial.differs(attention)
    except _NOT_MADE_FOR_IT as error:
        raise Unsupported(f"it cannot compute several texts at once ({error})") from error
    if off is not None:
        raise Unsupported(f"it computes something else when it computes several at once: {off}")
    if model.device.type == "cpu":
        faster(model, attention, trial, whole_layers)
    limits = _limits(options, context, model.device)
    cache = _cache(options, context, model, trial.groups, limits)
    packed = PackedModel(model, attention, cache)
    steps: StepModel = cuda_start.graphed(packed, context.note) if options.graphs else packed
    flights = Flights(
        trial.groups, cache.pools, options.page_tokens, limits, options.share_prefixes
    )
    lookahead = options.lookahead and cuda_start.looks_ahead(model.device)
    backend = attention.backend
    find = backend.kernels.argmax if isinstance(backend, NativeAttention) else find_largest
    return InflightEngine(context, loaded, steps, flights, lookahead, find)


def _gpu_attention(
    options: Inflight, context: EngineContext, trial: Trial
) -> PackedAttention | None:
    """Tried already; None where there is no GPU, or nothing of its own for it."""
    if options.kernels != "auto":
        return None
    return cuda_start.attention(trial, options.page_tokens, context.note)


def _backend(options: Inflight, layers: Sequence[AttentionLayer]) -> AttentionBackend:
    """The compiled kernels where there are any for these layers, else torch."""
    fits = all(layer.device.type == "cpu" and layer.dtype in DTYPES for layer in layers)
    kernels = load_kernels() if fits and options.kernels == "auto" else None
    return TorchAttention(options.page_tokens) if kernels is None else NativeAttention(kernels)


def _limits(options: Inflight, context: EngineContext, device: torch.device) -> Limits:
    wanted = options.step_tokens or (CPU_STEP_TOKENS if device.type == "cpu" else GPU_STEP_TOKENS)
    budget = context.budget
    return Limits(budget.max_sequences, min(wanted, budget.prefill_tokens))


def _cache(
    options: Inflight,
    context: EngineContext,
    model: Any,
    groups: Sequence[LayerGroup],
    limits: Limits,
) -> KvCache:
    """As many pages as the budget allows and there is memory for, but none never to be used."""
    size = options.page_tokens
    counts = page_counts(groups, size, context.budget.kv_bytes, limits.rows, limits.step_tokens)
    if min(counts) < 1:
        page_bytes = sum(group.bytes_per_token for group in groups) * size
        raise EngineError(
            f"the budget leaves {context.budget.kv_bytes} bytes for the KV cache, of which "
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
    return KvCache(groups, size, counts)
