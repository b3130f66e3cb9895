from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ValidationError

from uellm_cli.executor.openai_rows import OpenAIRows
from uellm_cli.executor.results import refused
from uellm_cli.types import (
    Answer,
    Blame,
    Endpoint,
    Failure,
    FinishReason,
    InvalidRequest,
    RequestTiming,
    Result,
    RunInfo,
    SourceLine,
    TokenLogprob,
)

INFO = RunInfo(
    run_id="run",
    command=("uellm",),
    started=datetime(2026, 1, 1, tzinfo=UTC),
    model="tiny",
    model_fingerprint="",
    bundled_model=True,
    engine="static",
    scheduler="fifo",
    seed=0,
    versions={},
    machine={},
    inputs={},
    settings={},
)
ANSWERED = Result(
    custom_id="a",
    slo_class="default",
    batch_id=0,
    prompt_tokens=3,
    predicted_tokens_p50=5.0,
    predicted_tokens_p90=9.0,
    output_tokens=2,
    kv_bytes=5,
    deadline_s=60.0,
    arrival_s=0.0,
    blame=Blame.NONE,
    endpoint=Endpoint.CHAT,
    timing=RequestTiming(0.0, 1.0, 1.5, 2.5),
    answers=(Answer("hello", 2, FinishReason.STOP),),
    finish_reason=FinishReason.STOP,
)


def output_row(result: Result, info: RunInfo) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(OpenAIRows(info).output_row(result))
    return row


def error_row(result: Result, info: RunInfo) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(OpenAIRows(info).error_row(result))
    return row


# "hé😀" in five tokens, of which the emoji takes two, and a special one.
TOLD = (
    TokenLogprob("h", -0.1, b"h", (TokenLogprob("h", -0.1, b"h"), TokenLogprob("H", -3.0, b"H"))),
    TokenLogprob("é", -2.0, "é".encode(), (TokenLogprob("e", -0.5, b"e"),)),
    TokenLogprob("\\xf0\\x9f", -0.25, b"\xf0\x9f"),
    TokenLogprob("\\x98\\x80", 0.0, b"\x98\x80"),
    TokenLogprob("<|user|>", -9999.0, b""),
)
CHOICES = replace(
    ANSWERED,
    answers=(
        Answer("hé😀", 6, FinishReason.STOP, TOLD),
        Answer("", 1, FinishReason.STOP, ()),
        Answer("hello", 2, FinishReason.LENGTH),
    ),
    output_tokens=9,
)


def body(result: Result, endpoint: Endpoint = Endpoint.CHAT, info: RunInfo = INFO) -> Any:
    """A row's body, as a reader of the file gets it."""
    row = msgspec.json.encode(output_row(replace(result, endpoint=endpoint), info))
    return json.loads(row)["response"]["body"]


def test_a_chat_answer_has_the_shape_of_openai_s_batch_output() -> None:
    row = output_row(ANSWERED, INFO)
    assert set(row) == {"id", "custom_id", "response", "error"}
    assert (row["custom_id"], row["error"]) == ("a", None)
    assert set(row["response"]) == {"status_code", "request_id", "body"}
    assert row["response"]["status_code"] == 200
    made = row["response"]["body"]
    assert made["object"] == "chat.completion"
    assert made["model"] == "tiny"
    assert made["created"] == int(INFO.started.timestamp()) + 2
    (choice,) = made["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    assert made["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_completion_answer_carries_text_and_no_message() -> None:
    made = body(ANSWERED, Endpoint.COMPLETION)
    assert made["object"] == "text_completion"
    (choice,) = made["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert choice["text"] == "hello"


SHAPES: list[tuple[Endpoint, type[BaseModel]]] = [
    (Endpoint.CHAT, ChatCompletion),
    (Endpoint.COMPLETION, Completion),
]


@pytest.mark.parametrize(("endpoint", "shape"), SHAPES)
@pytest.mark.parametrize("result", [ANSWERED, CHOICES], ids=["simple", "several"])
def test_openai_s_own_types_read_a_body_strictly_and_lose_nothing(
    result: Result, endpoint: Endpoint, shape: type[BaseModel]
) -> None:
    made = body(result, endpoint)
    read = shape.model_validate_json(json.dumps(made), strict=True)
    # These types take unknown fields without a word: nothing of ours may be one.
    assert list(unknown_fields(read)) == []
    assert read.model_dump(mode="json", exclude_unset=True) == made


@pytest.mark.parametrize(("endpoint", "shape"), SHAPES)
def test_a_body_without_one_of_its_fields_is_refused_by_openai_s_types(
    endpoint: Endpoint, shape: type[BaseModel]
) -> None:
    made = body(CHOICES, endpoint)
    for name in made:
        missing = {key: value for key, value in made.items() if key != name}
        if name == "usage":
            continue  # optional there, and always given here
        with pytest.raises(ValidationError):
            shape.model_validate_json(json.dumps(missing), strict=True)


def unknown_fields(model: BaseModel) -> Iterator[str]:
    yield from model.model_extra or {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, BaseModel):
                yield from unknown_fields(item)


def test_each_answer_is_a_choice_with_its_index_and_reason() -> None:
    for endpoint in (Endpoint.CHAT, Endpoint.COMPLETION):
        made = body(CHOICES, endpoint)
        assert [choice["index"] for choice in made["choices"]] == [0, 1, 2]
        assert [c["finish_reason"] for c in made["choices"]] == ["stop", "stop", "length"]
        assert made["usage"]["completion_tokens"] == 9


def test_a_chat_s_logprobs_are_tokens_with_bytes_and_alternatives() -> None:
    first, second, third = body(CHOICES)["choices"]
    assert set(first["logprobs"]) == {"content", "refusal"}
    assert first["logprobs"]["refusal"] is None
    content = first["logprobs"]["content"]
    assert content[0] == {
        "token": "h",
        "logprob": -0.1,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.1, "bytes": [104]},
            {"token": "H", "logprob": -3.0, "bytes": [72]},
        ],
    }
    assert (content[2]["token"], content[2]["bytes"]) == ("\\xf0\\x9f", [0xF0, 0x9F])
    assert (content[4]["token"], content[4]["bytes"]) == ("<|user|>", None)
    joined = bytes(byte for token in content for byte in token["bytes"] or [])
    assert joined.decode() == first["message"]["content"]
    assert second["logprobs"] == {"content": [], "refusal": None}
    assert third["logprobs"] is None


