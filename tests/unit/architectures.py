"""Small models of many architectures with random weights, and what `generate` makes of them.

Weights are drawn anew at a scale at which attention looks at what it should and the best token
wins by far: what a wrong window, position or page does to an answer is then seen in its tokens. No
model ever draws a special token, so that the texts of an answer's tokens tell which they are.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

# Where two scores are nearer to each other than this, rounding may say which one is the larger.
NEAR = 1e-4
# What a reference is made of, and so the longest answer that can be compared.
LONGEST_ANSWER = 40

# The bundled tokenizer's own, so that every token that a model draws has a text.
VOCABULARY = 1739
SPECIAL_TOKENS = 3
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's type and sizes; `embedding` is the spread of its token embeddings.

    `alone` is why its requests cannot share forward passes, empty where they can.
    """

    model_type: str
    config: Mapping[str, object]
    embedding: float = 1.0
    alone: str = ""

    @property
    def forgets(self) -> bool:
        """Whether no layer sees further back than a window."""
        return "sliding_window" in self.config and "layer_types" not in self.config


TOKENS: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
COMMON: dict[str, object] = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED: dict[str, object] = {**COMMON, "num_key_value_heads": 2}
GPT: dict[str, object] = {**TOKENS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
EXPERTS: dict[str, object] = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
ROUTED: dict[str, object] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 2,
    "n_group": 2,
    "topk_group": 1,
}
LATENT: dict[str, object] = {
    **ROUTED,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
MIXED: dict[str, object] = {
    "sliding_window": 10,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
# A scan in chunks of 16 tokens, several of them to a prompt.
MAMBA2: dict[str, object] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
DELTA_NET: dict[str, object] = {
    "head_dim": 8,
    "num_hidden_layers": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA: dict[str, object] = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16}
# Models that multiply their embeddings by the root of the hidden size.
SCALED = 32**-0.5

OWN_ATTENTION = "attention code of its own"
ALIBI = "positions are biases in attention code of its own"
RECURRENT = "a state that every token changes"
LONGEST_DECIDES = "rotary frequencies depend on the longest sequence of a forward pass"
CHUNKED = "attention ends at the borders of fixed chunks"

ARCHITECTURES: dict[str, Architecture] = {
    # Full attention.
    "llama": Architecture("llama", GROUPED),
    "llama-biased": Architecture(
        "llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 12}
    ),
    "llama-yarn": Architecture(
        "llama",
        {
            **GROUPED,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen2": Architecture("qwen2", GROUPED),
    "qwen3": Architecture("qwen3", {**GROUPED, "head_dim": 16}),
    "olmo2": Architecture("olmo2", GROUPED),
    "granite": Architecture(
        "granite",
        {
            **GROUPED,
            "attention_multiplier": 0.5,
            "residual_multiplier": 0.7,
            "embedding_multiplier": 2.0,
            "logits_scaling": 2.0,
        },
        embedding=0.5,
    ),
    "smollm3": Architecture("smollm3", {**GROUPED, "no_rope_layers": [1, 0, 1]}),
    "glm4": Architecture("glm4", {**GROUPED, "head_dim": 8}),
    "nemotron": Architecture("nemotron", GROUPED),
    "gemma": Architecture("gemma", GEMMA, SCALED),
    "phi": Architecture("phi", GROUPED),
    "cohere": Architecture("cohere", {**GROUPED, "logit_scale": 1.0}),
    "stablelm": Architecture("stablelm", GROUPED),
    "gpt-neox": Architecture("gpt_neox", COMMON),
    "opt": Architecture("opt", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt2": Architecture("gpt2", GPT),
    "gpt-bigcode": Architecture("gpt_bigcode", GPT),
    # Sliding windows.
    "mistral": Architecture("mistral", {**GROUPED, "sliding_window": 12}),
    "ministral": Architecture("ministral", {**GROUPED, **MIXED, "head_dim": 8}),
    "starcoder2": Architecture("starcoder2", {**GROUPED, "sliding_window": 10}),
    "gemma2": Architecture(
        "gemma2",
        {**GEMMA, **MIXED, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 20.0},
        SCALED,
    ),
    "gemma3": Architecture("gemma3_text", {**GEMMA, **MIXED}, SCALED),
    "gemma4": Architecture(
        "gemma4_text",
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
        SCALED,
    ),
    "phi3": Architecture("phi3", {**GROUPED, "sliding_window": 14}),
    "cohere2": Architecture("cohere2", {**GROUPED, **MIXED, "logit_scale": 1.0}),
    "olmo3": Architecture("olmo3", {**GROUPED, **MIXED}),
    "exaone4": Architecture("exaone4", {**GROUPED, **MIXED}),
    # Experts.
    "mixtral": Architecture("mixtral", {**GROUPED, **EXPERTS}),
    "mixtral-sliding": Architecture("mixtral", {**GROUPED, **EXPERTS, "sliding_window": 9}),
    "qwen2-moe": Architecture(
        "qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 32}
    ),
    # Of these two, attention itself is never told of the window: only the mask has it.
    "qwen2-moe-sliding": Architecture(
        "qwen2_moe",
        {
            **GROUPED,
            **EXPERTS,
            **MIXED,
            "shared_expert_intermediate_size": 32,
            "use_sliding_window": True,
            "sliding_window": 20,
        },
    ),
    "phimoe": Architecture("phimoe", {**GROUPED, **EXPERTS, "sliding_window": 15}),
    "qwen3-moe": Architecture(
        "qwen3_moe", {**GROUPED, **EXPERTS, "head_dim": 16, "norm_topk_prob": True}
    ),
    "olmoe": Architecture("olmoe", {**GROUPED, **EXPERTS}),
    "granite-moe": Architecture("granitemoe", {**GROUPED, **EXPERTS}),
    "glm4-moe": Architecture("glm4_moe", {**GROUPED, **ROUTED, "head_dim": 8}),
    "gpt-oss": Architecture(
        "gpt_oss",
        {
            **GROUPED,
            **EXPERTS,
            **MIXED,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    # Keys of another width than values.
    "deepseek-v2": Architecture("deepseek_v2", {**COMMON, **LATENT, "topk_method": "greedy"}),
    "deepseek-v3": Architecture("deepseek_v3", {**COMMON, **LATENT}),
    # What no packed forward pass is right for.
    "phi3-longrope": Architecture(
        "phi3",
        {
            **GROUPED,
            "original_max_position_embeddings": 48,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.0, 1.0, 1.0],
                "long_factor": [1.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 48,
            },
        },
        alone=LONGEST_DECIDES,
    ),
    "llama-dynamic": Architecture(
        "llama",
        {
            **GROUPED,
            "max_position_embeddings": 48,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
        alone=LONGEST_DECIDES,
    ),
    "llama4": Architecture(
        "llama4_text",
        {
            **GROUPED,
            **EXPERTS,
            "head_dim": 8,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 16,
        },
        alone=CHUNKED,
    ),
    "falcon": Architecture(
        "falcon",
        {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2},
        alone=OWN_ATTENTION,
    ),
    "gptj": Architecture("gptj", {**GPT, "rotary_dim": 4}, alone=OWN_ATTENTION),
    "gpt-neo": Architecture(
        "gpt_neo",
        {
            **TOKENS,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "max_position_embeddings": 512,
            "window_size": 12,
            "attention_types": [[["local", "global", "local"], 1]],
        },
        alone=OWN_ATTENTION,
    ),
    "bloom": Architecture(
        "bloom", {**TOKENS, "hidden_size": 32, "n_layer": 3, "n_head": 4}, alone=ALIBI
    ),
    "mpt": Architecture(
        "mpt",
        {
            **TOKENS,
            "d_model": 32,
            "n_layers": 3,
            "n_heads": 4,
            "max_seq_len": 512,
            "expansion_ratio": 2,
        },
        alone=ALIBI,
    ),
    "qwen3-next": Architecture(
        "qwen3_next",
        {
            **GROUPED,
            **EXPERTS,
            **DELTA_NET,
            "shared_expert_intermediate_size": 32,
            "mlp_only_layers": [0, 1, 2],
        },
        alone=RECURRENT,
    ),
    "qwen3.5": Architecture("qwen3_5_text", {**GROUPED, **DELTA_NET}, alone=RECURRENT),
    "jamba": Architecture(
        "jamba",
        {
            **GROUPED,
            **EXPERTS,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
        },
        alone=RECURRENT,
    ),
    "bamba": Architecture(
        "bamba", {**GROUPED, **MAMBA2, "attn_layer_indices": [1]}, alone=RECURRENT
    ),
    "granite-hybrid": Architecture(
        "granitemoehybrid",
        {
            **GROUPED,
            **EXPERTS,
            **MAMBA2,
            "layer_types": ["mamba", "attention", "mamba"],
            "shared_intermediate_size": 32,
        },
        alone=RECURRENT,
    ),
    "falcon-h1": Architecture(
        "falcon_h1", {**GROUPED, **MAMBA2, "mamba_d_ssm": 64, "head_dim": 8}, alone=RECURRENT
    ),
    "lfm2": Architecture(
        "lfm2",
        {**GROUPED, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 16},
        alone=RECURRENT,
    ),
    "minimax": Architecture("minimax", {**GROUPED, **EXPERTS, "head_dim": 8}, alone=RECURRENT),
    "mamba": Architecture(
        "mamba",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
        alone=RECURRENT,
    ),
    "mamba2": Architecture(
        "mamba2",
        {
            **TOKENS,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
        alone=RECURRENT,
    ),
    "recurrent-gemma": Architecture(
        "recurrent_gemma",
        {**COMMON, "num_key_value_heads": 1, "attention_window_size": 12},
        SCALED,
        alone=RECURRENT,
    ),
    "rwkv": Architecture(
        "rwkv",
        {
            **TOKENS,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 3,
            "context_length": 512,
        },
        alone=RECURRENT,
    ),
}


# --- Models --------------------------------------------------------------------------------------

# Products of two random vectors that went through weights of this spread say something.
WEIGHTS = 1.5
# Spread of a token's scores: the best of so many wins by about a quarter of this, and what rounding
# does to them stays well below `NEAR`.
SCORES = 2.0


def make_model(name: str, folder: Path, tokenizer: Path) -> None:
    """Writes `ARCHITECTURES[name]` to `folder`, with the tokenizer files of a folder."""
    architecture = ARCHITECTURES[name]
    disable_progress_bar()
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # for vectors that are made at random, such as sinks
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw_weights(model, architecture.embedding)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder / file)


@torch.no_grad()
def draw_weights(model: Any, embedding: float) -> None:
    """Draws all weights anew; vectors (norms, biases) are moved off what they were made as."""
    generator = torch.Generator().manual_seed(0)
    head = model.get_output_embeddings()
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1 or name.endswith("A_log"):
            weight += 0.1 * noise
        elif id(weight) in looked_up:
            weight.copy_(embedding * noise)
        else:
            spread = SCORES if weight is head.weight else WEIGHTS
            weight.copy_(spread / math.sqrt(weight.shape[-1]) * noise)
    head.weight[:SPECIAL_TOKENS] = 0
    if getattr(head, "bias", None) is not None:
        head.bias[:SPECIAL_TOKENS] = 0


def model_maker(tokenizer: Path, root: Path) -> Callable[[str], Path]:
    """Gives the folder of a model of `ARCHITECTURES`, made below `root` when first asked for."""

    @cache
    def folder(name: str) -> Path:
        make_model(name, root / name, tokenizer)
        return root / name

    return folder


# --- References ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """The greedy answer to one prompt that is alone in the world, with no end token in it.

    `gaps` has for each step how near a decision was in it: the difference of the two best scores,
    or of the scores on both sides of a router's cut, whatever is smaller.
    """

    tokens: tuple[int, ...]
    gaps: tuple[float, ...]

    @property
    def sure(self) -> int:
        """Leading steps that no rounding can change."""
        return sum(1 for _ in takewhile(lambda gap: gap >= NEAR, self.gaps))

    def first(self, tokens: int) -> Reference:
        return Reference(self.tokens[:tokens], self.gaps[:tokens])


@cache
def reference(folder: Path, prompt: tuple[int, ...]) -> Reference:
    """`LONGEST_ANSWER` tokens as `generate` makes them with eager attention in float32."""
    model = _loaded(folder)
    cuts = _Cuts()
    counting = model.register_forward_pre_hook(cuts.next_step)
    try:
        with torch.inference_mode(), cuts:
            made = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=GenerationConfig(
                    max_new_tokens=LONGEST_ANSWER,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    output_logits=True,
                    return_dict_in_generate=True,
                ),
            )
    finally:
        counting.remove()
    best = torch.topk(torch.cat(made.logits).float(), 2).values
    gaps = (best[:, 0] - best[:, 1]).tolist()
    tokens = made.sequences[0, len(prompt) :].tolist()
    return Reference(tuple(tokens), tuple(map(min, gaps, cuts.gaps)))


def _loaded(folder: Path) -> Any:
    # Anew for each prompt: some models' rotary frequencies remember what they have seen.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config = GenerationConfig()
    return model


@dataclass
class _Cuts(TorchFunctionMode):
    """How near each forward pass came to a cut that keeps the best of several scores.

    Whatever a router calls itself, its cut is a `topk`.
    """

    gaps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def next_step(self, *_: object) -> None:
        self.gaps.append(math.inf)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.topk, torch.Tensor.topk) and self.gaps:
            self._note(args[0], made.values.shape[-1])
        return made

    def _note(self, scores: torch.Tensor, kept: int) -> None:
        """Of scores [..., choices], cut along the last dimension, as all routers do."""
        if kept == scores.shape[-1]:
            return
        best = scores.float().sort(dim=-1, descending=True).values
        gap = (best[..., kept - 1] - best[..., kept]).min()
        self.gaps[-1] = min(self.gaps[-1], float(gap))


@cache
def kv_bytes_per_token(folder: Path) -> int:
    """What the keys and values take that layers compute attention over, of one token.

    A layer that reads those of another one counts as if it had its own, and latent ones count as
    what they are unfolded to.
    """
    model = _loaded(folder)
    config = model.config
    if hasattr(config, "kv_lora_rank"):
        width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        return int(config.num_hidden_layers * config.num_attention_heads * width * FLOAT_BYTES)
    with torch.inference_mode():
        made = model(torch.tensor([[SPECIAL_TOKENS]]), use_cache=True)
    layers = made.past_key_values.layers
    own = [layer for layer in layers if layer.keys is not None]
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in own)
    return int(kept * len(layers) / len(own))
