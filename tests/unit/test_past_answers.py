from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from uellm_cli.config import Choice, Settings
from uellm_cli.errors import PredictorError, RequestFileError, RunDirectoryError
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.past_answers import PastRun, examples_of
from uellm_cli.executor.records import Record
from uellm_cli.executor.run_directory import JOURNAL, PIPED, RUN
from uellm_cli.profiler.learning.answered import Fields
from uellm_cli.requests import read_requests
from uellm_cli.requests.keys import answer_key, content_of, model_salt
from uellm_cli.training import Data, read_answers
from uellm_cli.types import (
    Answer,
    Blame,
    Endpoint,
    Failure,
    FinishReason,
    Request,
    Result,
    RunInfo,
    SamplingParams,
)

STARTED = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
FINGERPRINT = "model-1"


def run_info(requests: tuple[str, ...], **changes: Any) -> RunInfo:
    choice = Choice("x")
    settings = Settings(choice, choice, choice, choice, requests=requests)
    about: dict[str, Any] = {
        "run_id": "r",
        "command": ("uellm", "run"),
        "started": STARTED,
        "model": "org/model",
        "model_fingerprint": FINGERPRINT,
        "bundled_model": False,
        "engine": "inflight",
        "scheduler": "fifo",
        "seed": 0,
        "versions": {},
        "machine": {},
        "inputs": {},
        "settings": msgspec.to_builtins(settings),
    }
    return RunInfo(**{**about, **changes})


def result(custom_id: str, *answers: tuple[int, FinishReason], copies: int = 1) -> Result:
    failure = None if answers else Failure("engine_error", "it broke")
    return Result(
        custom_id=custom_id,
        slo_class="default",
        batch_id=0,
        prompt_tokens=5,
        predicted_tokens_p50=1.0,
        predicted_tokens_p90=2.0,
        output_tokens=sum(tokens for tokens, _ in answers),
        kv_bytes=1,
        deadline_s=None,
        arrival_s=0.0,
        blame=Blame.NONE,
        answers=tuple(Answer("text", tokens, reason) for tokens, reason in answers),
        finish_reason=answers[0][1] if answers else None,
        failure=failure,
        copies=copies,
    )


def finished_run(directory: Path, *results: Result, **changes: Any) -> Path:
    """A run of four requests, a to d, that has come as far as `results`."""
    requests = directory.parent / "requests.jsonl"
    lines = [
        json.dumps({"id": name, "prompt": f"say {name}", "metadata": {"kind": f"kind {name}"}})
        for name in "abcd"
    ]
    requests.write_text("\n".join([*lines, "no request"]))
    directory.mkdir()
    asked = {
        row.custom_id: row
        for row in read_requests([str(requests)], started=STARTED)
        if isinstance(row, Request)
    }
    with Journal.open(directory / JOURNAL) as journal:
        for each in results:
            key = answer_key(content_of(asked[each.custom_id]), model_salt(FINGERPRINT)).hex()
            journal.append(Record(key, each))
    info = run_info((str(requests),), **changes)
    (directory / RUN).write_bytes(msgspec.json.encode(info))
    return directory


STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def answers(directory: Path) -> dict[str, Result | None]:
    return {request.custom_id: each for request, each in PastRun.open(directory).answers()}


def test_every_request_comes_with_the_result_that_stands_for_it(tmp_path: Path) -> None:
    directory = finished_run(
        tmp_path / "run", result("a", (7, LENGTH)), result("b"), result("a", (9, STOP))
    )
    found = answers(directory)
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"] is not None
    assert found["a"].output_tokens == 9
    assert (found["b"], found["c"]) == (None, None)


def test_an_answer_to_what_a_line_asked_before_it_changed_is_none_of_it(tmp_path: Path) -> None:
    directory = finished_run(tmp_path / "run", result("a", (7, STOP)), result("c", (8, STOP)))
    lines = tmp_path / "requests.jsonl"
    lines.write_text(lines.read_text().replace("say a", "sing a"))
    found = answers(directory)
    assert found["a"] is None
    assert found["c"] is not None


def test_a_run_that_was_killed_while_writing_has_what_was_whole(tmp_path: Path) -> None:
    directory = finished_run(tmp_path / "run", result("a", (7, STOP)), result("b", (8, STOP)))
    journal = directory / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-9])
    found = answers(directory)
    assert found["a"] is not None
    assert found["b"] is None


def test_requests_that_came_through_a_pipe_are_read_where_the_run_kept_them(
    tmp_path: Path,
) -> None:
    directory = finished_run(tmp_path / "run", result("a", (7, STOP)))
    (tmp_path / "requests.jsonl").rename(directory / PIPED)
    (directory / RUN).write_bytes(msgspec.json.encode(run_info((PIPED,))))
    moved = directory.rename(tmp_path / "elsewhere")
    assert answers(moved)["a"] is not None