def test_a_completion_s_logprobs_are_parallel_lists() -> None:
    first, second, third = body(CHOICES, Endpoint.COMPLETION)["choices"]
    assert first["logprobs"] == {
        "tokens": ["h", "é", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "<|user|>"],
        "token_logprobs": [-0.1, -2.0, -0.25, 0.0, -9999.0],
        "top_logprobs": [
            {"h": -0.1, "H": -3.0},
            {"e": -0.5, "é": -2.0},  # the one that was drawn is always among them
            {"bytes:\\xf0\\x9f": -0.25},
            {"bytes:\\x98\\x80": 0.0},
            {"<|user|>": -9999.0},
        ],
        # In characters; the second half of the emoji is where the emoji is.
        "text_offset": [0, 1, 2, 2, 3],
    }
    assert second["logprobs"] == {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    assert third["logprobs"] is None


def test_a_simulated_answer_says_so_in_its_model() -> None:
    info = dataclasses.replace(INFO, simulated=True)
    assert body(ANSWERED, info=info)["model"] == "simulated:tiny"


def test_a_row_s_id_stays_the_same_when_it_is_written_again() -> None:
    assert output_row(ANSWERED, INFO) == output_row(ANSWERED, INFO)
    # A line that has moved, or a run that was resumed, makes no other row of it.
    moved = replace(ANSWERED, source=SourceLine("in.jsonl", 2))
    assert output_row(moved, INFO) == output_row(ANSWERED, INFO)
    ids = [
        output_row(ANSWERED, INFO)["id"],
        output_row(replace(ANSWERED, custom_id="b"), INFO)["id"],
        output_row(ANSWERED, dataclasses.replace(INFO, run_id="other"))["id"],
    ]
    assert len(set(ids)) == 3


def test_a_long_id_is_repeated_in_the_row_s_own_ids_by_its_hash() -> None:
    longest = ["x" * 512, "x" * 511 + "y"]
    rows = [output_row(replace(ANSWERED, custom_id=name), INFO) for name in longest]
    assert [row["custom_id"] for row in rows] == longest
    assert len({row["id"] for row in rows}) == 2
    assert max(len(row["id"]) for row in rows) < 100


def test_an_invalid_line_s_row_names_file_line_field_and_reason() -> None:
    invalid = InvalidRequest(SourceLine("in.jsonl", 7), "body.messages", "is missing")
    row = error_row(refused(invalid), INFO)
    assert row["response"] is None
    assert row["custom_id"] is None
    assert row["error"] == {
        "code": "invalid_request",
        "message": "is missing",
        "field": "body.messages",
        "file": "in.jsonl",
        "line": 7,
    }


@pytest.mark.parametrize("code", ["engine_error", "context_length_exceeded", "batch_expired"])
def test_a_failed_request_s_row_carries_its_code_and_message(code: str) -> None:
    failed = replace(ANSWERED, failure=Failure(code, "broken"))
    assert error_row(failed, INFO)["error"] == {"code": code, "message": "broken"}
