"""The bundled model: what it was promised to do, on prompts that its training never saw."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sample_data.make.evaluate import exact_match
from sample_data.make.requests import build
from sample_data.make.tasks import (
    TASKS,
    completion_prompt,
    held_out,
    is_held_out,
    sample_for_training,
)
from tests.conftest import REPOSITORY

SAMPLES = REPOSITORY / "sample_data"
MODEL = SAMPLES / "tiny-llm"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chat", "completion"])
def test_nine_in_ten_unseen_prompts_are_answered_to_the_letter(form: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    # Another seed than the one that the recorded figures were measured with.
    shares = exact_match(model, tokenizer, held_out(240, seed=77), form)  # type: ignore[arg-type]
    assert shares["overall"] >= 0.9, shares
    assert min(shares.values()) >= 0.6, shares


def test_training_never_draws_a_prompt_that_is_held_out() -> None:
    rng = Random(5)
    assert not any(is_held_out(sample_for_training(rng).prompt) for _ in range(5000))
    assert all(is_held_out(example.prompt) for example in held_out(50, seed=3))


def test_the_sample_requests_are_what_the_script_makes_and_were_never_trained_on() -> None:
    lines = [json.loads(line) for line in (SAMPLES / "requests.jsonl").read_text().splitlines()]
    assert lines == build()
    for line in lines:
        body = line.get("body", line)
        if "url" in line and line["url"].endswith("completions") and "prompt" in body:
            continue  # a raw prompt has lost the marks that the hash is of: see the next test
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        assert is_held_out(prompt)


def test_a_raw_prompt_keeps_its_place_among_the_held_out() -> None:
    for example in held_out(100, seed=4):
        assert is_held_out(completion_prompt(example.prompt))


def test_answers_run_from_one_token_to_a_heavy_tail() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    lengths = sorted(len(tokenizer.encode(e.answer).ids) + 1 for e in held_out(800, seed=9))
    assert lengths[0] <= 3
    assert lengths[400] < 40
    assert lengths[-1] > 250
    assert len(TASKS) >= 10


@given(text=st.text())
def test_the_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_model_s_folder_is_small_and_says_how_it_was_made() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    figures = json.loads((MODEL / "training.json").read_text())
    assert figures
    card = (MODEL / "README.md").read_text()
    assert "python -m sample_data.make.train" in card
