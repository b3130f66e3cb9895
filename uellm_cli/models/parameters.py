"""How many weights each part of a model has, counted from its config."""

from __future__ import annotations

from dataclasses import dataclass

from uellm_cli.models.config import ModelConfig
from uellm_cli.models.kinds import CONV, LINEAR, RECURRENT
from uellm_cli.models.recurrent import mixer


@dataclass(frozen=True, slots=True)
class LayerParameters:
    """Weights of one layer. `plain` ones (norms, biases, router) are never quantised."""

    attention: int
    mlp: int
    experts: int
    active_experts: int
    plain: int


def layer_parameters(config: ModelConfig, layer: int, kind: str) -> LayerParameters:
    """The weights of layer number `layer`, from 0, which is of this kind (`kinds.py`)."""
    attention, attention_plain = (0, 0) if kind in (LINEAR, CONV) else _attention(config)
    if kind in RECURRENT:
        beside = mixer(config, kind)
        attention, attention_plain = attention + beside.linear, attention_plain + beside.plain
    norms = config.family.norms_per_layer * config.hidden * (2 if config.family.norm_bias else 1)
    if config.flag("new_decoder_architecture") or config.flag("parallel_attn"):
        # Falcon: attention and MLP side by side, one norm each, or one for both in the old form.
        count = 2 if config.flag("new_decoder_architecture") else 1
        norms = count * config.hidden * 2
    if not is_moe_layer(config, layer):
        mlp, mlp_bias = _mlp(config, config.intermediate)
        return LayerParameters(attention, mlp, 0, 0, attention_plain + norms + mlp_bias)
    experts = config.optional("experts") or 0
    active = min(experts, config.optional("experts_per_token") or experts)
    size = config.optional("expert_intermediate") or config.intermediate
    one, bias = _mlp(config, size)
    gated_size = config.optional("shared_expert_intermediate_size")
    shared_size = (
        gated_size
        or config.optional("shared_intermediate_size")
        or (size * (config.optional("shared_experts") or 0))
    )
    # Qwen's shared expert has a gate of its own.
    router = config.hidden * (experts + (1 if gated_size else 0))
    return LayerParameters(
        attention,
        _mlp(config, shared_size)[0],
        experts * one,
        active * one,
        attention_plain + norms + experts * bias + router,
    )


def is_moe_layer(config: ModelConfig, layer: int) -> bool:
    """Whether the layer's MLP is a mixture of experts, by each family's fields."""
    if not config.optional("experts"):
        return False
    if layer < (config.optional("first_k_dense_replace") or 0):
        return False
    if layer in (config.raw.get("mlp_only_layers") or ()):
        return False
    period = config.optional("expert_layer_period")
    if period is not None:  # Jamba
        return layer % period == (config.optional("expert_layer_offset") or 0)
    sparse_every = config.optional("decoder_sparse_step") or config.optional(
        "interleave_moe_layer_step"
    )
    if sparse_every is not None:
        return (layer + 1) % sparse_every == 0
    return layer % (config.optional("moe_layer_freq") or 1) == 0


def embedding_parameters(config: ModelConfig) -> int:
    """The token table, and the position table of the families that learn one."""
    extra = config.family.extra_positions
    positions = 0 if extra is None else config.context + extra
    return (config.vocab + positions) * config.hidden


def head_parameters(config: ModelConfig) -> int:
    """The output projection; none of its own where it is tied to the token table."""
    return 0 if config.is_tied else config.vocab * config.hidden


def norm_parameters(config: ModelConfig) -> int:
    return config.hidden * (2 if config.family.norm_bias else 1)


def _attention(config: ModelConfig) -> tuple[int, int]:
    if config.optional("kv_lora_rank"):
        return _latent_attention(config)
    query = config.heads * config.head_dim
    key_value = 2 * config.kv_heads * config.head_dim
    family = config.family
    inputs = (2 if family.gated_attention else 1) * query + key_value
    linear = config.hidden * inputs + query * config.hidden
    has_all = family.linear_bias or any(map(config.flag, ("attention_bias", "bias")))
    has_qkv = has_all or family.qkv_bias or config.flag("add_qkv_bias")
    bias = (query + key_value if has_qkv else 0) + (config.hidden if has_all else 0)
    return linear, bias + (2 * config.head_dim if family.qk_norm else 0)


def _latent_attention(config: ModelConfig) -> tuple[int, int]:
    """DeepSeek's multi-head latent attention (arXiv 2405.04434, section 2.1)."""
    kv_rank = config.optional("kv_lora_rank") or 0
    rope = config.optional("qk_rope_head_dim") or 0
    nope = config.optional("qk_nope_head_dim") or config.head_dim
    value = config.optional("v_head_dim") or config.head_dim
    query_rank = config.optional("q_lora_rank")
    query_out = config.heads * (nope + rope)
    query = config.hidden * query_out
    if query_rank is not None:
        query = config.hidden * query_rank + query_rank * query_out
    key_value = config.hidden * (kv_rank + rope) + kv_rank * config.heads * (nope + value)
    output = config.heads * value * config.hidden
    return query + key_value + output, (query_rank or 0) + kv_rank


def _mlp(config: ModelConfig, size: int) -> tuple[int, int]:
    inputs = 2 if config.family.gated_mlp else 1
    has_bias = config.family.linear_bias or any(map(config.flag, ("mlp_bias", "bias")))
    bias = inputs * size + config.hidden if has_bias else 0
    return (inputs + 1) * config.hidden * size, bias
