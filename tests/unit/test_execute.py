from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.builders import ONE_SECOND_STEPS, ROOMY, chat, model_spec, profiled
from tests.unit.test_openai_rows import INFO
from uellm_cli.clock import VirtualClock
from uellm_cli.errors import EngineError
from uellm_cli.executor.execute import Progress, RunTimer, execute
from uellm_cli.executor.journal import Journal, read_records
from uellm_cli.executor.results import Work
from uellm_cli.executor.run_directory import ResultFiles
from uellm_cli.types import (
    Answer,
    Batch,
    Completion,
    EngineBatch,
    FinishReason,
    Placement,
    Plan,
    RequestTiming,
    Schedule,
    Source,
    Topology,
    Verdict,
)

WORK = {name: Work(chat(name, "hi"), profiled(name)) for name in "abcd"}


class ScriptedEngine:
    """Answers all but `forgotten`, and calls `on_pull` before it asks for a batch."""

    def __init__(self, on_pull: Callable[[], None], forgotten: str = "") -> None:
        self.on_pull = on_pull
        self.forgotten = forgotten

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        for batch in batches:
            self.on_pull()
            for request in batch.requests:
                if request.custom_id != self.forgotten:
                    timing = RequestTiming(0.0, 1.0, 2.0, 2.0)
                    answer = Answer("hello", 2, FinishReason.STOP)
                    yield Completion(request.custom_id, batch.batch_id, timing, (answer,))


def run(directory: Path, engine: ScriptedEngine, oversized: tuple[str, ...] = ()) -> list[Progress]:
    """Executes a plan of two batches in `directory`; returns what progress was told."""
    schedule = Schedule("test", (Batch(0, ("a", "b")), Batch(1, ("c",))), oversized)
    plan = Plan(
        model_spec(),
        Topology((), (), "test"),
        ROOMY,
        Placement("test", "round", (), 1, 1.0, Source.ASSUMED),
        schedule,
        ONE_SECOND_STEPS,
        Verdict(0.0, 0, (), Source.ASSUMED),
    )
    work = {name: WORK[name] for name in ("a", "b", "c", *oversized)}
    timer = RunTimer(VirtualClock(datetime(2026, 1, 1, tzinfo=UTC)), 0.0, 0.0)
    told: list[Progress] = []
    with (
        Journal.open(directory / "journal") as journal,
        ResultFiles.open(directory, replace(INFO), journal, ()) as files,
    ):
        execute(
            plan,
            work,
            lambda members: [(1, 2)] * len(members),
            engine,
            files,
            timer,
            told.append,
        )
    return told


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_what_was_answered_is_durable_before_the_engine_gets_more(tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def look() -> None:
        records, _ = read_records(tmp_path / "journal")
        seen.append(([r.result.custom_id for r in records], ids(tmp_path / "results.jsonl")))

    told = run(tmp_path, ScriptedEngine(look))
    assert seen == [([], []), (["a", "b"], ["a", "b"])]
    assert ids(tmp_path / "results.jsonl") == ["a", "b", "c"]
    assert [(p.total, p.answered, p.output_tokens) for p in told] == [
        (3, 0, 0),
        (3, 2, 4),
        (3, 3, 6),
    ]


def test_an_engine_that_forgets_a_request_ends_the_run_and_loses_no_other(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"without an answer to 1 requests, 'b'.*--resume"):
        run(tmp_path, ScriptedEngine(lambda: None, forgotten="b"))
    assert ids(tmp_path / "results.jsonl") == ["a", "c"]


def test_a_request_that_no_batch_can_hold_is_an_error_row_with_its_size(tmp_path: Path) -> None:
    told = run(tmp_path, ScriptedEngine(lambda: None), oversized=("d",))
    (row,) = map(json.loads, (tmp_path / "errors.jsonl").read_text().splitlines())
    assert (row["custom_id"], row["error"]["code"]) == ("d", "out_of_memory")
    assert "MB" in row["error"]["message"]
    assert (told[-1].answered, told[-1].failed) == (3, 1)
