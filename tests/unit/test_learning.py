"""What a run learns while it goes on: through `execute`, with an engine whose answers are known."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.builders import NO_VERDICT, ONE_SECOND_STEPS, ROOMY, chat, model_spec, profiled
from tests.unit.test_openai_rows import INFO
from uellm_cli.clock import VirtualClock
from uellm_cli.errors import EngineError
from uellm_cli.executor.execute import Conduct, RunTimer, execute
from uellm_cli.executor.index import Index
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.learning import EVERY, RECALIBRATED, OwnAnswers, recalibrated
from uellm_cli.executor.outputs import ResultSink
from uellm_cli.executor.progress import Before, Progress
from uellm_cli.executor.stop import Stop
from uellm_cli.executor.todo import Todo
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.requests.store import RequestStore
from uellm_cli.types import (
    QUANTILE_LEVELS,
    Answer,
    Batch,
    Completion,
    Engine,
    EngineBatch,
    Example,
    FinishReason,
    LengthEstimate,
    Placement,
    Plan,
    ProfiledRequest,
    RequestTiming,
    Schedule,
    Source,
    Topology,
)


class Lengths:
    """Answers in flight: `at_once` batches are pulled before the first of them ends."""

    def __init__(self, tokens: Callable[[str], int], at_once: int = 1) -> None:
        self.tokens = tokens
        self.at_once = at_once
        self.order: list[str] = []
        self.batch_ids: list[int] = []

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        running: list[EngineBatch] = []
        for batch in batches:
            self.batch_ids.append(batch.batch_id)
            running.append(batch)
            if len(running) == self.at_once:
                yield from self._ended(running.pop(0))
        for batch in running:
            yield from self._ended(batch)

    def _ended(self, batch: EngineBatch) -> Iterator[Completion]:
        for request in batch.requests:
            self.order.append(request.custom_id)
            tokens = self.tokens(request.custom_id)
            timing = RequestTiming(0.0, 1.0, 2.0, 2.0)
            cut = tokens >= request.max_tokens
            reason = FinishReason.LENGTH if cut else FinishReason.STOP
            yield Completion(
                request.custom_id, batch.batch_id, timing, (Answer("hi", tokens, reason),)
            )


def looked(look: Callable[[], Progress]) -> None:
    look()


# Ten tokens, more or less; and answers that are as it says.
TEN = LengthEstimate((4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 25.0, 40.0), "test")
AS_PREDICTED = (4, 9, 6, 12, 14, 8, 19, 11, 7, 30)


class Run:
    """`count` requests, each a batch of its own and predicted at about ten tokens."""

    def __init__(self, folder: Path, count: int, pilot: Sequence[str] = ()) -> None:
        self.folder = folder
        names = [f"r{i:03}" for i in range(count)]
        store = RequestStore(folder, "model")
        for name in names:
            store.add(chat(name, f"say {name}"))
        self.todo = Todo([replace(profiled(name), output=TEN) for name in names], store)
        order = [*pilot, *(name for name in names if name not in pilot)]
        self.schedule = Schedule("test", tuple(Batch(i, (n,)) for i, n in enumerate(order)))
        self.examples: list[Example] = []
        self.revisions: list[list[ProfiledRequest]] = []
        self.moved: list[Calibration] = []
        self.learner = OwnAnswers(
            self.todo,
            pilot,
            model_spec(),
            self._adapt,
            self.moved.append,
            self._reschedule,
            lambda: False,
        )

    def _adapt(
        self, examples: Sequence[Example], names: Sequence[str]
    ) -> list[ProfiledRequest] | None:
        self.examples = list(examples)
        return [profiled(name, output=500) for name in names]

    def _reschedule(self, left: Sequence[ProfiledRequest]) -> Schedule:
        """Backwards, so that it can be told."""
        self.revisions.append(list(left))
        backwards = [request.custom_id for request in reversed(left)]
        return Schedule("test", tuple(Batch(i, (name,)) for i, name in enumerate(backwards)))

    def execute(self, engine: Engine) -> Index:
        plan = Plan(
            model_spec(),
            Topology((), (), "test"),
            ROOMY,
            Placement("test", "round", (), 1, 1.0, Source.ASSUMED),
            self.schedule,
            ONE_SECOND_STEPS,
            NO_VERDICT,
        )
        conduct = Conduct(
            RunTimer(VirtualClock(datetime(2026, 1, 1, tzinfo=UTC)), 0.0, 0.0),
            Stop(),
            looked,
            total=len(self.todo),
            before=Before(),
            learner=self.learner,
        )
        with (
            Journal.open(self.folder / "journal") as journal,
            ResultSink(self.folder, INFO, journal) as sink,
        ):
            execute(plan, self.todo, lambda works: [(1,) for _ in works], engine, sink, conduct)
            return journal.index


def test_when_the_pilot_is_answered_the_rest_is_predicted_and_ordered_anew(tmp_path: Path) -> None:
    run = Run(tmp_path, 8, pilot=("r003", "r005"))
    engine = Lengths(lambda _: 7)
    index = run.execute(engine)
    assert engine.order == ["r003", "r005", "r007", "r006", "r004", "r002", "r001", "r000"]
    assert engine.batch_ids == list(range(8))
    assert len(index.entries) == 8
    assert [e.request.custom_id for e in run.examples] == ["r003", "r005"]
    assert [e.output_tokens for e in run.examples] == [7, 7]
    assert run.examples[0].request.messages[0].content == "say r003"
    assert run.todo.profiled["r000"].output.p50 == 500
    assert run.todo.profiled["r003"].output.p50 == 10  # as it was predicted before it ran


def test_while_the_pilot_runs_others_go_in_as_they_were_planned(tmp_path: Path) -> None:
    run = Run(tmp_path, 8, pilot=("r003", "r005"))
    engine = Lengths(lambda _: 7, at_once=3)
    run.execute(engine)
    assert engine.order[:4] == ["r003", "r005", "r000", "r001"]
    assert engine.order[4:] == ["r007", "r006", "r004", "r002"]


def test_what_waits_is_held_back_until_the_pilot_is_answered(tmp_path: Path) -> None:
    """A quarter of the others may go in beside it; then the engine is let run empty."""

    class AllAtOnce(Lengths):
        def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
            for batch in list(batches):
                yield from self._ended(batch)

    run = Run(tmp_path, 10, pilot=("r003", "r005"))
    engine = AllAtOnce(lambda _: 7)
    assert len(run.execute(engine).entries) == 10
    assert engine.order[:4] == ["r003", "r005", "r000", "r001"]
    assert engine.order[4:] == ["r009", "r008", "r007", "r006", "r004", "r002"]


def test_the_last_of_a_large_pilot_are_not_waited_for(tmp_path: Path) -> None:
    """One of twenty goes on and on: it counts as longer than those that were begun after it."""
    names = [f"r{i:03}" for i in range(40)]

    class OneGoesOn(Lengths):
        def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
            yield from self._ended(next(batches))
            yield from self._ended(next(batches))
            endless = next(batches)
            for batch in batches:
                yield from self._ended(batch)
            yield from self._ended(endless)

    run = Run(tmp_path, 40, pilot=names[:20])
    engine = OneGoesOn(lambda name: 900 if name == "r002" else 7 + int(name[1:]))
    assert len(run.execute(engine).entries) == 40
    assert len(run.revisions) == 1
    assert [(e.output_tokens, e.censored) for e in run.examples if e.censored] == [(26, True)]
    assert len(run.examples) == 20


def test_a_pilot_of_all_is_learnt_from_when_nothing_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path, 4, pilot=("r000", "r001", "r002", "r003"))
    assert len(run.execute(Lengths(lambda _: 7)).entries) == 4
    assert run.revisions == []


def test_a_pilot_that_is_never_begun_holds_nobody_up(tmp_path: Path) -> None:
    run = Run(tmp_path, 6, pilot=("r001", "r002"))
    run.schedule = Schedule("test", run.schedule.batches[2:], oversized=("r001", "r002"))
    assert len(run.execute(Lengths(lambda _: 7)).entries) == 6
    assert run.examples == []


def test_those_of_the_pilot_that_fit_nowhere_are_not_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path, 20, pilot=("r001", "r002"))
    run.schedule = Schedule("test", run.schedule.batches[1:], oversized=("r001",))
    engine = Lengths(lambda _: 7)
    run.execute(engine)
    assert [e.request.custom_id for e in run.examples] == ["r002"]
    assert engine.order[:2] == ["r002", "r019"]  # the rest is planned anew at once


def test_an_engine_that_takes_nothing_is_told_from_one_that_is_done(tmp_path: Path) -> None:
    class TakesNothing(Lengths):
        def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
            return iter(())

    with pytest.raises(EngineError, match="without an answer to 3 requests"):
        Run(tmp_path, 3).execute(TakesNothing(lambda _: 7))


def test_what_was_cut_is_learnt_as_cut(tmp_path: Path) -> None:
    run = Run(tmp_path, 4, pilot=("r000",))
    run.execute(Lengths(lambda _: 100_000))
    assert [(e.output_tokens, e.censored) for e in run.examples] == [(100_000, True)]


def test_answers_that_are_all_longer_move_the_predictions_of_those_that_wait(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, 3 * EVERY)
    index = run.execute(Lengths(lambda _: 40))
    assert len(index.entries) == 3 * EVERY
    assert len(run.revisions) == 1  # after it, predictions are right
    moved = run.revisions[0][0].output
    assert moved.p50 == pytest.approx(40)
    assert moved.source == f"test {RECALIBRATED}"
    assert run.revisions[0][0].kv_bytes == (10 + 40) * 4  # four layers, a byte a token and layer


def test_answers_that_are_as_predicted_change_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, 3 * EVERY)
    engine = Lengths(lambda name: AS_PREDICTED[int(name[1:]) % 10])
    run.execute(engine)
    assert run.revisions == []
    assert engine.order == sorted(engine.order)


def test_those_in_flight_when_predictions_moved_do_not_move_them_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, 4 * EVERY)
    run.execute(Lengths(lambda _: 40, at_once=EVERY))
    assert len(run.revisions) == 1
    assert run.todo.profiled["r000"].output.p50 == 10
    assert run.revisions[0][-1].output.p50 == pytest.approx(40)


def test_short_answers_that_end_first_are_not_taken_for_all(tmp_path: Path) -> None:
    """Every second answer is long, and ends after many later ones: as predicted, taken together."""

    class LongOnesLate(Lengths):
        def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
            late: list[EngineBatch] = []
            for batch in batches:
                if int(batch.requests[0].custom_id[1:]) % 2:
                    late.append(batch)
                    if len(late) > EVERY:
                        yield from self._ended(late.pop(0))
                else:
                    yield from self._ended(batch)
            for batch in late:
                yield from self._ended(batch)

    run = Run(tmp_path, 4 * EVERY)
    run.execute(LongOnesLate(lambda name: 16 if int(name[1:]) % 2 else 7))
    assert run.revisions == []


# Quantiles of e^(4 + z), z standard normal.
NORMAL = (-1.645, -1.282, -0.674, 0.0, 0.674, 1.282, 1.645, 2.326)
LOG_NORMAL = LengthEstimate(tuple(np.exp(4 + np.array(NORMAL)).tolist()), "test")


class InFlight:
    """Rows that make a token a step each; when one ends, the next is pulled."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.drawn = np.random.default_rng(seed)

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        running: list[tuple[int, int, int, EngineBatch]] = []
        now = 0
        for batch in batches:
            tokens = max(round(float(np.exp(4 + self.drawn.standard_normal()))), 1)
            heapq.heappush(running, (now + tokens, batch.batch_id, tokens, batch))
            if len(running) == self.rows:
                now = running[0][0]
                yield self._ended(*heapq.heappop(running)[2:])
        while running:
            yield self._ended(*heapq.heappop(running)[2:])

    def _ended(self, tokens: int, batch: EngineBatch) -> Completion:
        answer = Answer("hi", tokens, FinishReason.STOP)
        timing = RequestTiming(0.0, 1.0, 2.0, 2.0)
        return Completion(batch.requests[0].custom_id, batch.batch_id, timing, (answer,))


