"""KV cache of each layer, from a model's config (general form of UELLM's 4·b·l·h·(s+n))."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.models.config import ModelConfig
from uellm_cli.models.kinds import CHUNKED, CONV, LINEAR, RECURRENT, SLIDING
from uellm_cli.models.recurrent import mixer

RECURRENT_STATE_BYTES = 4


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Bytes that a token adds to one layer's cache, up to `window_tokens` tokens, on top of
    `state_bytes` that every sequence takes."""

    bytes_per_token: int
    window_tokens: int | None
    state_bytes: int = 0


def kv_layers(config: ModelConfig, kinds: Sequence[str]) -> tuple[LayerKV, ...]:
    """The cache of each layer in turn; raises ModelError for a state of unknown size."""
    per_token = kv_bytes_per_token(config)
    return tuple(
        LayerKV(
            bytes_per_token=0 if kind in (LINEAR, CONV) else per_token,
            window_tokens=_window(config, kind),
            state_bytes=_state_bytes(config, kind) if kind in RECURRENT else 0,
        )
        for kind in kinds
    )


def kv_bytes_per_token(config: ModelConfig) -> int:
    """Bytes of one token in one layer: n_kv·(d_k + d_v)·bytes, or one latent for MLA.

    The cache holds 2-byte elements unless the model runs in float32.
    """
    element_bytes = _element_bytes(config)
    latent = config.optional("kv_lora_rank")
    if latent is not None:
        return (latent + (config.optional("qk_rope_head_dim") or 0)) * element_bytes
    return config.kv_heads * 2 * config.head_dim * element_bytes


def _state_bytes(config: ModelConfig, kind: str) -> int:
    """The recurrence in float32, as transformers computes and keeps it, and the convolution."""
    sizes = mixer(config, kind)
    convolution = sizes.convolution_state * _element_bytes(config)
    return sizes.recurrent_state * RECURRENT_STATE_BYTES + convolution


def _element_bytes(config: ModelConfig) -> int:
    return 4 if config.dtype_bytes >= 4 else 2


def _window(config: ModelConfig, kind: str) -> int | None:
    if kind not in (SLIDING, CHUNKED):
        return None
    return config.optional("attention_chunk_size" if kind == CHUNKED else "sliding_window")
