"""What requests take: a cache and weights by hand for each family, tokens, seconds, memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import ONE_SECOND_STEPS, profiled
from uellm_cli.errors import ModelError
from uellm_cli.models.spec import load_model_spec
from uellm_cli.profiler.resources import (
    batch_memory,
    expected_tokens,
    kv_source,
    predicted_quantiles,
    time_needed,
    token_totals,
)
from uellm_cli.types import (
    QUANTILE_LEVELS,
    LengthEstimate,
    ModelSpec,
    ProfiledRequest,
    Source,
    Stage,
    StepTimes,
)

Read = Callable[[Mapping[str, object]], ModelSpec]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_config(config: Mapping[str, object]) -> ModelSpec:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        return load_model_spec(file)

    return read_config


# --- One model of each family, by hand -----------------------------------------------------------

LLAMA2_7B: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
    "vocab_size": 32000, "max_position_embeddings": 4096, "dtype": "float16",
}  # fmt: skip
LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128_256, "max_position_embeddings": 8192,
}  # fmt: skip
FALCON_7B: dict[str, Any] = {
    "model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544,
    "num_attention_heads": 71, "multi_query": True, "parallel_attn": True,
    "vocab_size": 65_024, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048,
    "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 10_944,
    "vocab_size": 102_400, "max_position_embeddings": 163_840, "kv_lora_rank": 512,
    "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408, "first_k_dense_replace": 1, "moe_layer_freq": 1,
}  # fmt: skip
MISTRAL_7B: dict[str, Any] = {
    **LLAMA3_8B, "model_type": "mistral", "vocab_size": 32_000, "sliding_window": 4096,
    "max_position_embeddings": 32_768,
}  # fmt: skip
GEMMA2_9B: dict[str, Any] = {
    "model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "head_dim": 256,
    "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 14_336,
    "vocab_size": 256_000, "max_position_embeddings": 8192, "sliding_window": 4096,
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    **LLAMA3_8B, "model_type": "mixtral", "vocab_size": 32_000, "num_local_experts": 8,
    "num_experts_per_tok": 2, "sliding_window": None, "max_position_embeddings": 32_768,
}  # fmt: skip
JAMBA: dict[str, Any] = {
    "model_type": "jamba", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
    "vocab_size": 65_536, "max_position_embeddings": 262_144, "tie_word_embeddings": False,
    "attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2,
    "expert_layer_offset": 1, "num_experts": 16, "num_experts_per_tok": 2,
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256,
}  # fmt: skip
BAMBA_9B: dict[str, Any] = {
    "model_type": "bamba", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
    "vocab_size": 128_256, "max_position_embeddings": 262_144, "tie_word_embeddings": False,
    "attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128, "mamba_d_head": "auto",
    "mamba_n_groups": 1, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048, "head_dim": 256,
    "num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 5120,
    "vocab_size": 151_936, "max_position_embeddings": 262_144, "full_attention_interval": 4,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 512,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "tokens", "kv_bytes"),
    [
        # Multi-head: 32 layers · 32 heads · (128 + 128) · 2 bytes a token, which is the UELLM
        # paper's 4·l·h = 4·32·4096.
        (LLAMA2_7B, 1, 524_288),
        (LLAMA2_7B, 1000, 4 * 32 * 4096 * 1000),
        # Grouped queries: 8 KV heads instead of 32, a quarter of it.
        (LLAMA3_8B, 1, 131_072),
        # One KV head for all: 32 layers · 1 · (64 + 64) · 2; the head's 64 are 4544 / 71.
        (FALCON_7B, 1, 8_192),
        # Latent attention: 27 layers · (512 + 64) · 2, whatever the heads.
        (DEEPSEEK_V2_LITE, 1, 31_104),
        # A window on all layers: no more than 4096 tokens of 131,072 bytes.
        (MISTRAL_7B, 4_000, 131_072 * 4_000),
        (MISTRAL_7B, 10_000, 131_072 * 4_096),
        # Every second layer has a window: 42 · 8 · (256 + 256) · 2 = 42 · 8,192 bytes a token,
        # of which at 6,000 tokens 21 layers keep 6,000 and 21 keep 4,096.
        (GEMMA2_9B, 1, 344_064),
        (GEMMA2_9B, 6_000, 21 * 8_192 * 6_000 + 21 * 8_192 * 4_096),
        # Experts have no cache: as the grouped queries above.
        (MIXTRAL_8X7B, 1, 131_072),
        # Mamba with attention in layers 4, 12, 20, 28: 4 · 8 · 256 · 2 = 16,384 bytes a token, and
        # in 28 layers a state of 8192·16 elements of 4 bytes and a convolution of 8192·4 of 2.
        (JAMBA, 0, 28 * (524_288 + 65_536)),
        (JAMBA, 1_000, 28 * 589_824 + 16_384 * 1_000),
        # Mamba 2 with attention in three layers: 3 · 8 · 256 · 2 = 12,288 bytes a token, and in 29
        # layers 8192·128 elements of 4 bytes and (8192 + 2·128)·4 of 2.
        (BAMBA_9B, 1_000, 29 * (4_194_304 + 67_584) + 12_288 * 1_000),
        # Linear attention in 36 of 48 layers: 12 · 2 · 512 · 2 = 24,576 bytes a token, and
        # 32·128·128 elements of 4 bytes with a convolution of (2·16·128 + 32·128)·4 of 2.
        (QWEN3_NEXT, 1_000, 36 * (2_097_152 + 65_536) + 24_576 * 1_000),
    ],
    ids=[
        "MHA", "MHA-1000", "GQA", "MQA", "MLA", "within-window", "beyond-window", "alternating",
        "alternating-6000", "MoE", "Mamba-state", "Mamba", "Mamba-2", "linear-attention",
    ],
)  # fmt: skip
def test_the_cache_of_a_sequence_is_as_worked_out_by_hand(
    read: Read, config: dict[str, Any], tokens: int, kv_bytes: int
) -> None:
    assert read(config).kv_bytes(tokens) == kv_bytes


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        # Layer: attention 4·4096², MLP 3·4096·11008, norms 2·4096 = 202,383,360; 32 of them, twice
        # 32000·4096, and a norm of 4096.
        (LLAMA2_7B, 32 * 202_383_360 + 2 * 131_072_000 + 4_096),
        # Attention 4096·(4096 + 2·1024 + 4096), MLP 3·4096·14336, norms = 218,112,000.
        (LLAMA3_8B, 32 * 218_112_000 + 2 * 525_336_576 + 4_096),
        # q, k, v 4544·(4544 + 2·64), out 4544², MLP 8·4544², one norm with bias = 207,070,080; the
        # head is tied to 65,024·4544.
        (FALCON_7B, 32 * 207_070_080 + 295_469_056 + 2 * 4_544),
        # q 2048·16·192, down 2048·576, up 512·16·256, out 16·128·2048 and norms 512 + 4096 =
        # 13,767,168; the first MLP 3·2048·10944, of the others 66 experts of 3·2048·1408 each and a
        # router of 64·2048.
        (
            DEEPSEEK_V2_LITE,
            27 * 13_767_168 + 67_239_936 + 26 * (66 * 8_650_752 + 131_072)
            + 2 * 209_715_200 + 2_048,
        ),
        # As LLaMA 3's layer, with eight MLPs and a router of 8·4096.
        (
            MIXTRAL_8X7B,
            32 * (218_112_000 + 7 * 176_160_768 + 32_768) + 2 * 131_072_000 + 4_096,
        ),
        # Mamba: in and out 3·4096·8192, x 8192·(256 + 32), dt 256·8192 + 8192, convolution
        # 8192·(4 + 1), A and D 8192·17, norms 256 + 32 = 105,308,448 in 28 layers; attention
        # 41,943,040 in 4; MLPs of 176,160,768: one in 16 layers, 16 and a router of 65,536 in the
        # others; norms of 8,192 in 32.
        (
            JAMBA,
            28 * 105_308_448 + 4 * 41_943_040 + 16 * 17 * 176_160_768 + 16 * 65_536 + 32 * 8_192
            + 2 * 268_435_456 + 4_096,
        ),
        # Mamba 2: in 4096·(8192 + 8448 + 128), out 8192·4096, convolution 8448·(4 + 1), three
        # numbers for each of 128 heads, a norm of 8192 = 102,286,976 in 29 layers.
        (
            BAMBA_9B,
            29 * 102_286_976 + 3 * 41_943_040 + 32 * (176_160_768 + 8_192)
            + 2 * 525_336_576 + 4_096,
        ),
        # Linear attention: q, k, v and gate 2048·(2·2048 + 2·4096), two numbers for each of 32
        # heads 2048·64, out 4096·2048, convolution 8192·4, 2·32, a norm of 128 = 33,718,464 in 36
        # layers; attention: q and its gate 2048·2·4096, k and v 2048·2·512, out 4096·2048, norms of
        # 2·256 = 27,263,488 in 12; MLPs: 512 experts and a shared one of 3·2048·512, a router of
        # 512·2048, a gate and two norms of 2048.
        (
            QWEN3_NEXT,
            36 * 33_718_464 + 12 * 27_263_488 + 48 * (513 * 3_145_728 + 1_048_576 + 3 * 2_048)
            + 2 * 311_164_928 + 2_048,
        ),
    ],
    ids=["MHA", "GQA", "MQA", "MLA", "MoE", "Mamba", "Mamba-2", "linear-attention"],
)  # fmt: skip
def test_weights_are_as_worked_out_by_hand(
    read: Read, config: dict[str, Any], weights: int
) -> None:
    model = read(config)
    assert model.weight_bytes == 2 * weights
    assert model.weight_source is Source.SPECIFIED


def test_a_token_reads_only_its_experts(read: Read) -> None:
    # Of Mixtral's eight MLPs of 176,160,768 weights a token reads two.
    layer = read(MIXTRAL_8X7B).layers[0]
    assert layer.weight_bytes - layer.active_bytes == 2 * 6 * 176_160_768


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        # As listed, in new words and old ones.
        ({"layer_types": ["linear_attention", "full_attention"] * 2}, [True, False] * 2),
        ({"layers_block_type": ["mamba", "attention"] * 2}, [True, False] * 2),
        # Falcon-H1: attention and Mamba 2 in each layer, of a width of its own.
        ({"mamba_d_ssm": 64}, [True] * 4),
    ],
)
def test_a_state_is_where_the_config_says(
    read: Read, changes: dict[str, object], states: list[bool]
) -> None:
    sizes = {"num_hidden_layers": 4, "attn_layer_indices": None, **changes}
    layers = read({**BAMBA_9B, **sizes}).layers
    assert [layer.state_bytes > 0 for layer in layers] == states
    has_cache = [layer.kv_bytes_per_token > 0 for layer in layers]
    assert has_cache == ([True] * 4 if "mamba_d_ssm" in changes else [not s for s in states])


def test_short_convolutions_keep_a_few_tokens(read: Read) -> None:
    # LFM2: 2048 numbers of each of 3 tokens in 2 bytes, and 8 KV heads of 64 in the other layer.
    model = read(
        {
            "model_type": "lfm2", "num_hidden_layers": 2, "hidden_size": 2048,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
            "vocab_size": 65_536, "max_position_embeddings": 128_000, "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention"],
        }
    )  # fmt: skip
    assert model.kv_bytes(100) == 2048 * 3 * 2 + 2 * 8 * 64 * 2 * 100


def test_a_state_of_unknown_size_is_refused(read: Read) -> None:
    unsized = {key: value for key, value in BAMBA_9B.items() if "mamba" not in key}
    with pytest.raises(ModelError, match="linear_attention"):
        read({**unsized, "layer_types": ["linear_attention"] * 32})
    without = {key: value for key, value in BAMBA_9B.items() if key != "mamba_d_conv"}
    with pytest.raises(ModelError, match="'mamba_d_conv'"):
        read(without)


def test_what_an_unknown_family_keeps_is_marked_as_assumed(read: Read) -> None:
    assert kv_source(read(LLAMA3_8B)) is Source.SPECIFIED
    assert kv_source(read({**LLAMA3_8B, "model_type": "brand_new"})) is Source.ASSUMED


# --- Published configs, where they are -----------------------------------------------------------

# Layers · 2 · KV heads · head size · bytes of an element; MLA: layers · latent · bytes.
PUBLISHED_KV_BYTES_PER_TOKEN = {
    "Llama-3.1-8B-Instruct-bnb4.json": 32 * 2 * 8 * 128 * 2,
    "WizardLM-2-8x22B.json": 56 * 2 * 8 * 128 * 2,
    "chatglm2-6b.json": 28 * 2 * 2 * 128 * 2,
    "chatglm3_6b.json": 28 * 2 * 2 * 128 * 2,
    "command_r_35b.json": 40 * 2 * 64 * 128 * 2,
    "deepseek_v3.json": 61 * (512 + 64) * 2,
    "falcon-180B-chat.json": 80 * 2 * 8 * 64 * 2,
    "gemma-2b.json": 18 * 2 * 1 * 256 * 2,
    "gemma3.json": 62 * 2 * 16 * 128 * 2,
    "gemma_2_9b.json": 42 * 2 * 8 * 256 * 4,  # this one says float32
    "glm4_9b.json": 40 * 2 * 2 * 128 * 2,
    "gpt_oss_20b.json": 24 * 2 * 8 * 64 * 2,
    "granite-3b-code-instruct-128k.json": 32 * 2 * 32 * 80 * 2,
    "llama3.json": 80 * 2 * 8 * 128 * 2,
    "llama3_1.json": 80 * 2 * 8 * 128 * 2,
    "llama3_1_405b.json": 126 * 2 * 8 * 128 * 2,
    "llama3_2_1b.json": 16 * 2 * 8 * 64 * 2,
    "llama4_scout_17b_16e.json": 48 * 2 * 8 * 128 * 2,
    "llava_1.5_7b_hf.json": 32 * 2 * 32 * 128 * 2,
    "mistral_7b_instruct.json": 32 * 2 * 8 * 128 * 2,
    "mixtral.json": 32 * 2 * 8 * 128 * 2,
    "phi3.json": 32 * 2 * 32 * 96 * 2,
    "qwen2.5_0.5b.json": 24 * 2 * 2 * 64 * 2,
    "qwen2.5_32b.json": 64 * 2 * 8 * 128 * 2,
    "qwen2.5_72b.json": 80 * 2 * 8 * 128 * 2,
    "qwen2.5_7b.json": 28 * 2 * 4 * 128 * 2,
    "qwen2_vl_7b.json": 28 * 2 * 4 * 128 * 2,
    "qwen3_30b.json": 48 * 2 * 4 * 128 * 2,
    "qwen3_4b.json": 36 * 2 * 8 * 128 * 2,
    "qwen3_8b_fp8.json": 36 * 2 * 8 * 128 * 2,
}
# Layers that see everything, layers with a window, bytes a token in each, and the window.
PUBLISHED_WINDOWS = {
    "gemma3.json": (10, 52, 2 * 16 * 128 * 2, 1024),
    "gemma_2_9b.json": (21, 21, 2 * 8 * 256 * 4, 4096),
    "gpt_oss_20b.json": (12, 12, 2 * 8 * 64 * 2, 128),
    "llama4_scout_17b_16e.json": (12, 36, 2 * 8 * 128 * 2, 8192),
}
LONG = 100_000


@pytest.fixture
def published() -> Path:
    data = os.environ.get("UELLM_BENCH_DATA")
    if data is None:
        pytest.skip("UELLM_BENCH_DATA is not set")
    return Path(data) / "models"


def test_the_cache_of_published_models_is_exact(published: Path) -> None:
    files = {entry["file"] for entry in json.loads((published / "index.json").read_text())}
    assert files == set(PUBLISHED_KV_BYTES_PER_TOKEN)
    for file, per_token in PUBLISHED_KV_BYTES_PER_TOKEN.items():
        model = load_model_spec(published / file)
        assert model.kv_bytes(1) == per_token, file
        full, windowed, size, window = PUBLISHED_WINDOWS.get(file, (1, 0, per_token, 0))
        assert model.kv_bytes(LONG) == full * size * LONG + windowed * size * window, file


def test_the_weights_of_published_models_are_those_of_their_checkpoints(published: Path) -> None:
    index = json.loads((published / "index.json").read_text())
    known = {entry["file"]: entry["weight_bytes"] for entry in index if "weight_bytes" in entry}
    assert len(known) == 6
    for file, weight_bytes in known.items():
        model = load_model_spec(published / file)
        # A checkpoint may hold a buffer of some bytes; one in 4 bits also scales of scales.
        tolerance = 1e-8 if model.dtype_bytes == 2 else 1e-3
        assert model.weight_bytes == pytest.approx(weight_bytes, rel=tolerance), file


# --- Tokens --------------------------------------------------------------------------------------


def spread(*tokens: float) -> LengthEstimate:
    return LengthEstimate(tuple(tokens), "test")


def test_an_expected_length_is_the_area_under_the_quantiles() -> None:
    # Straight between 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99 and flat beyond:
    # 0.05·1 + 0.05·1.5 + 0.15·2.5 + 0.25·3.5 + 0.25·4.5 + 0.15·5.5 + 0.05·6.5 + 0.04·7.5 + 0.01·8
    estimate = spread(1, 2, 3, 4, 5, 6, 7, 8)
    assert expected_tokens(np.array([estimate.tokens])).tolist() == pytest.approx([4.03])


@given(st.lists(st.floats(1, 5000), min_size=8, max_size=8).map(sorted))
def test_an_expected_length_is_what_drawn_lengths_come_to(tokens: list[float]) -> None:
    estimate = spread(*tokens)
    drawn = np.mean([estimate.at((i + 0.5) / 4000) for i in range(4000)])
    (mean,) = expected_tokens(np.array([tokens]))
    assert mean == pytest.approx(drawn, rel=1e-2)
    assert tokens[0] <= mean * (1 + 1e-9)
    assert mean <= tokens[-1] * (1 + 1e-9)


def test_totals_count_every_answer_that_has_to_be_made() -> None:
    once = msgspec.structs.replace(
        profiled("a", prompt_tokens=7), output=spread(1, 2, 3, 4, 5, 6, 7, 8)
    )
    thrice = msgspec.structs.replace(profiled("b", prompt_tokens=5, output=10), rounds=3, copies=2)
    totals = token_totals([once, thrice])
    assert (totals.prompt, totals.longest_prompt) == (12, 7)
    assert (totals.output_p05, totals.output_p50, totals.output_p95) == (31, 34, 37)
    assert totals.output_expected == pytest.approx(34.03)


# --- Seconds -------------------------------------------------------------------------------------

# 1 s a step, 10 s a prompt token, 100 s a row, 1,000 s a cached token.
COUNTED_STEPS = StepTimes(1.0, 10.0, 100.0, 1000.0, Source.SPECIFIED)


def test_a_request_alone_takes_a_prefill_and_a_step_for_each_further_token() -> None:
    # Prefill of 2 tokens: 1 + 20 + 100. Answer of 3: two steps of 1 + 100, over 3 and 4 tokens.
    (each,) = time_needed([profiled("a", prompt_tokens=2, output=3)], COUNTED_STEPS, 1).requests
    assert (each.prefill_s, each.decode_s) == (121.0, 2 * 101.0 + 1000 * (3 + 4))


def test_answers_that_are_made_one_after_the_other_take_as_many_times_as_long() -> None:
    one = profiled("a", prompt_tokens=2, output=3)
    (alone,) = time_needed([one], COUNTED_STEPS, 1).requests
    (both,) = time_needed(
        [msgspec.structs.replace(one, rounds=2, copies=3)], COUNTED_STEPS, 1
    ).requests
    assert (both.prefill_s, both.decode_s) == (2 * alone.prefill_s, 2 * alone.decode_s)


def test_together_requests_share_the_steps_of_their_answers() -> None:
    # Steps of a second: prefills take 1 each, and 8 answers of 5 tokens 4 steps each: one by one
    # 40 s, four at a time 8 prefills and 8·4/4 steps.
    requests = [profiled(str(i), output=5) for i in range(8)]
    time = time_needed(requests, ONE_SECOND_STEPS, rows=4)
    assert (time.one_by_one_s, time.together_s) == (40.0, 16.0)
    assert time_needed(requests, ONE_SECOND_STEPS, rows=1).together_s == 40.0
    assert (time.rows, time.source) == (4, Source.ASSUMED)


def test_together_takes_no_less_than_the_longest_alone() -> None:
    requests = [profiled("long", output=100), profiled("short", output=1)]
    assert time_needed(requests, ONE_SECOND_STEPS, rows=50).together_s == 100.0


def requests_of_any_size() -> st.SearchStrategy[list[ProfiledRequest]]:
    one = st.builds(
        lambda prompt, output, rounds: msgspec.structs.replace(
            profiled("a", prompt_tokens=prompt, output=output), rounds=rounds
        ),
        st.integers(1, 1000),
        st.integers(1, 1000),
        st.integers(1, 3),
    )
    return st.lists(one, min_size=1, max_size=10)


@given(requests_of_any_size(), st.integers(1, 300))
def test_more_rows_never_take_longer_and_never_less_than_no_fixed_cost_at_all(
    requests: list[ProfiledRequest], rows: int
) -> None:
    steps = StepTimes(0.01, 1e-5, 1e-3, 1e-7, Source.ASSUMED)
    free = replace(steps, fixed_s=0.0)
    few, more = (time_needed(requests, steps, n).together_s for n in (rows, rows + 1))
    assert more <= few * (1 + 1e-9)
    assert time_needed(requests, free, 1).one_by_one_s <= more * (1 + 1e-9)


# --- Memory --------------------------------------------------------------------------------------


def test_a_batch_is_told_with_all_its_parts() -> None:
    stage = Stage("cpu", 0, 4, weight_bytes=1, kv_bytes=20, activation_bytes=300,
                  overhead_bytes=4000)  # fmt: skip
    batch = batch_memory(8, stage, fits=True)
    assert (batch.rows, batch.total_bytes, batch.fits) == (8, 4321, True)


def test_predicted_quantiles_are_rows_of_all_levels() -> None:
    quantiles = predicted_quantiles([profiled("a", output=3), profiled("b", output=5)])
    assert quantiles.shape == (2, len(QUANTILE_LEVELS))
    assert quantiles[:, 0].tolist() == [3, 5]
    assert predicted_quantiles([]).shape == (0, len(QUANTILE_LEVELS))
