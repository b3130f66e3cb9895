"""Answers that follow a JSON Schema."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from tokenizers import decoders
from transformers import AutoTokenizer

from tests.unit.engine_cases import (
    HOT,
    REAL_ENGINES,
    RealEngine,
    answers,
    each_engine,
    model_work,
    real_engine,
    texts,
)
from uellm_cli.engines.grammar import KEPT_SCHEMAS, Grammar, Grammars
from uellm_cli.types import Completion, EngineRequest, FinishReason, SamplingParams

GREEDY = SamplingParams()
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=REAL_ENGINES)
def engine(request: pytest.FixtureRequest, tiny_llm: str) -> RealEngine:
    return real_engine(request.param, tiny_llm)


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    return model_work(tiny_llm)


def following(
    request: EngineRequest, schema: object, sampling: SamplingParams = GREEDY
) -> EngineRequest:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return replace(request, sampling=replace(sampling, json_schema=text), max_tokens=300)


@pytest.mark.parametrize("sampling", [SamplingParams(), replace(HOT, n=3)])
def test_every_answer_follows_its_schema_and_ends_with_it(
    sampling: SamplingParams, engine: RealEngine, work: list[EngineRequest]
) -> None:
    found = answers(engine, [work[0], following(work[1], PERSON, sampling), work[3]])
    for answer in found["1"].answers:
        made = json.loads(answer.text)
        assert list(made) == ["name", "age", "kind"]
        assert len(made["name"]) <= 8
        assert 0 <= made["age"] <= 150
        assert made["kind"] in ("cat", "dog")
        assert answer.finish_reason is FinishReason.STOP
    assert len(found["1"].answers) == sampling.n
    for i in (0, 3):
        assert texts(found[str(i)]) == texts(answers(engine, [work[i]])[str(i)])


def test_a_whole_answer_ends_at_once_without_an_end_token(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    request = following(work[0], {"const": 7}, SamplingParams(logprobs=0))
    (answer,) = answers(engine, [request])["0"].answers
    assert (answer.text, answer.output_tokens) == ("7", 1)
    assert answer.finish_reason is FinishReason.STOP
    assert [token.token for token in answer.logprobs or ()] == ["7"]
    # Whole at the very token that the cap allows is whole, and not cut.
    (capped,) = answers(engine, [replace(request, max_tokens=1)])["0"].answers
    assert capped.finish_reason is FinishReason.STOP


def test_an_answer_that_its_cap_cuts_has_length_as_its_reason(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    request = replace(following(work[0], PERSON), max_tokens=3)
    (answer,) = answers(engine, [request])["0"].answers
    assert (answer.output_tokens, answer.finish_reason) == (3, FinishReason.LENGTH)


@each_engine
@pytest.mark.parametrize("end_token", ["<|end|>", "<|user|>"])
def test_each_of_a_model_s_end_tokens_may_end_an_answer_that_could_go_on(
    name: str, end_token: str, work: list[EngineRequest], tiny_llm: str, tmp_path: Path
) -> None:
    ids = AutoTokenizer.from_pretrained(tiny_llm).convert_tokens_to_ids(["<|end|>", "<|user|>"])
    shutil.copytree(tiny_llm, tmp_path / "model")
    config = tmp_path / "model" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": ids}))
    engine = real_engine(name, str(tmp_path / "model"))
    # An integer may always have one digit more: only an end token ends it.
    names = {"<|end|>": -10_000.0, "<|user|>": -10_000.0} | {end_token: 10_000.0}
    biases = zip(ids, names.values(), strict=True)
    likely = SamplingParams(logit_bias=tuple(biases))
    (answer,) = answers(engine, [following(work[0], {"type": "integer"}, likely)])["0"].answers
    assert answer.finish_reason is FinishReason.STOP
    assert answer.text.removeprefix("-").isdigit()
    assert answer.output_tokens == 2


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "banana"}',
        '{"type": "string", "pattern": "("}',
        '{"type": "string", "pattern": "^(?=a)b$"}',
        '{"$ref": "http://example.com/schema"}',
        '{"type": "array", "uniqueItems": true}',
        "false",
        "[]",
        "no schema",
        '{"$ref": "#"}',
    ],
)
def test_a_schema_that_nothing_can_follow_fails_its_own_request_only(
    schema: str, engine: RealEngine, work: list[EngineRequest]
) -> None:
    found = answers(engine, [work[0], following(work[1], schema), following(work[2], PERSON)])
    refused(found["1"])
    assert texts(found["0"]) == texts(answers(engine, [work[0]])["0"])
    assert json.loads(texts(found["2"])[0])


def refused(completion: Completion) -> None:
    failure = completion.failure
    assert failure is not None
    assert (failure.code, failure.field) == ("invalid_request", "response_format")
    assert "\n" not in failure.message
    assert failure.message.startswith("no answer can be made to follow this schema: ")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a{1000}){1000}$"},
        {"type": "string", "pattern": r"^(\w{0,900}\d{0,900}\w{0,900}){900}$"},
        {"enum": [f"x{i}" for i in range(200_000)]},
        {
            "allOf": [
                {"anyOf": [{"required": [f"p{i}"]}, {"required": [f"q{i}"]}]} for i in range(30)
            ]
        },
        '{"items":' * 20_000 + "{}" + "}" * 20_000,
    ],
    ids=["counted", "ambiguous", "many", "combined", "deep"],
)
def test_a_schema_of_any_cost_is_answered_or_refused_soon(
    schema: Any, engine: RealEngine, work: list[EngineRequest]
) -> None:
    began_s = time.monotonic()
    found = answers(engine, [work[0], following(work[1], schema)])
    assert time.monotonic() - began_s < 30
    refused(found["1"])
    assert found["0"].failure is None


def test_white_space_has_an_end_even_where_a_model_wants_nothing_else(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    spaces = [engine.loaded.tokenizer.encode(text)[0] for text in (" ", "\n")]
    endless = SamplingParams(logit_bias=tuple((space, 10_000.0) for space in spaces))
    (answer,) = answers(engine, [following(work[0], PERSON, endless)])["0"].answers
    assert answer.finish_reason is FinishReason.STOP
    assert json.loads(answer.text)["kind"] in ("cat", "dog")


def test_scores_beyond_the_tokenizer_s_vocabulary_are_never_allowed(engine: RealEngine) -> None:
    grammars = Grammars(engine.loaded.tokenizer, eos_ids=[2])
    compiled = grammars.compiled('{"type": "integer"}')
    assert isinstance(compiled, Grammar)
    narrow, wide = (compiled.fresh().allowed(width) for width in (1739, 5000))
    assert isinstance(narrow, torch.Tensor)
    assert isinstance(wide, torch.Tensor)
    assert narrow.any()
    assert wide.shape == (5000,)
    assert torch.equal(wide[:1739], narrow)
    assert not wide[1739:].any()


def test_an_end_token_beyond_the_tokenizer_s_vocabulary_leaves_the_others(
    engine: RealEngine,
) -> None:
    compiled = Grammars(engine.loaded.tokenizer, [2, 1800]).compiled('{"type": "integer"}')
    assert isinstance(compiled, Grammar)
    (digit,) = engine.loaded.tokenizer.encode("7")
    assert not compiled.completes(digit)
    allowed = compiled.allowed(2000)
    assert isinstance(allowed, torch.Tensor)
    assert allowed[2]
    assert not allowed[1739:].any()


@each_engine
def test_a_tokenizer_that_cannot_be_constrained_fails_the_request_and_says_so(
    name: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = real_engine(name, tiny_llm)
    engine.loaded.tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    found = answers(engine, [following(work[0], PERSON), work[2]])
    failure = found["0"].failure
    assert failure is not None
    assert (failure.code, failure.field) == ("invalid_request", "response_format")
    assert failure.message.startswith("answers of this model cannot be made to follow a schema: ")
    assert found["2"].failure is None


@each_engine
def test_a_tokenizer_is_prepared_once_and_only_when_a_schema_comes(
    name: str, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance.hf

    prepared: list[object] = []
    from_tokenizer = llguidance.hf.from_tokenizer

    def counted(tokenizer: Any, **options: Any) -> object:
        prepared.append(tokenizer)
        return from_tokenizer(tokenizer, **options)

    monkeypatch.setattr(llguidance.hf, "from_tokenizer", counted)
    engine = real_engine(name, tiny_llm)
    answers(engine, [work[0]])
    assert prepared == []
    for number in range(KEPT_SCHEMAS + 2):
        request = following(work[0], {"const": number})
        assert texts(answers(engine, [request])["0"]) == [str(number)]
    assert len(prepared) == 1


@each_engine
def test_a_model_that_rules_out_what_the_schema_wants_fails_that_request_only(
    name: str, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = real_engine(name, tiny_llm)
    (seven,) = engine.loaded.tokenizer.encode("7")
    forward = engine.loaded.model.forward

    def without_seven(*positional: Any, **named: Any) -> Any:
        outputs = forward(*positional, **named)
        outputs.logits[..., seven] = float("-inf")
        return outputs

    monkeypatch.setattr(engine.loaded.model, "forward", without_seven)
    found = answers(engine, [following(work[0], {"const": 7}), following(work[1], {"const": 8})])
    assert found["0"].failure is not None
    assert found["0"].failure.code == "engine_error"
    assert "rules out" in found["0"].failure.message
    assert texts(found["1"]) == ["8"]
