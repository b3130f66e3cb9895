from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.builders import NO_VERDICT, ONE_SECOND_STEPS, ROOMY, chat, model_spec, profiled
from tests.unit.test_journal import record
from tests.unit.test_openai_rows import INFO
from uellm_cli.clock import VirtualClock
from uellm_cli.config import OnLate
from uellm_cli.errors import EngineError
from uellm_cli.executor.execute import Conduct, RunTimer, execute
from uellm_cli.executor.index import read_index
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.outputs import ResultSink
from uellm_cli.executor.progress import Before, Meter, Progress
from uellm_cli.executor.stop import Stop
from uellm_cli.executor.todo import Todo
from uellm_cli.requests.store import RequestStore
from uellm_cli.types import (
    Answer,
    Batch,
    Blame,
    Completion,
    Engine,
    EngineBatch,
    FinishReason,
    Placement,
    Plan,
    RequestTiming,
    Schedule,
    Source,
    Topology,
)


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


def run(
    directory: Path,
    engine: Engine,
    oversized: tuple[str, ...] = (),
    stop: Stop | None = None,
    deadline_s: float | None = None,
    on_late: OnLate = OnLate.RUN,
    again: tuple[str, ...] = (),
) -> list[Progress]:
    """Executes a plan of two batches in `directory`; returns what progress was told.

    The session begins 100 s after the run's start, and only `b` has a deadline.
    """
    schedule = Schedule("test", (Batch(0, ("a", "b")), Batch(1, ("c",))), oversized)
    plan = Plan(
        model_spec(),
        Topology((), (), "test"),
        ROOMY,
        Placement("test", "round", (), 1, 1.0, Source.ASSUMED),
        schedule,
        ONE_SECOND_STEPS,
        NO_VERDICT,
    )
    names = ("a", "b", "c", *oversized)
    store = RequestStore(directory, "model")
    for name in names:
        store.add(chat(name, "hi"), chat(name, "hi"))
    known = [profiled(name, deadline_s=deadline_s if name == "b" else None) for name in names]
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    told: list[Progress] = []
    with Journal.open(directory / "journal") as journal:
        conduct = Conduct(
            RunTimer(clock, clock.now_s() - 100.0, 100.0),
            stop or Stop(),
            lambda look: told.append(look()),
            total=len(names) + 2,
            before=Before(answered=0, failed=2),
            on_late=on_late,
        )
        with ResultSink(directory, INFO, journal) as sink:
            todo = Todo(known, store, again)
            execute(plan, todo, lambda works: [(1, 2)] * len(works), engine, sink, conduct)
    return told


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_what_was_answered_is_durable_before_the_engine_gets_more(tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def look() -> None:
        entries = read_index(tmp_path / "journal").entries
        seen.append((list(entries), ids(tmp_path / "results.jsonl")))

    told = run(tmp_path, ScriptedEngine(look))
    assert seen == [([], []), (["a", "b"], ["a", "b"])]
    assert ids(tmp_path / "results.jsonl") == ["a", "b", "c"]
    # Two lines were invalid: they are of the total, and have failed.
    assert [(p.total, p.answered, p.failed, p.output_tokens) for p in told] == [
        (5, 0, 2, 0),
        (5, 2, 2, 4),
        (5, 3, 2, 6),
    ]


class BreakingEngine:
    """Hands back one answer of a batch, and breaks."""

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        batch = next(batches)
        answer = Answer("hello", 2, FinishReason.STOP)
        yield Completion("a", batch.batch_id, RequestTiming(0.0, 1.0, 2.0, 2.0), (answer,))
        raise EngineError("the device is gone")


def test_what_was_handed_back_before_an_engine_broke_is_kept(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the device is gone"):
        run(tmp_path, BreakingEngine())
    assert list(read_index(tmp_path / "journal").entries) == ["a"]


def test_an_engine_that_forgets_a_request_ends_the_run_and_loses_no_other(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"without an answer to 1 requests, 'b'.*--resume"):
        run(tmp_path, ScriptedEngine(lambda: None, forgotten="b"))
    assert ids(tmp_path / "results.jsonl") == ["a", "c"]


def test_a_request_that_no_batch_can_hold_is_an_error_row_with_its_size(tmp_path: Path) -> None:
    told = run(tmp_path, ScriptedEngine(lambda: None), oversized=("d",))
    (row,) = map(json.loads, (tmp_path / "errors.jsonl").read_text().splitlines())
    assert (row["custom_id"], row["error"]["code"]) == ("d", "out_of_memory")
    assert "MB" in row["error"]["message"]
    assert (told[-1].answered, told[-1].failed, told[-1].done, told[-1].total) == (3, 3, 6, 6)


def test_a_stop_keeps_what_was_answered_and_asks_for_no_more(tmp_path: Path) -> None:
    stop = Stop()

    def press() -> None:
        with stop.deferred():
            stop.request()

    told = run(tmp_path, ScriptedEngine(press, forgotten="b"), stop=stop)
    assert ids(tmp_path / "results.jsonl") == ["a"]
    assert told[-1].answered == 1


def test_a_stop_where_nothing_is_in_flight_ends_at_once() -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        stop.request()
    assert stop()


@pytest.mark.parametrize(
    ("deadline_s", "is_skipped"), [(99.0, True), (100.0, True), (101.0, False)]
)
def test_what_is_past_due_is_expired_and_not_run_where_that_is_asked_for(
    deadline_s: float, is_skipped: bool, tmp_path: Path
) -> None:
    run(tmp_path, ScriptedEngine(lambda: None), deadline_s=deadline_s, on_late=OnLate.SKIP)
    assert ids(tmp_path / "results.jsonl") == (["a", "c"] if is_skipped else ["a", "b", "c"])
    if is_skipped:
        (row,) = map(json.loads, (tmp_path / "errors.jsonl").read_text().splitlines())
        assert (row["custom_id"], row["error"]["code"]) == ("b", "batch_expired")
        with Journal.open(tmp_path / "journal") as journal:
            result = journal.reader.result(journal.index.entries["b"])
        assert result.blame is Blame.EXPIRED


def test_what_is_past_due_is_run_all_the_same_unless_asked_otherwise(tmp_path: Path) -> None:
    run(tmp_path, ScriptedEngine(lambda: None), deadline_s=1.0)
    assert ids(tmp_path / "results.jsonl") == ["a", "b", "c"]


def test_what_is_asked_for_again_is_wanted_however_late(tmp_path: Path) -> None:
    run(
        tmp_path,
        ScriptedEngine(lambda: None),
        deadline_s=1.0,
        on_late=OnLate.SKIP,
        again=("b",),
    )
    assert ids(tmp_path / "results.jsonl") == ["a", "b", "c"]


def test_a_newer_answer_takes_no_second_row_while_the_run_goes_on(tmp_path: Path) -> None:
    run(tmp_path, ScriptedEngine(lambda: None))
    run(tmp_path, ScriptedEngine(lambda: None))
    assert ids(tmp_path / "results.jsonl") == ["a", "b", "c"]
    assert (tmp_path / "journal").read_bytes().count(b"\n") == 6


def test_progress_knows_rate_time_left_and_deadlines_at_risk() -> None:
    members = {
        name: profiled(name, output=10, deadline_s=due)
        for name, due in (("a", None), ("b", 100.0), ("c", 30.0), ("d", 40.0))
    }
    batches = [Batch(0, ("a",)), Batch(1, ("b", "c")), Batch(2, ("d",))]
    meter = Meter(batches, members, total=4, before=Before(), began_s=5.0)
    assert meter.progress(5.0).tokens_per_s is None
    assert meter.progress(5.0).left_s is None
    answer = record("a").result
    # Half as long as predicted: that may be so for the others, too.
    meter.count(replace(answer, output_tokens=5, predicted_tokens_p50=10.0))
    now = meter.progress(15.0)
    assert now.tokens_per_s == 0.5  # five tokens in the ten seconds since the engine could begin
    assert now.left_s == 30.0  # thirty predicted tokens, at ten in ten seconds
    # b and c end at 35 s, d at 45 s: c and d would be late.
    assert now.at_risk == 2
    assert (now.done, now.total) == (1, 4)


def test_progress_says_nothing_of_deadlines_where_there_are_none() -> None:
    meter = Meter([Batch(0, ("a",))], {"a": profiled("a")}, 1, Before(), 0.0)
    meter.count(record("a").result)
    done = meter.progress(1.0)
    assert (done.left_s, done.at_risk) == (0.0, None)