def test_each_answer_that_was_made_is_an_example_and_a_cut_one_is_censored() -> None:
    request = Request("a", "/v1/chat/completions")  # type: ignore[arg-type]
    drawn = examples_of(request, result("a", (7, STOP), (12, LENGTH), (0, STOP)), "chat")
    assert [(e.output_tokens, e.censored, e.task, e.prompt_tokens) for e in drawn] == [
        (7, False, "chat", 5),
        (12, True, "chat", 5),
    ]
    copied = examples_of(request, result("a", (7, STOP), (7, STOP), (7, STOP), copies=3))
    assert [e.output_tokens for e in copied] == [7]


@pytest.mark.parametrize(
    "sampling", [SamplingParams(ignore_eos=True), SamplingParams(min_tokens=7)]
)
def test_an_answer_whose_length_was_not_the_model_s_to_choose_teaches_nothing(
    sampling: SamplingParams,
) -> None:
    request = Request("a", Endpoint.CHAT, sampling=sampling)
    assert examples_of(request, result("a", (7, STOP))) == []


def test_made_up_answers_teach_nothing(tmp_path: Path) -> None:
    directory = finished_run(tmp_path / "run", result("a", (7, STOP)), simulated=True)
    with pytest.raises(PredictorError, match="simulated"):
        PastRun.open(directory)


def test_what_is_no_run_or_has_lost_its_requests_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        PastRun.open(tmp_path)
    directory = finished_run(tmp_path / "run", result("a", (7, STOP)))
    (tmp_path / "requests.jsonl").unlink()
    with pytest.raises(RequestFileError, match=r"run: what it was asked cannot be read: .*jsonl"):
        answers(directory)
    unknown = {"model": 3}
    (directory / RUN).write_bytes(msgspec.json.encode(run_info((), settings=unknown)))
    with pytest.raises(RunDirectoryError, match=r"run\.json"):
        answers(directory)


# --- Runs and files together ---------------------------------------------------------------------


def test_runs_and_files_are_read_together_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    directory = finished_run(tmp_path / "run", result("a", (7, STOP)), result("b", (8, LENGTH)))
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "x", "output_tokens": 30}\n{"prompt": "y"}\n')
    found = read_answers(Data((str(file), str(directory))))
    assert [(e.output_tokens, e.censored) for e in found.examples] == [
        (7, False),
        (8, True),
        (30, False),
    ]
    assert found.censored == 1
    text = " | ".join(found.notes)
    assert f"{directory}: 2 answers of org/model; 2 requests have none to learn from" in text
    assert "1 in 'output_tokens'" in text
    assert "1 rows teach nothing and were passed over; the first is" in text


def test_whose_answers_they_are_is_known_where_all_are_one_model_s(tmp_path: Path) -> None:
    run = str(finished_run(tmp_path / "run", result("a", (7, STOP))))
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "x", "output_tokens": 30}\n')
    assert read_answers(Data((run,))).model == "org/model"
    assert read_answers(Data((str(file),))).model is None
    assert read_answers(Data((run, str(file)))).model is None


def test_a_task_of_a_run_s_request_is_in_its_metadata(tmp_path: Path) -> None:
    run = str(finished_run(tmp_path / "run", result("a", (7, STOP)), result("c", (9, STOP))))
    found = read_answers(Data((run,), fields=Fields(task="metadata.kind")))
    assert [example.task for example in found.examples] == ["kind a", "kind c"]


def test_a_limit_counts_what_runs_have_given_already(tmp_path: Path) -> None:
    run = str(finished_run(tmp_path / "run", result("a", (7, STOP)), result("c", (9, STOP))))
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "x", "output_tokens": 30}\n' * 5)
    for limit in (1, 3):
        assert len(read_answers(Data((run, str(file)), limit=limit)).examples) == limit


def test_a_limit_may_fall_between_the_answers_to_one_request(tmp_path: Path) -> None:
    drawn = [(7, STOP), (9, STOP), (11, STOP)]
    run = str(finished_run(tmp_path / "run", result("a", *drawn), result("b", (5, STOP))))
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "x", "output_tokens": 30}\n' * 5)
    for limit in (2, 4, 5):
        found = read_answers(Data((run, str(file)), limit=limit))
        assert [e.output_tokens for e in found.examples] == [7, 9, 11, 5, 30][:limit]
    assert f"{run}: 2 answers" in " ".join(read_answers(Data((run,), limit=2)).notes)


def test_a_run_without_any_answer_is_nothing_to_learn_from(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", result("a"))
    with pytest.raises(PredictorError, match=r"no answer to learn from: .*4 requests have none"):
        read_answers(Data((str(run),)))


def test_a_text_at_its_cap_is_cut_only_if_its_own_model_s_tokens_are_counted(
    tmp_path: Path, tiny_llm: str
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "x", "response": "one two three", "max_tokens": 2}\n')
    assert read_answers(Data((str(file),))).censored == 0
    assert read_answers(Data((str(file),), model=tiny_llm)).censored == 1