@pytest.mark.parametrize("rows", [1, 64, 256])
def test_predictions_that_are_right_are_left_alone_however_many_are_in_flight(
    tmp_path: Path, rows: int
) -> None:
    """A long answer ends after hundreds that were begun later: it counts for what it is."""
    revisions = 0
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = Run(folder, 1000)
        for name, request in run.todo.profiled.items():
            run.todo.profiled[name] = replace(request, output=LOG_NORMAL)
        run.execute(InFlight(rows, seed))
        revisions += len(run.revisions)
    assert revisions <= 1


def test_a_length_that_is_certain_is_not_moved_nor_a_cap_lowered() -> None:
    down = Calibration((-1.0,) * len(QUANTILE_LEVELS), 100)
    certain = profiled("a", output=100)
    assert recalibrated(certain, down, model_spec()) == certain
    unsure = replace(
        profiled("b"),
        max_tokens=60,
        output=LengthEstimate((10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 60.0, 60.0), "test"),
    )
    moved = recalibrated(unsure, down, model_spec()).output.tokens
    assert moved[:5] == pytest.approx([10 / np.e, 20 / np.e, 30 / np.e, 40 / np.e, 50 / np.e])
    assert moved[5:] == (60.0, 60.0, 60.0)  # how far beyond the cap they were is not known
