from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from tests.unit.test_journal import record
from uellm_cli.executor.openai_rows import error_row, output_row
from uellm_cli.executor.results import refused
from uellm_cli.types import Endpoint, Failure, InvalidRequest, RunInfo, SourceLine

INFO = RunInfo(
    run_id="run",
    command=("uellm",),
    started=datetime(2026, 1, 1, tzinfo=UTC),
    model="tiny",
    bundled_model=True,
    engine="static",
    scheduler="fifo",
    seed=0,
    versions={},
    machine={},
    inputs={},
    settings={},
)
ANSWERED = record("a", "hello").result


def test_a_chat_answer_has_the_shape_of_openai_s_batch_output() -> None:
    row = output_row(ANSWERED, INFO)
    assert set(row) == {"id", "custom_id", "response", "error"}
    assert (row["custom_id"], row["error"]) == ("a", None)
    assert set(row["response"]) == {"status_code", "request_id", "body"}
    assert row["response"]["status_code"] == 200
    body = row["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["created"] == int(INFO.started.timestamp()) + 2
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_completion_answer_carries_text_and_no_message() -> None:
    body = output_row(replace(ANSWERED, endpoint=Endpoint.COMPLETION), INFO)["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "hello"
    assert "message" not in body["choices"][0]


def test_a_row_s_id_stays_the_same_when_it_is_written_again() -> None:
    assert output_row(ANSWERED, INFO) == output_row(ANSWERED, INFO)
    assert (
        output_row(ANSWERED, INFO)["id"] != output_row(replace(ANSWERED, custom_id="b"), INFO)["id"]
    )


def test_an_invalid_line_s_row_names_file_line_field_and_reason() -> None:
    invalid = InvalidRequest(SourceLine("in.jsonl", 7), "body.messages", "is missing")
    row = error_row(refused(invalid), INFO)
    assert row["response"] is None
    assert row["custom_id"] == "in.jsonl:7"
    assert row["error"] == {
        "code": "invalid_request",
        "message": "is missing",
        "field": "body.messages",
        "file": "in.jsonl",
        "line": 7,
    }


def test_a_failed_request_s_row_carries_its_code_and_message() -> None:
    failed = replace(ANSWERED, failure=Failure("engine_error", "broken"))
    assert error_row(failed, INFO)["error"] == {"code": "engine_error", "message": "broken"}
