"""The loop: chunks of rows are computed, each row that is whole draws a token, ended ones leave.

With `lookahead` a step begins before the tokens of the one before are known: a GPU that waits for
nobody has the next step when this one is over. What it computes for rows that turn out to have
ended is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from uellm_cli.engines import EngineContext
from uellm_cli.engines.answers import AnswerMaker
from uellm_cli.engines.inflight.flights import (
    BREAKDOWNS_TOGETHER,
    Chunk,
    Flight,
    Flights,
    still_expected,
)
from uellm_cli.engines.inflight.lookahead import PlainDraw
from uellm_cli.engines.inflight.packed import StepModel
from uellm_cli.engines.inflight.step import build_step, unread
from uellm_cli.engines.jobs import Job, JobMaker, failure_of
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.memory import is_out_of_memory
from uellm_cli.engines.scores import FindLargest, choose, find_largest
from uellm_cli.types import Completion, EngineBatch, Failure, RequestTiming, StepSample

# What one step computes at least, however little memory there seems to be.
FEWEST_STEP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that is computed, or will be: the rows that draw in it, and the tokens they draw.

    Each of them has its token at its place of `places` in all its tokens. `rows` counts those that
    draw nothing too; `prefill_tokens` of prompts are computed, `cached_tokens` read.
    """

    rows: int
    prefill_tokens: int
    cached_tokens: int
    drawing: list[Flight]
    places: list[int]
    drawn: PlainDraw | list[int | None]

    @property
    def is_known(self) -> bool:
        return isinstance(self.drawn, list)


