"""A request that an engine is at work on, from its first row to its completion."""

from __future__ import annotations

from dataclasses import dataclass, field

from uellm_cli.engines.grammar import Grammar, Grammars
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.memory import is_out_of_memory
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import RowSampling, resolve_sampling, row_seed
from uellm_cli.types import (
    Answer,
    Completion,
    EngineBatch,
    EngineRequest,
    Failure,
    RequestTiming,
)


@dataclass(slots=True, eq=False)
class Job:
    """A request with the answers that it has so far, by their number from 0.

    `wanted` of them have to be made, one after the other or at once, and may be added in any order.
    It is done with all of them, or with a `failure`. `grammar` is its schema at the beginning of an
    answer, None where it has none.
    """

    batch_id: int
    request: EngineRequest
    sampling: RowSampling
    grammar: Grammar | None = None
    answers: dict[int, Answer] = field(default_factory=dict)
    timing: RequestTiming | None = None
    failure: Failure | None = None

    @property
    def wanted(self) -> int:
        """A greedy answer is made once: it would only be the same again."""
        return 1 if self.sampling.is_greedy else self.request.sampling.n

    @property
    def is_done(self) -> bool:
        return self.failure is not None or len(self.answers) == self.wanted

    def add(self, number: int, answer: Answer, timing: RequestTiming) -> None:
        """One of the `wanted` answers, and its own timing."""
        self.answers[number] = answer
        self.timing = timing if self.timing is None else _joined(self.timing, timing)

    def completion(self) -> Completion:
        """Of a job that is done; a failed one has no answers."""
        name, batch_id = self.request.custom_id, self.batch_id
        if self.failure is not None:
            return Completion(name, batch_id, failure=self.failure)
        made = tuple(self.answers[number] for number in range(self.wanted))
        copies = self.request.sampling.n // self.wanted
        return Completion(name, batch_id, self.timing, made * copies)


def _joined(one: RequestTiming, other: RequestTiming) -> RequestTiming:
    """From the beginning of the answer that began first to the end of the one that ended last."""
    first = min(one, other, key=lambda timing: timing.prefill_s)
    last = max(one, other, key=lambda timing: (timing.finished_s, timing.answered_s))
    return RequestTiming(
        first.prefill_s,
        first.first_token_s,
        last.answered_s,
        last.finished_s,
        one.gaps_s + other.gaps_s,
        one.preemptions + other.preemptions,
    )


class JobMaker:
    """Makes jobs and their rows for one model; `run_seed` is for requests that have no seed."""

    def __init__(self, loaded: LoadedModel, run_seed: int) -> None:
        self._loaded = loaded
        self._run_seed = run_seed
        self._grammars = Grammars(loaded.tokenizer, loaded.eos_ids)

    def jobs(self, batch: EngineBatch) -> list[Job]:
        return [self.job(batch.batch_id, request) for request in batch.requests]

    def job(self, batch_id: int, request: EngineRequest) -> Job:
        """A job with its schema compiled; one that has failed already where that cannot be done."""
        job = Job(batch_id, request, resolve_sampling(request.sampling, self._loaded.defaults))
        if request.sampling.json_schema is not None:
            compiled = self._grammars.compiled(request.sampling.json_schema)
            if isinstance(compiled, Grammar):
                job.grammar = compiled
            else:
                job.failure = compiled
        return job

    def row(self, job: Job, number: int) -> Row:
        """An attempt at the job's answer of that number, in [0, `wanted`)."""
        seed = row_seed(job.request, self._run_seed, number)
        grammar = None if job.grammar is None else job.grammar.fresh()
        return Row(job.request, job.sampling, seed, self._loaded.eos_ids, grammar)


def failure_of(error: Exception) -> Failure:
    """What a request fails with that breaks its engine's step even alone."""
    if is_out_of_memory(error):
        return Failure("out_of_memory", "the device's memory did not suffice for this request")
    text = str(error).strip()
    return Failure("engine_error", text.splitlines()[0] if text else repr(error))
