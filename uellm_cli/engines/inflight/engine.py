"""The loop: chunks of rows are computed, each row that is whole draws a token, ended ones leave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import torch

from uellm_cli.engines import EngineContext
from uellm_cli.engines.answers import AnswerMaker
from uellm_cli.engines.inflight.flights import Chunk, Flight, Flights, still_expected
from uellm_cli.engines.inflight.packed import PackedModel
from uellm_cli.engines.inflight.step import build_step
from uellm_cli.engines.jobs import Job, JobMaker, failure_of
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.memory import is_out_of_memory
from uellm_cli.engines.scores import choose
from uellm_cli.types import Completion, EngineBatch, Failure, RequestTiming

# What one step computes at least, however little memory there seems to be.
FEWEST_STEP_TOKENS = 16


class InflightEngine:
    """Rows enter as others leave; the schedule's order decides who is next."""

    def __init__(
        self, context: EngineContext, loaded: LoadedModel, packed: PackedModel, flights: Flights
    ) -> None:
        self.context = context
        self.loaded = loaded
        self.packed = packed
        self.flights = flights
        self._jobs = JobMaker(loaded, context.seed)
        self._answers = AnswerMaker(loaded)
        self._orders = count()

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        while not self.context.stop():
            yield from self._pull(batches)
            if not self.flights.waiting and not self.flights.running:
                return
            chunks = self.flights.next_chunks()
            if not chunks:
                yield from self._fail([self.flights.running[0].job], _no_room())
                continue
            tokens = self._computed(chunks)
            if isinstance(tokens, Exception):
                yield from self._broken(chunks, tokens)
            else:
                yield from self._taken(chunks, tokens)

    def _pull(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        """Takes work while there are seats for it; what cannot be run comes back at once."""
        flights = self.flights
        while len(flights.waiting) < flights.limits.rows - len(flights.running):
            batch = next(batches, None)
            if batch is None:
                return
            for job in self._jobs.jobs(batch):
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

    def _computed(self, chunks: Sequence[Chunk]) -> list[int | None] | Exception:
        """The token that each row draws that draws in this step; or what broke the step."""
        now_s = self._now_s()
        for chunk in chunks:
            if chunk.flight.prefill_s is None:
                chunk.flight.prefill_s = now_s
        rows = [chunk.flight.row for chunk in chunks if chunk.draws]
        try:
            with torch.inference_mode():
                step = build_step(chunks, self.flights, self.loaded.model.device)
                logits = self.packed.logits(step)
                return choose(rows, logits) if rows else []
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            # Its traceback holds all that the step had in memory.
            return error.with_traceback(None)

    def _taken(self, chunks: Sequence[Chunk], tokens: Sequence[int | None]) -> Iterator[Completion]:
        now_s = self._now_s()
        drawing = [chunk.flight for chunk in chunks if chunk.draws]
        self.flights.advance(chunks)
        ended: list[Flight] = []
        decode = self.loaded.decode
        for flight, token in zip(drawing, tokens, strict=True):
            if token is None:
                ended.append(flight)
                continue
            flight.tokens.append(token)
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

    def _ended(self, flight: Flight, now_s: float) -> Iterator[Completion]:
        job, row = flight.job, flight.row
        if flight.seat is None:
            return  # its job failed with another of its answers in this very step
        if row.failure is not None:
            self._clear(flight)
            yield from self._fail([job], row.failure)
            return
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

    def _fail(self, jobs: Iterable[Job], failure: Failure) -> Iterator[Completion]:
        """Hands jobs back as failed, and lets all their rows go."""
        for job in jobs:
            job.failure = failure
            self.flights.discard(job)
            yield job.completion()

    def _clear(self, flight: Flight) -> None:
        """Overwrites a row's own keys and values: numbers that are none would spread to others."""
        self.flights.prefixes.clear()
        for group, page in self.flights.own_pages(flight):
            self.packed.cache.clear_page(group, page)

    def _broken(self, chunks: Sequence[Chunk], error: Exception) -> Iterator[Completion]:
        """Makes the next steps smaller where memory was short, else looks for the culprit alone."""
        self.loaded.release_memory()
        self.flights.prefixes.clear()  # pages of this step may be in it, and are not computed
        flights, limits = self.flights, self.flights.limits
        tokens = sum(chunk.tokens for chunk in chunks)
        rows = [chunk.flight for chunk in chunks]
        if is_out_of_memory(error) and (len(rows) > 1 or tokens > FEWEST_STEP_TOKENS):
            limits.step_tokens = max(FEWEST_STEP_TOKENS, tokens // 2)
            limits.rows = max(1, len(flights.running) // 2)
        elif len(rows) == 1:
            yield from self._fail([rows[0].job], failure_of(error))
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


def _no_room() -> Failure:
    return Failure(
        "out_of_memory",
        "its keys and values are more than the KV cache holds even with nothing else in it",
    )
