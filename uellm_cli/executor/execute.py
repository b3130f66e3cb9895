"""The loop: batches go to the engine in the schedule's order, results come back and are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from uellm_cli.clock import Clock
from uellm_cli.errors import EngineError
from uellm_cli.executor.journal import Record
from uellm_cli.executor.results import Session, Work, finished, too_large
from uellm_cli.executor.run_directory import ResultFiles
from uellm_cli.requests import request_hash
from uellm_cli.types import Completion, Engine, EngineBatch, EngineRequest, Plan, Result

# The token ids of requests, in order.
Encode = Callable[[Sequence[Work]], Sequence[Sequence[int]]]


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
    """Seconds since a run's start, which is at `started_s` on the clock.

    `began_s` is when this session of it began: 0, or later for a resumed run.
    """

    clock: Clock
    started_s: float
    began_s: float

    def elapsed_s(self) -> float:
        return self.clock.now_s() - self.started_s


def execute(
    plan: Plan,
    work: Mapping[str, Work],
    encode: Encode,
    engine: Engine,
    files: ResultFiles,
    timer: RunTimer,
    on_progress: Callable[[Progress], None],
) -> None:
    """Answers every request of the plan; `files` has their results afterwards.

    What has been answered is durable before the engine is given more to do. Raises EngineError
    when the engine ends without having handed back all that it was given.
    """
    session = Session(timer.began_s, timer.elapsed_s())
    tally = _Tally()
    owed: set[str] = set()

    def keep(completion: Completion) -> None:
        member = work[completion.custom_id]
        result = finished(member, completion, plan.model, plan.step_times, session)
        files.add(Record(request_hash(member.request), result))
        tally.count(result)
        owed.discard(completion.custom_id)

    def commit() -> None:
        files.commit()
        counts = (tally.answered, tally.failed, tally.output_tokens)
        on_progress(Progress(len(work), *counts, timer.elapsed_s()))

    def batches() -> Iterator[EngineBatch]:
        for batch in plan.schedule.batches:
            commit()
            owed.update(batch.custom_ids)
            members = [work[custom_id] for custom_id in batch.custom_ids]
            yield EngineBatch(batch.batch_id, _engine_requests(members, encode))

    for custom_id in plan.schedule.oversized:
        keep(too_large(work[custom_id]))
    for completion in engine.run(batches()):
        keep(completion)
    commit()
    if owed:
        raise EngineError(
            f"the engine ended without an answer to {len(owed)} requests, {min(owed)!r} among "
            "them; --resume asks for them again"
        )


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


def _engine_requests(members: list[Work], encode: Encode) -> tuple[EngineRequest, ...]:
    ids = encode(members)
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
