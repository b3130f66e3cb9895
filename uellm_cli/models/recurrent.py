"""Layers that carry a state of constant size from token to token: what they keep, and weigh.

Gated delta nets (Qwen3-Next, Qwen3.5, OLMo Hybrid), Mamba (Jamba), Mamba 2 (Bamba, Granite 4,
Falcon-H1) and short convolutions (LFM2), with the shapes of transformers 5's `modeling_*.py`. A
convolution keeps as many tokens as its kernel is wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from uellm_cli.errors import ModelError
from uellm_cli.models.config import ModelConfig
from uellm_cli.models.kinds import CONV


@dataclass(frozen=True, slots=True)
class Mixer:
    """Elements of a sequence's state, and weights; `plain` ones are never quantised."""

    recurrent_state: int
    convolution_state: int
    linear: int
    plain: int


def mixer(config: ModelConfig, kind: str) -> Mixer:
    """What stands in the place of attention, or beside it, in a layer of this kind.

    Raises ModelError where the config does not say how large it is.
    """
    if kind == CONV:
        return _short_convolution(config)
    if config.optional("linear_num_value_heads"):
        return _gated_delta_net(config)
    if config.optional("mamba_n_heads"):
        return _mamba2(config)
    if config.optional("mamba_d_state"):
        return _mamba(config)
    raise ModelError(
        f"{config.file}: the memory of layer type {kind!r} is not known to uellm where the config "
        "has no linear_num_value_heads, mamba_n_heads or mamba_d_state"
    )


def _gated_delta_net(config: ModelConfig) -> Mixer:
    heads = _need(config, "linear_num_value_heads")
    key_size, value_size = (_need(config, f"linear_{part}_head_dim") for part in ("key", "value"))
    keys = _need(config, "linear_num_key_heads") * key_size
    values = heads * value_size
    convolved, kernel = 2 * keys + values, _need(config, "linear_conv_kernel_dim")
    inputs = convolved + values + 2 * heads  # q, k, v, the gate, and two numbers a head
    return Mixer(
        recurrent_state=heads * key_size * value_size,
        convolution_state=convolved * kernel,
        linear=config.hidden * inputs + values * config.hidden,
        plain=convolved * kernel + 2 * heads + value_size,
    )


def _mamba2(config: ModelConfig) -> Mixer:
    heads, state = _need(config, "mamba_n_heads"), _need(config, "mamba_d_state")
    inner = _inner(config)
    convolved = inner + 2 * (config.optional("mamba_n_groups") or 1) * state
    kernel = _need(config, "mamba_d_conv")
    norm = 0 if config.raw.get("mamba_rms_norm") is False else inner  # Falcon-H1
    return Mixer(
        recurrent_state=inner * state,
        convolution_state=convolved * kernel,
        linear=config.hidden * (inner + convolved + heads) + inner * config.hidden,
        plain=convolved * (kernel + 1) + 3 * heads + norm,
    )


def _mamba(config: ModelConfig) -> Mixer:
    inner, state = _inner(config), _need(config, "mamba_d_state")
    kernel = _need(config, "mamba_d_conv")
    stated = config.raw.get("mamba_dt_rank")
    rank = stated if isinstance(stated, int) else ceil(config.hidden / 16)  # "auto"
    return Mixer(
        recurrent_state=inner * state,
        convolution_state=inner * kernel,
        linear=3 * config.hidden * inner + inner * (rank + 2 * state) + rank * inner,
        plain=inner * (kernel + 1) + inner * (state + 2) + rank + 2 * state,
    )


def _short_convolution(config: ModelConfig) -> Mixer:
    kernel = _need(config, "conv_L_cache")
    return Mixer(
        recurrent_state=0,
        convolution_state=config.hidden * kernel,
        linear=4 * config.hidden * config.hidden,
        plain=config.hidden * kernel,
    )


def _inner(config: ModelConfig) -> int:
    """The width of a Mamba layer's inside."""
    return config.optional("mamba_d_ssm") or _need(config, "mamba_expand") * config.hidden


def _need(config: ModelConfig, name: str) -> int:
    value = config.optional(name)
    if value is None:
        raise ModelError(
            f"{config.file}: the model config has no {name!r}, so the size of its recurrent "
            "layers cannot be computed"
        )
    return value
