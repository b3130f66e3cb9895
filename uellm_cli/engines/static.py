"""transformers' `generate` on left-padded batches, each run to its longest member.

The paper's world, and the plainest engine there is: a row that has ended waits for the batch, and
its answer is handed back when the batch ends. A request with several answers takes part in as many
rounds, one after the other, so that a batch never takes more memory than one of them. A batch that
breaks is run again in halves, so that an error costs only the requests that cause it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from uellm_cli.engines import EngineContext
from uellm_cli.engines.answers import AnswerMaker
from uellm_cli.engines.jobs import Job, JobMaker, failure_of
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.loading import check_dtype, load
from uellm_cli.engines.memory import MemoryLimit, is_out_of_memory
from uellm_cli.engines.padded import draw_batch
from uellm_cli.types import Completion, Engine, EngineBatch, Failure, RequestTiming


@dataclass(frozen=True, slots=True)
class Static:
    """`dtype` is the checkpoint's own when "auto", else one of torch's: see `loading.DTYPES`."""

    in_virtual_time: ClassVar[bool] = False
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def start(self, context: EngineContext) -> Engine:
        return StaticEngine(context, load(context, self.dtype))


class StaticEngine:
    def __init__(self, context: EngineContext, loaded: LoadedModel) -> None:
        self.context = context
        self.loaded = loaded
        self._jobs = JobMaker(loaded, context.seed)
        self._answers = AnswerMaker(loaded)
        self._memory = MemoryLimit()

    @property
    def model(self) -> Any:
        return self.loaded.model

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        while not self.context.stop():
            batch = next(batches, None)
            if batch is None:
                return
            yield from self._answer(self._jobs.jobs(batch))

    def _answer(self, jobs: Sequence[Job]) -> Iterator[Completion]:
        """Round after round, each job handed back after its last; nothing more once stopped."""
        while True:
            yield from (job.completion() for job in jobs if job.is_done)
            jobs = [job for job in jobs if not job.is_done]
            if not jobs or self.context.stop():
                return
            if not self._try_round(jobs):
                half = len(jobs) // 2
                yield from self._answer(jobs[:half])
                yield from self._answer(jobs[half:])
                return

    def _try_round(self, jobs: Sequence[Job]) -> bool:
        """One more answer for each job; False where that has to be tried with fewer at a time."""
        requests = [job.request for job in jobs]
        if not self._memory.allows(requests):
            return False
        try:
            self._round(jobs)
            return True
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            failure = failure_of(error)
            if is_out_of_memory(error):
                self._memory.ran_out(requests)
        # Outside of `except`: the error's traceback holds all that the batch had in memory.
        self.loaded.release_memory()
        if len(jobs) > 1:
            return False
        jobs[0].failure = failure
        return True

    def _round(self, jobs: Sequence[Job]) -> None:
        """Raises what breaks it; a job that has its answer by then keeps it."""
        rows = [self._jobs.row(job, len(job.answers)) for job in jobs]
        prefill_s = self._now_s()
        drawn = draw_batch(
            self.loaded, rows, self._now_s, self.context.stop, self.context.step_seen
        )
        finished_s = self._now_s()
        first_token_s = finished_s if drawn.first_token_s is None else drawn.first_token_s
        for job, row in zip(jobs, rows, strict=True):
            if row.failure is not None:
                job.failure = row.failure
            elif row.end is not None:
                timing = RequestTiming(prefill_s, first_token_s, row.end.at_s, finished_s)
                job.add(len(job.answers), self._answers.answer(row), timing)
            elif not drawn.stopped:
                job.failure = Failure("engine_error", "generation ended before this answer did")

    def _now_s(self) -> float:
        return self.context.clock.now_s() - self.context.started_s