class InflightEngine:
    """Rows enter as others leave; the schedule's order decides who is next."""

    def __init__(
        self,
        context: EngineContext,
        loaded: LoadedModel,
        packed: StepModel,
        flights: Flights,
        lookahead: bool = False,
        find: FindLargest = find_largest,
    ) -> None:
        self.context = context
        self.loaded = loaded
        self.packed = packed
        self.flights = flights
        self.lookahead = lookahead
        self._find = find
        self._jobs = JobMaker(loaded, context.seed)
        self._answers = AnswerMaker(loaded)
        self._orders = count()
        # When the last step was done with; None while there is none to wait for.
        self._last_s: float | None = None

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        try:
            yield from self._steps(batches)
        except GeneratorExit:
            raise
        except BaseException:
            self.flights.prefixes.clear()  # pages of the last step may be in it, and not computed
            raise
        finally:
            self.flights.clear()  # of a run that was stopped, or left half way

    def _steps(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        before: Launched | None = None  # the step whose tokens are not known yet
        while not self.context.stop():
            yield from self._pull(batches)
            chunks = self.flights.next_chunks()
            step = self._launched(chunks, before) if chunks else None
            if before is not None:
                yield from self._taken(before)
            elif step is None:
                if not self.flights.running:
                    return
                yield from self._fail([self.flights.running[0].job], _no_room())
            before = None
            if isinstance(step, Exception):
                yield from self._broken(chunks, step)
            elif step is not None and step.is_known:
                yield from self._taken(step)
            else:
                before = step
        if before is not None:
            yield from self._taken(before)

    def _pull(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        """Takes work while there are seats for it; what cannot be run comes back at once."""
        flights = self.flights
        while len(flights.waiting) < flights.limits.rows - len(flights.running):
            batch = next(batches, None)
            if batch is None:
                return
            for job in self._jobs.jobs(batch):
                if job.failure is None and not flights.could_hold(
                    len(job.request.prompt_token_ids)
                ):
                    job.failure = _no_room()
                if job.is_done:
                    yield job.completion()
                for number in range(0 if job.is_done else job.wanted):
                    flights.add(self._flight(job, number))

    def _flight(self, job: Job, number: int) -> Flight:
        row = self._jobs.row(job, number)
        tokens = [*job.request.prompt_token_ids]
        flight = Flight(next(self._orders), number, job, row, tokens, expected=0)
        flight.expected = still_expected(flight)
        return flight

    # --- One step ------------------------------------------------------------------------------

    def _launched(self, chunks: Sequence[Chunk], before: Launched | None) -> Launched | Exception:
        """The step that computes `chunks`; or what broke it.

        Tokens of the step `before` may be on the device only.
        """
        now_s = self._now_s()
        if self._last_s is None:
            self._last_s = now_s
        prefill_tokens = cached_tokens = 0
        for chunk in chunks:
            flight = chunk.flight
            if flight.prefill_s is None:
                flight.prefill_s = now_s
            if chunk.tokens > 1 or not flight.row.tokens:
                prefill_tokens += chunk.tokens
                cached_tokens += flight.computed
            else:
                cached_tokens += flight.computed + 1
        drawing = [chunk.flight for chunk in chunks if chunk.draws]
        rows = [flight.row for flight in drawing]
        ahead = self.lookahead and all(row.is_plain for row in rows)
        known = before.drawn.tokens if before and isinstance(before.drawn, PlainDraw) else None
        drawn: PlainDraw | list[int | None] = []
        try:
            with torch.inference_mode():
                step = build_step(chunks, self.flights, self.loaded.device, known)
                logits = self.packed.logits(step)
                if rows:
                    drawn = PlainDraw(rows, logits) if ahead else choose(rows, logits, self._find)
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            # Its traceback holds all that the step had in memory.
            return error.with_traceback(None)
        self.flights.advance(chunks)
        places = [len(flight.tokens) for flight in drawing]
        launched = Launched(len(chunks), prefill_tokens, cached_tokens, drawing, places, drawn)
        if not launched.is_known:
            self._look_ahead(drawing)
        return launched

    def _look_ahead(self, drawing: Sequence[Flight]) -> None:
        """The next step computes what these rows draw now, but for those that will have ended."""
        for place, flight in enumerate(drawing):
            made = len(flight.tokens) + 1 - flight.prompt_tokens
            if made < flight.row.request.max_tokens:
                flight.tokens.append(unread(place))

    def _taken(self, step: Launched) -> Iterator[Completion]:
        """Waits for the tokens of a step, and gives each row its own."""
        tokens = step.drawn if isinstance(step.drawn, list) else self._read(step.drawn)
        now_s = self._now_s()
        self._tell(step, now_s)
        ended: list[Flight] = []
        decode = self.loaded.decode
        for flight, place, token in zip(step.drawing, step.places, tokens, strict=True):
            if _is_over(flight):
                continue  # it was when this step began, which was not known then
            if token is None:
                if not self._is_tried_again(flight, step):
                    ended.append(flight)
                continue
            flight.tokens[place : place + 1] = [token]
            flight.row.take(token, now_s, decode)
            made = len(flight.row.tokens)
            if made == 1:
                flight.first_token_s = now_s
            else:
                flight.gaps_s.append(now_s - flight.last_token_s)
            flight.last_token_s = now_s
            if not flight.row.is_open:
                ended.append(flight)
            elif made >= flight.expected:
                flight.expected = still_expected(flight)
        for flight in ended:
            yield from self._ended(flight, now_s)
        if not self.flights.running and not self.flights.waiting:
            self._last_s = None

    def _tell(self, step: Launched, now_s: float) -> None:
        """What the step took: from when the one before was done with, as steps follow another."""
        if self._last_s is not None:
            seconds = now_s - self._last_s
            work = StepSample(step.prefill_tokens, step.rows, step.cached_tokens, seconds)
            self.context.step_seen(work)
        self._last_s = now_s

    def _read(self, drawn: PlainDraw) -> list[int | None]:
        try:
            return drawn.read()
        except RuntimeError:
            self.loaded.release_memory()  # says so where the device is broken for good
            raise

    def _ended(self, flight: Flight, now_s: float) -> Iterator[Completion]:
        job, row = flight.job, flight.row
        if job.failure is not None:
            return  # it failed with another of its answers in this very step
        if row.failure is not None:
            if row.failure.code == "engine_error":
                self._clear(job)
            yield from self._fail([job], row.failure)
            return
        if flight.seat is None:
            self.flights.waiting.remove(flight)  # it had to make room before its end was known
        else:
            self.flights.remove(flight)
        timing = RequestTiming(
            prefill_s=now_s if flight.prefill_s is None else flight.prefill_s,
            first_token_s=flight.first_token_s,
            answered_s=flight.last_token_s,
            finished_s=now_s,
            gaps_s=tuple(round(gap, 6) for gap in flight.gaps_s),
            preemptions=flight.preemptions,
        )
        job.add(flight.number, self._answers.answer(row), timing)
        if job.is_done:
            yield job.completion()

    # --- Trouble -------------------------------------------------------------------------------

    def _is_tried_again(self, flight: Flight, step: Launched) -> bool:
        """Whether a row that failed is computed once more, alone and all of it.

        It may have read what another one, which begins alike, had spoilt in the same step. Rows of
        a step that was begun ahead are in the next one already.
        """
        failure = flight.row.failure
        if failure is None or failure.code != "engine_error" or step.rows == 1 or self.lookahead:
            return False
        flight.row.failure = None
        flight.breakdowns = BREAKDOWNS_TOGETHER + 1
        self._clear_pages(flight)
        self.flights.preempt(flight)
        return True

    def _fail(self, jobs: Iterable[Job], failure: Failure) -> Iterator[Completion]:
        """Hands jobs back as failed, and lets all their rows go."""
        for job in jobs:
            job.failure = failure
            self.flights.discard(job)
            yield job.completion()

    def _clear(self, job: Job) -> None:
        """Overwrites keys and values that only a job's rows hold, and lets these go."""
        for flight in [flight for flight in self.flights.running if flight.job is job]:
            self._clear_pages(flight)
            # Before the next one: what rows of the job share is the last one's own.
            self.flights.remove(flight)

    def _clear_pages(self, flight: Flight) -> None:
        """Overwrites what only this row holds, so that no number that is none is left anywhere."""
        self.flights.prefixes.clear()
        for group, page in self.flights.own_pages(flight):
            self.packed.cache.clear_page(group, page)

    def _broken(self, chunks: Sequence[Chunk], error: Exception) -> Iterator[Completion]:
        """Makes the next steps smaller where memory was short, else looks for the culprit alone."""
        self.loaded.release_memory()
        self.flights.prefixes.clear()  # pages of this step may be in it, and are not computed
        flights, limits = self.flights, self.flights.limits
        tokens = sum(chunk.tokens for chunk in chunks)
        for chunk in chunks:
            row = chunk.flight.row
            del row.scores[len(row.tokens) :]  # of tokens that it chose and was never given
        # Others have ended in the step before, which was not known when this one began.
        rows = [chunk.flight for chunk in chunks if chunk.flight.seat is not None]
        if is_out_of_memory(error) and (len(chunks) > 1 or tokens > FEWEST_STEP_TOKENS):
            limits.step_tokens = max(FEWEST_STEP_TOKENS, tokens // 2)
            limits.rows = max(1, len(flights.running) // 2)
        elif len(chunks) == 1:
            yield from self._fail([flight.job for flight in rows], failure_of(error))
            for flight in (*flights.running, *flights.waiting):
                flight.breakdowns = 0
            return
        else:
            for flight in rows:
                flight.breakdowns += 1
        for flight in rows:
            flights.preempt(flight)

    def _now_s(self) -> float:
        return self.context.clock.now_s() - self.context.started_s


def _is_over(flight: Flight) -> bool:
    """Whether its row has ended, or its job: one that fails in this very step is still to end."""
    return flight.job.is_done or flight.row.end is not None


def _no_room() -> Failure:
    return Failure(
        "out_of_memory",
        "its keys and values are more than the KV cache holds even with nothing else in it",
    )
