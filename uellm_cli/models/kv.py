"""KV cache of each layer, from a model's config (general form of UELLM's 4·b·l·h·(s+n))."""

from __future__ import annotations

from dataclasses import dataclass

from uellm_cli.errors import ModelError
from uellm_cli.models.config import ModelConfig

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Bytes that a token adds to one layer's cache, up to `window_tokens` tokens."""

    bytes_per_token: int
    window_tokens: int | None


def kv_layers(config: ModelConfig) -> tuple[LayerKV, ...]:
    """The cache of each layer in turn.

    Raises ModelError for layer kinds whose state is not modelled (linear attention, Mamba).
    """
    per_token = kv_bytes_per_token(config)
    return tuple(LayerKV(per_token, _window(config, kind)) for kind in _layer_kinds(config))


def kv_bytes_per_token(config: ModelConfig) -> int:
    """Bytes of one token in one layer: n_kv·(d_k + d_v)·bytes, or one latent for MLA.

    The cache holds 2-byte elements unless the model runs in float32.
    """
    element_bytes = 4 if config.dtype_bytes >= 4 else 2
    latent = config.optional("kv_lora_rank")
    if latent is not None:
        return (latent + (config.optional("qk_rope_head_dim") or 0)) * element_bytes
    return config.kv_heads * 2 * config.head_dim * element_bytes


def _layer_kinds(config: ModelConfig) -> list[str]:
    listed = config.raw.get("layer_types")
    if not isinstance(listed, list):
        return [_kind_by_pattern(config, layer) for layer in range(config.layers)]
    if len(listed) != config.layers:
        raise ModelError(
            f"{config.file}: layer_types lists {len(listed)} layers, but there are {config.layers}"
        )
    for kind in listed:
        if kind not in (FULL, SLIDING, CHUNKED):
            raise ModelError(
                f"{config.file}: the memory of layer type {kind!r} is not known to uellm; "
                f"known: {FULL}, {SLIDING}, {CHUNKED}"
            )
    return [str(kind) for kind in listed]


def _kind_by_pattern(config: ModelConfig, layer: int) -> str:
    if config.flag("use_sliding_window"):
        # Qwen: the first max_window_layers layers see everything.
        return SLIDING if layer >= (config.optional("max_window_layers") or 0) else FULL
    full_every = config.optional("sliding_window_pattern") or config.family.full_every
    if full_every is None or "use_sliding_window" in config.raw:
        return FULL
    if full_every and (layer + 1) % full_every == 0:
        return FULL
    return CHUNKED if config.optional("attention_chunk_size") else SLIDING


def _window(config: ModelConfig, kind: str) -> int | None:
    if kind == FULL:
        return None
    return config.optional("attention_chunk_size" if kind == CHUNKED else "sliding_window")
