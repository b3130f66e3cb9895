"""What each layer remembers of the tokens before: all of them, a window, or a state."""

from __future__ import annotations

from uellm_cli.errors import ModelError
from uellm_cli.models.config import ModelConfig

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
# A state of constant size instead of a cache: linear attention and Mamba, short convolutions.
LINEAR = "linear_attention"
CONV = "conv"
# Attention and Mamba side by side.
HYBRID = "hybrid"

RECURRENT = (LINEAR, CONV, HYBRID)
_KINDS = (FULL, SLIDING, CHUNKED, *RECURRENT)
# What older configs call them.
_OLD_NAMES = {"attention": FULL, "mamba": LINEAR}


def layer_kinds(config: ModelConfig) -> tuple[str, ...]:
    """The kind of each layer in turn; raises ModelError for one that is not known."""
    listed = config.raw.get("layer_types") or config.raw.get("layers_block_type")
    if not isinstance(listed, list):
        return tuple(_kind_by_pattern(config, layer) for layer in range(config.layers))
    if len(listed) != config.layers:
        raise ModelError(
            f"{config.file}: layer_types lists {len(listed)} layers, but there are {config.layers}"
        )
    kinds = tuple(_OLD_NAMES.get(str(kind), str(kind)) for kind in listed)
    for kind in kinds:
        if kind not in _KINDS:
            raise ModelError(
                f"{config.file}: the memory of layer type {kind!r} is not known to uellm; "
                f"known: {', '.join(_KINDS)}"
            )
    return kinds


def _kind_by_pattern(config: ModelConfig, layer: int) -> str:
    return _recurrent_by_pattern(config, layer) or _window_by_pattern(config, layer)


def _recurrent_by_pattern(config: ModelConfig, layer: int) -> str | None:
    """The kind in a model of which some layers carry a state; None in any other."""
    if config.optional("mamba_d_ssm"):  # Falcon-H1
        return HYBRID
    if (period := config.optional("attn_layer_period")) is not None:  # Jamba
        offset = config.optional("attn_layer_offset") or 0
        return FULL if layer % period == offset else LINEAR
    if config.optional("mamba_d_state"):  # Bamba
        return FULL if layer in (config.raw.get("attn_layer_indices") or ()) else LINEAR
    if config.optional("linear_num_value_heads"):  # Qwen3-Next
        every = config.optional("full_attention_interval") or 4
        return FULL if (layer + 1) % every == 0 else LINEAR
    if config.optional("conv_L_cache"):  # LFM2
        return FULL if layer in (config.raw.get("full_attn_idxs") or ()) else CONV
    return None


def _window_by_pattern(config: ModelConfig, layer: int) -> str:
    if config.flag("use_sliding_window"):
        # Qwen: the first max_window_layers layers see everything.
        return SLIDING if layer >= (config.optional("max_window_layers") or 0) else FULL
    full_every = config.optional("sliding_window_pattern") or config.family.full_every
    if full_every is None or "use_sliding_window" in config.raw:
        return FULL
    if full_every and (layer + 1) % full_every == 0:
        return FULL
    return CHUNKED if config.optional("attention_chunk_size") else SLIDING
