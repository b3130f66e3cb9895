"""The loop: batches go to the engine in the schedule's order, results come back and are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from uellm_cli.clock import Clock
from uellm_cli.executor.journal import Record
from uellm_cli.executor.results import Work, finished, too_large
from uellm_cli.executor.run_directory import ResultFiles
from uellm_cli.models.tokens import PromptTokenizer
from uellm_cli.requests import request_hash
from uellm_cli.types import Completion, Engine, EngineBatch, EngineRequest, Plan, Result


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; told after every batch."""

    total: int
    answered: int
    failed: int
    output_tokens: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class RunTimer:
    """Seconds since a run's start, which is at `started_s` on the clock."""

    clock: Clock
    started_s: float

    def elapsed_s(self) -> float:
        return self.clock.now_s() - self.started_s


def execute(
    plan: Plan,
    work: Mapping[str, Work],
    tokenizer: PromptTokenizer,
    engine: Engine,
    files: ResultFiles,
    timer: RunTimer,
    on_progress: Callable[[Progress], None],
) -> None:
    """Answers every request of the plan; `files` has their results afterwards.

    What has been answered is durable before the engine is given more to do.
    """
    loaded_s = timer.elapsed_s()
    tally = _Tally()

    def keep(completion: Completion) -> None:
        member = work[completion.custom_id]
        result = finished(member, completion, plan.model, plan.step_times, loaded_s)
        files.add(Record(request_hash(member.request), result))
        tally.count(result)

    def commit() -> None:
        files.commit()
        counts = (tally.answered, tally.failed, tally.output_tokens)
        on_progress(Progress(len(work), *counts, timer.elapsed_s()))

    def batches() -> Iterator[EngineBatch]:
        for batch in plan.schedule.batches:
            commit()
            members = [work[custom_id] for custom_id in batch.custom_ids]
            yield EngineBatch(batch.batch_id, _engine_requests(members, tokenizer))

    for custom_id in plan.schedule.oversized:
        keep(too_large(work[custom_id]))
    for completion in engine.run(batches()):
        keep(completion)
    commit()


@dataclass(slots=True)
class _Tally:
    answered: int = 0
    failed: int = 0
    output_tokens: int = 0

    def count(self, result: Result) -> None:
        if result.failure is None:
            self.answered += 1
            self.output_tokens += result.output_tokens
        else:
            self.failed += 1


def _engine_requests(members: list[Work], tokenizer: PromptTokenizer) -> tuple[EngineRequest, ...]:
    ids = tokenizer.encode([member.request for member in members])
    return tuple(
        EngineRequest(
            custom_id=member.profiled.custom_id,
            prompt_token_ids=tuple(prompt),
            max_tokens=member.profiled.max_tokens,
            sampling=member.request.sampling,
            output=member.profiled.output,
        )
        for member, prompt in zip(members, ids, strict=True)
    )
