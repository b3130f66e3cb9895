"""How model families differ from LLaMA in what they store: one line each.

Read from the `configuration_*.py` and `modeling_*.py` of transformers 5. A family that is not
here is computed as LLaMA's gated transformer and its weights are marked as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Family:
    """What a config of this family leaves unsaid.

    `full_every` is the pattern of sliding windows where the config lists no `layer_types`: None,
    the family ignores a window; 0, every layer has it; n, all but each n-th layer have it.
    `extra_positions` is None without learned position embeddings, else the rows that the table has
    beyond the context. `defaults` hold what such configs omit because the class has it.
    """

    gated_mlp: bool = True
    norms_per_layer: int = 2
    norm_bias: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    gated_attention: bool = False
    tied: bool = False
    extra_positions: int | None = None
    full_every: int | None = None
    defaults: Mapping[str, int] = field(default_factory=dict)


_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_GEMMA3 = {"vocab_size": 262_208, "max_position_embeddings": 131_072}
_MISTRAL = Family(full_every=0)
_QWEN2 = Family(qkv_bias=True)
_QWEN3 = Family(qk_norm=True)
_QWEN3_NEXT = Family(qk_norm=True, gated_attention=True)
_GEMMA2 = Family(norms_per_layer=4, tied=True, full_every=2)
_GEMMA3_TEXT = Family(norms_per_layer=4, qk_norm=True, tied=True, full_every=6, defaults=_GEMMA3)
_DENSE_GPT = Family(gated_mlp=False, norm_bias=True, linear_bias=True, tied=True)

UNKNOWN = Family()

FAMILIES: Mapping[str, Family] = {
    "llama": Family(defaults=_LLAMA_7B),
    "granite": UNKNOWN,
    "granitemoehybrid": UNKNOWN,
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    "phi3": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen2_moe": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "gemma": Family(tied=True),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3_TEXT,
    "gemma3": _GEMMA3_TEXT,
    "cohere": Family(norms_per_layer=1, tied=True),
    "cohere2": Family(norms_per_layer=1, tied=True, full_every=4),
    "llama4_text": Family(full_every=4, defaults={"n_shared_experts": 1}),
    "gpt_oss": Family(linear_bias=True, full_every=2),
    "jamba": UNKNOWN,
    "bamba": UNKNOWN,
    "falcon_h1": UNKNOWN,
    "deepseek_v2": UNKNOWN,
    "deepseek_v3": UNKNOWN,
    "chatglm": _QWEN2,
    "glm": _QWEN2,
    "glm4": Family(norms_per_layer=4, qkv_bias=True),
    "starcoder2": Family(
        gated_mlp=False, norm_bias=True, linear_bias=True, tied=True, full_every=0
    ),
    # transformers ties Falcon's head, but its checkpoints store one: room is kept for it.
    "falcon": Family(gated_mlp=False, norm_bias=True, defaults={"max_position_embeddings": 2048}),
    "gpt2": Family(gated_mlp=False, norm_bias=True, linear_bias=True, tied=True, extra_positions=0),
    "gpt_bigcode": Family(
        gated_mlp=False, norm_bias=True, linear_bias=True, tied=True, extra_positions=0
    ),
    "opt": Family(gated_mlp=False, norm_bias=True, linear_bias=True, tied=True, extra_positions=2),
    "gpt_neox": Family(gated_mlp=False, norm_bias=True, linear_bias=True),
    "bloom": _DENSE_GPT,
    "phi": Family(gated_mlp=False, norms_per_layer=1, norm_bias=True, linear_bias=True),
}
