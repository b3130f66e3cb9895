"""What a model is, from its config and its safetensors headers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uellm_cli.errors import ModelError
from uellm_cli.models.spec import load_model_spec
from uellm_cli.types import ModelSpec, Source

# A LLaMA whose weights can be counted by hand. With h = 64, 8 heads of 8, 2 KV heads, MLP 100:
# attention 64·64 + 2·64·16 + 64·64 = 10,240; MLP 3·64·100 = 19,200; two norms of 64;
# a layer has 29,568 weights, the embedding 1,000·64 = 64,000, the head as many.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 100,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
LAYER = 29_568
ATTENTION = 10_240
MLP = 19_200

ReadConfig = Callable[..., ModelSpec]


@pytest.fixture
def read(tmp_path: Path) -> ReadConfig:
    """Reads a config: LLaMA's with some fields changed, those set to None left out."""

    def read_config(**changes: object) -> ModelSpec:
        config = {key: value for key, value in (LLAMA | changes).items() if value is not None}
        file = tmp_path / "toy.json"
        file.write_text(json.dumps(config))
        return load_model_spec(file)

    return read_config


def write_safetensors(file: Path, sizes: dict[str, int]) -> None:
    """A safetensors file whose tensors have these bytes; the data itself is a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + begin)


# --- Weights from the config ---------------------------------------------------------------------


def test_llama_weights_are_counted_exactly(read: ReadConfig) -> None:
    model = read()
    assert [layer.weight_bytes for layer in model.layers] == [2 * LAYER] * 4
    assert model.embedding_bytes == model.head_bytes == 2 * 64_000
    assert model.norm_bytes == 2 * 64
    assert model.weight_bytes == 2 * (4 * LAYER + 2 * 64_000 + 64)
    assert model.weight_source is Source.SPECIFIED
    assert (model.name, model.architecture) == ("toy", "LlamaForCausalLM")
    assert (model.context_tokens, model.num_kv_heads, model.is_moe) == (512, 2, False)


def test_a_tied_head_is_counted_once(read: ReadConfig) -> None:
    assert read(tie_word_embeddings=True).head_bytes == 0
    assert read(model_type="gemma", tie_word_embeddings=None).head_bytes == 0
    assert read(model_type="llama", tie_word_embeddings=None).head_bytes == 128_000


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        # Qwen2: a bias of 64 + 2·16 on q, k, v.
        ({"model_type": "qwen2"}, LAYER + 96),
        # Qwen3: norms of 8 on queries and keys.
        ({"model_type": "qwen3"}, LAYER + 16),
        # Gemma 2: four norms instead of two.
        ({"model_type": "gemma2"}, LAYER + 128),
        # Biases on all linears: q, k, v 96, o 64, gate and up 2·100, down 64.
        ({"attention_bias": True, "mlp_bias": True}, LAYER + 96 + 64 + 264),
        # An explicit head size: 8 heads of 16 with 2 KV heads of 16.
        ({"head_dim": 16}, LAYER - ATTENTION + 64 * 128 + 64 * 64 + 128 * 64),
        # GPT-NeoX: no gate, biases everywhere, norms with a bias.
        ({"model_type": "gpt_neox"}, ATTENTION + 160 + 2 * 64 * 100 + 164 + 4 * 64),
    ],
    ids=["qwen2", "qwen3", "gemma2", "biases", "head_dim", "gpt_neox"],
)
def test_families_differ_from_llama_in_what_they_store(
    read: ReadConfig, changes: dict[str, object], weights: int
) -> None:
    assert read(**changes).layers[0].weight_bytes == 2 * weights


def test_other_names_of_the_fields_are_understood(tmp_path: Path) -> None:
    # GPT-2: MLP of 4·64 without a gate, biases, learned positions, tied head.
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 512}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(gpt2 | {"vocab_size": 1000, "dtype": "float32"}))
    model = load_model_spec(file)
    layer = 4 * 64 * 64 + 2 * 64 * 256 + (3 * 64 + 64) + (256 + 64) + 4 * 64
    assert [part.weight_bytes for part in model.layers] == [4 * layer] * 2
    assert model.embedding_bytes == 4 * (1000 + 512) * 64
    assert model.head_bytes == 0
    assert model.layers[0].kv_bytes_per_token == 2 * 64 * 4


def test_chatglms_names_are_understood(read: ReadConfig) -> None:
    names = {
        "num_layers": 4, "num_hidden_layers": None, "ffn_hidden_size": 100,
        "intermediate_size": None, "multi_query_group_num": 2, "num_key_value_heads": None,
        "multi_query_attention": True, "kv_channels": 8, "padded_vocab_size": 1000,
        "vocab_size": None, "seq_length": 512, "max_position_embeddings": None,
        "add_qkv_bias": True, "model_type": "chatglm",
    }  # fmt: skip
    model = read(**names)
    assert model.layers[0].weight_bytes == 2 * (LAYER + 96)
    assert (model.num_kv_heads, model.context_tokens) == (2, 512)


def test_falcon_shares_one_kv_head_in_its_old_form_only(read: ReadConfig) -> None:
    old = read(model_type="falcon", multi_query=True, num_key_value_heads=None, parallel_attn=True)
    assert old.num_kv_heads == 1
    new = read(model_type="falcon", multi_query=True, new_decoder_architecture=True)
    assert new.num_kv_heads == 2


def test_a_nested_text_config_is_the_model_and_a_vision_tower_makes_it_assumed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.json"
    outer = {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 9}}
    file.write_text(json.dumps(outer))
    model = load_model_spec(file)
    assert len(model.layers) == 4
    assert model.weight_source is Source.ASSUMED


def test_an_unknown_family_is_computed_as_llama_and_marked(read: ReadConfig) -> None:
    model = read(model_type="brand_new", architectures=["BrandNew"])
    assert model.layers[0].weight_bytes == 2 * LAYER
    assert model.weight_source is Source.ASSUMED


# --- Mixtures of experts -------------------------------------------------------------------------


def test_mixtral_reads_only_the_experts_of_a_token(read: ReadConfig) -> None:
    model = read(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    rest = ATTENTION + 128 + 64 * 8
    assert model.layers[0].weight_bytes == 2 * (rest + 8 * MLP)
    assert model.layers[0].active_bytes == 2 * (rest + 2 * MLP)
    assert model.is_moe


def test_deepseeks_first_layers_are_dense_and_its_shared_experts_always_read(
    read: ReadConfig,
) -> None:
    model = read(
        model_type="deepseek_v3",
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        moe_intermediate_size=10,
        first_k_dense_replace=1,
    )
    expert = 3 * 64 * 10
    assert model.layers[0].weight_bytes == 2 * LAYER
    assert model.layers[1].weight_bytes == 2 * (ATTENTION + 128 + 64 * 16 + 17 * expert)
    assert model.layers[1].active_bytes == 2 * (ATTENTION + 128 + 64 * 16 + 5 * expert)


def test_qwen_says_which_layers_have_experts(read: ReadConfig) -> None:
    model = read(
        model_type="qwen3_moe",
        num_experts=4,
        num_experts_per_tok=1,
        moe_intermediate_size=100,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    sparse = [layer.active_bytes < layer.weight_bytes for layer in model.layers]
    assert sparse == [False, True, False, False]


# --- KV cache ------------------------------------------------------------------------------------


def test_kv_is_two_vectors_for_each_kv_head(read: ReadConfig) -> None:
    # 2 heads · (8 + 8) · 2 bytes.
    assert read().layers[0].kv_bytes_per_token == 64
    assert read(num_key_value_heads=None).layers[0].kv_bytes_per_token == 256
    assert read(dtype="float32").layers[0].kv_bytes_per_token == 128
    assert read().kv_bytes(10) == 4 * 64 * 10


def test_latent_attention_keeps_one_vector_for_all_heads(read: ReadConfig) -> None:
    model = read(
        model_type="deepseek_v3",
        kv_lora_rank=32,
        q_lora_rank=48,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    assert model.layers[0].kv_bytes_per_token == (32 + 4) * 2
    query = 64 * 48 + 48 * 8 * 12
    key_value = 64 * 36 + 32 * 8 * 16
    output = 8 * 8 * 64
    assert model.layers[0].weight_bytes == 2 * (query + key_value + output + 80 + MLP + 128)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [None] * 4),
        ({"sliding_window": 16}, [None] * 4),
        ({"model_type": "mistral", "sliding_window": 16}, [16] * 4),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 4),
        ({"model_type": "gemma2", "sliding_window": 16}, [16, None, 16, None]),
        ({"model_type": "gemma3_text", "sliding_window": 16}, [16] * 4),
        (
            {"model_type": "gemma3_text", "sliding_window": 16, "sliding_window_pattern": 3},
            [16, 16, None, 16],
        ),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False}, [None] * 4),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 16,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            [None, None, None, 16],
        ),
        (
            {
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [16, None, 16, None],
        ),
        ({"model_type": "llama4_text", "attention_chunk_size": 8}, [8, 8, 8, None]),
    ],
)
def test_windows_are_where_the_family_has_them(
    read: ReadConfig, changes: dict[str, object], windows: list[int | None]
) -> None:
    assert [layer.kv_window_tokens for layer in read(**changes).layers] == windows


# --- Quantised checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_use_double_quant": True,
            },
            4 + 8.125 / 64,
        ),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "mxfp4"}, 4.25),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}},
            },
            8,
        ),
    ],
)
def test_linear_weights_take_their_stored_bits(
    read: ReadConfig, quantization: dict[str, object], bits: float
) -> None:
    model = read(quantization_config=quantization)
    expected = (ATTENTION + MLP) * bits / 8 + 2 * 128
    assert model.layers[0].weight_bytes == pytest.approx(expected, abs=1)
    assert model.embedding_bytes == 128_000
    # Keys and values are computed in 16 bits all the same.
    assert model.layers[0].kv_bytes_per_token == 64
    assert model.dtype_bytes == pytest.approx(expected / LAYER, rel=1e-3)


def test_attention_can_be_left_out_of_quantisation(read: ReadConfig) -> None:
    declared = {
        "quant_method": "fp8",
        "modules_to_not_convert": ["model.layers.0.self_attn.q_proj"],
    }
    expected = 2 * ATTENTION + MLP + 2 * 128
    assert read(quantization_config=declared).layers[0].weight_bytes == expected


# --- Safetensors headers -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 2}))
    return model


def test_stored_bytes_beat_counted_ones(folder: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": 500,
        "model.layers.0.self_attn.q_proj.weight": 100,
        "model.layers.0.input_layernorm.weight": 1,
        "model.layers.1.mlp.down_proj.weight": 70,
        "model.norm.weight": 9,
        "lm_head.weight": 400,
        "vision_tower.layers.0.norm.weight": 30,
    }
    write_safetensors(folder / "model.safetensors", tensors)
    model = load_model_spec(folder)
    assert [layer.weight_bytes for layer in model.layers] == [101, 70]
    assert (model.embedding_bytes, model.head_bytes, model.norm_bytes) == (530, 400, 9)
    assert model.weight_bytes == sum(tensors.values())
    assert model.weight_source is Source.MEASURED
    assert model.name == "my-model"


def test_shards_are_added_up_and_missing_ones_leave_the_config(folder: Path) -> None:
    parts = {"one.safetensors": "model.layers.0.w", "two.safetensors": "model.layers.1.w"}
    index = {"weight_map": {tensor: part for part, tensor in parts.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(folder / "one.safetensors", {"model.layers.0.w": 10})
    assert load_model_spec(folder).weight_source is Source.SPECIFIED
    write_safetensors(folder / "two.safetensors", {"model.layers.1.w": 20})
    assert [layer.weight_bytes for layer in load_model_spec(folder).layers] == [10, 20]


def test_a_bare_config_ignores_weights_beside_it(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"model.layers.0.w": 10})
    assert load_model_spec(folder / "config.json").weight_source is Source.SPECIFIED


def test_a_layer_without_tensors_is_an_error(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"model.layers.0.w": 10})
    with pytest.raises(ModelError, match=r"2 layers.*no tensor of layer 1"):
        load_model_spec(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (4).to_bytes(8, "little") + b"null",
        (4).to_bytes(8, "little") + b"{{{{",
        (20).to_bytes(8, "little") + b'{"a": {"b": "c"}   }',
        (29).to_bytes(8, "little") + b'{"a": {"data_offsets":[9,1]}}',
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_file(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model_spec(folder)


def test_a_damaged_index_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="index"):
        load_model_spec(folder)


# --- What cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    ["num_attention_heads", "hidden_size", "max_position_embeddings", "vocab_size"],
)
def test_a_missing_field_is_named_with_its_file(read: ReadConfig, field: str) -> None:
    with pytest.raises(ModelError, match=rf"toy\.json.*'{field}'|toy\.json.*'padded_vocab_size'"):
        read(**{field: None, "model_type": "unknown"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 10**9}, "more than any model has"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be"),
        ({"dtype": "int3"}, "dtype 'int3' is not known"),
        ({"layer_types": ["full_attention"]}, "lists 1 layers"),
        ({"layer_types": ["linear_attention"] * 4}, "'linear_attention' is not known"),
        ({"quantization_config": {"quant_method": "magic"}}, "'magic' is not known"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "num_bits"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_reason(
    read: ReadConfig, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        read(**changes)


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model_spec(file)


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/model", "~/nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(model: str) -> None:
    with pytest.raises(ModelError, match="there is no model folder or file"):
        load_model_spec(model)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(ModelError, match="empty"):
        load_model_spec("")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model_spec(tmp_path)


def test_a_hub_id_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def not_cached(*_args: object, **_options: object) -> str:
        raise LocalEntryNotFoundError("not cached")

    def unreachable(_url: str) -> None:
        raise ConnectionError("the Hub is unreachable\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_cached)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(ModelError, match=r"'some/model'.*the Hub is unreachable$"):
        load_model_spec("some/model")


def test_a_hub_id_is_read_from_the_local_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(model: str, file: str, **_options: object) -> str:
        assert model == "some/model"
        return str(folder / file)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert load_model_spec("some/model").name == "some/model"


# --- Real configs, where they are ----------------------------------------------------------------


def test_weights_of_published_models_are_within_half_a_percent() -> None:
    data = os.environ.get("UELLM_BENCH_DATA")
    if data is None:
        pytest.skip("UELLM_BENCH_DATA is not set")
    models = Path(data) / "models"
    known = [e for e in json.loads((models / "index.json").read_text()) if "weight_bytes" in e]
    for entry in known:
        model = load_model_spec(models / entry["file"])
        # Some quantised formats store more than their bits, such as scales for each row.
        tolerance = 0.02 if model.dtype_bytes < 2 else 0.005
        assert model.weight_bytes == pytest.approx(entry["weight_bytes"], rel=tolerance)
