"""The loop: batches go to the engine in the schedule's order, results come back and are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from uellm_cli.clock import Clock
from uellm_cli.config import OnLate
from uellm_cli.errors import EngineError
from uellm_cli.executor.learning import Learner
from uellm_cli.executor.outputs import ResultSink
from uellm_cli.executor.progress import Before, Meter, Progress
from uellm_cli.executor.records import Record
from uellm_cli.executor.results import Session, expired, finished, too_large
from uellm_cli.executor.stop import Stop
from uellm_cli.executor.todo import Todo, Work
from uellm_cli.types import (
    Completion,
    Engine,
    EngineBatch,
    EngineRequest,
    Plan,
    Schedule,
    StepTimes,
)

# The token ids of requests, in order.
Encode = Callable[[Sequence[Work]], Sequence[Sequence[int]]]


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


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a session is run, beside its plan.

    `total` is how many lines the run has, of which `before` were done when the session began.
    `on_progress` is called often, with a way to find out where the run stands: that takes a while.
    `learner` may have what waits done in another order; None leaves it to the plan. `step_times`
    says what steps are known to take by now; None for what the plan counts on.
    """

    timer: RunTimer
    stop: Stop
    on_progress: Callable[[Callable[[], Progress]], None]
    total: int
    before: Before
    on_late: OnLate = OnLate.RUN
    learner: Learner | None = None
    step_times: Callable[[], StepTimes] | None = None


def execute(
    plan: Plan, todo: Todo, encode: Encode, engine: Engine, sink: ResultSink, conduct: Conduct
) -> None:
    """Answers every request of the plan; `sink` has their results afterwards.

    What has been answered is kept before the engine is given more to do. Returns early when a stop
    is asked for; raises EngineError when the engine ends without having handed back all that it
    was given.
    """
    timer, stop, learner = conduct.timer, conduct.stop, conduct.learner
    session = Session(timer.began_s, timer.elapsed_s())
    step_times = conduct.step_times or (lambda: plan.step_times)
    waiting = deque(plan.schedule.batches)
    meter = Meter(waiting, todo.profiled, conduct.total, conduct.before, session.loaded_s)
    owed: dict[str, Work] = {}

    def keep(work: Work, completion: Completion, in_order: bool = True) -> None:
        result = finished(work, completion, plan.model, step_times(), session)
        stands = sink.add(Record(work.key, result))
        meter.count(result, in_order, stands)

    def commit() -> None:
        sink.commit()
        conduct.on_progress(lambda: meter.progress(timer.elapsed_s()))

    def refuse(oversized: Sequence[str]) -> None:
        if learner is not None:
            learner.dropped(oversized)
        for custom_id in oversized:
            work = todo[custom_id]
            keep(work, too_large(work), in_order=False)

    def revise(schedule: Schedule) -> None:
        waiting.clear()
        waiting.extend(schedule.batches)
        refuse(schedule.oversized)
        meter.begin_anew(list(owed), waiting, todo.profiled, timer.elapsed_s())

    def pulled() -> Iterator[EngineBatch]:
        while waiting:
            commit()
            if stop():
                return
            if learner is not None and (schedule := learner.revised(waiting)):
                revise(schedule)
                continue
            if learner is not None and learner.waits() and owed:
                return
            batch = waiting.popleft()
            members = [todo[custom_id] for custom_id in batch.custom_ids]
            if conduct.on_late is OnLate.SKIP:
                now_s = timer.elapsed_s()
                gone = [work for work in members if _is_past_due(work, now_s)]
                for work in gone:
                    keep(work, expired(work))
                if learner is not None:
                    learner.dropped(work.profiled.custom_id for work in gone)
                members = [work for work in members if not _is_past_due(work, now_s)]
            if members:
                owed.update((work.profiled.custom_id, work) for work in members)
                if learner is not None:
                    learner.given(members)
                yield EngineBatch(batch.batch_id, _engine_requests(members, encode))

    refuse(plan.schedule.oversized)
    left = len(waiting) + 1
    while waiting and len(waiting) != left and not stop():
        left = len(waiting)
        for completion in engine.run(pulled()):
            work = owed.pop(completion.custom_id)
            keep(work, completion)
            if learner is not None:
                learner.answered(work, completion)
        commit()
        if owed:
            break
    unanswered = [*owed, *(name for batch in waiting for name in batch.custom_ids)]
    if unanswered and not stop():
        raise EngineError(
            f"the engine ended without an answer to {len(unanswered)} requests, "
            f"{min(unanswered)!r} among them; --resume asks for them again"
        )


def _is_past_due(work: Work, now_s: float) -> bool:
    """Whether nobody waits for it any more; what is asked for again is wanted late, too."""
    due_s = work.profiled.finish_by_s
    return due_s is not None and due_s <= now_s and not work.again


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
