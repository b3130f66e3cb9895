"""Small models of other families with random weights, through the front door.

What they answer is noise; that they load by the exported device map, stop at their caps and give
`generate`'s own tokens is not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from uellm_cli.models.spec import load_model_spec
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.types import Endpoint, Request

SMALL: dict[str, object] = {
    "vocab_size": 2000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
COMMON: dict[str, object] = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED: dict[str, object] = {**COMMON, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 16},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 16},
    "phi3": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": COMMON,
    "gpt2": {**SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "opt": {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32},
}


@pytest.fixture
def make_model(tiny_llm: str, tmp_path: Path) -> Callable[[str], Path]:
    """A folder with a seeded random model of a family, and the bundled tokenizer without chats."""

    def make(family: str) -> Path:
        folder = tmp_path / family
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **FAMILIES[family])
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.do_sample = False
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(tiny_llm) / name, folder / name)
        return folder

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_is_placed_loaded_and_answers_as_generate_does(
    family: str, make_model: Callable[[str], Path], uellm: Callable[..., int], tmp_path: Path
) -> None:
    folder = make_model(family)
    prompts = {"a": "Count from 3 to 9", "b": "spell", "c": "Is 12 greater than 5, or is it not?"}
    requests = tmp_path / "requests.jsonl"
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt, "max_tokens": 6},
        }
        for name, prompt in prompts.items()
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # One at a time: padding moves a random model's near-ties.
    options = ("--scheduler", "fifo", "--max-batch", 1)
    assert uellm("run", requests, "--model", folder, *options, "-o", tmp_path / "run") == 0

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = map(json.loads, (tmp_path / "run" / "results.jsonl").read_text().splitlines())
    answers = {row["custom_id"]: row["response"]["body"]["choices"][0]["text"] for row in rows}
    # Not AutoTokenizer's ids: for some families it rebuilds the tokenizer and ignores the file.
    encode = load_tokenizer(str(folder)).encode
    for name, prompt in prompts.items():
        ids = torch.tensor(encode([Request(name, Endpoint.COMPLETION, prompt=prompt)]))
        made = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answers[name] == tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_bytes_from_the_config_alone_equal_those_of_the_file(
    family: str, make_model: Callable[[str], Path]
) -> None:
    folder = make_model(family)
    exact = load_model_spec(folder)
    from_config = load_model_spec(folder / "config.json")
    assert exact.weight_source == "measured"
    assert exact.weight_bytes == sum(
        path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
        for path in folder.glob("*.safetensors")
    )
    assert from_config.weight_bytes == pytest.approx(exact.weight_bytes, rel=0.01)
    assert len(from_config.layers) == len(exact.layers) == 3
