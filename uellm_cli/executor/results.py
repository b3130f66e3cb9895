"""Results: what an engine handed back, joined with what was promised and predicted."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from uellm_cli.executor.todo import Work
from uellm_cli.report.blame import blame_for
from uellm_cli.requests.slo import INVALID_CLASS
from uellm_cli.timing.simulator import alone_s
from uellm_cli.types import (
    EXPIRED,
    Blame,
    Completion,
    Failure,
    InvalidRequest,
    ModelSpec,
    ProfiledRequest,
    Result,
    SourceLine,
    StepTimes,
)


@dataclass(frozen=True, slots=True)
class Session:
    """One stretch of a run, in seconds from the run's start.

    `began_s` is 0 for the first one and later for a resumed one; `loaded_s` is when the engine
    could begin.
    """

    began_s: float
    loaded_s: float


def finished(
    work: Work, completion: Completion, model: ModelSpec, step: StepTimes, session: Session
) -> Result:
    """The row of a request that the engine is done with."""
    result = replace(
        _row(work.profiled, completion, model),
        endpoint=work.request.endpoint,
        source=work.request.source,
    )
    return replace(result, blame=_blame(result, _alone_s(work.profiled, completion, step), session))


def _row(profiled: ProfiledRequest, completion: Completion, model: ModelSpec) -> Result:
    answers = profiled.rounds * profiled.copies
    longest = max((answer.output_tokens for answer in completion.answers), default=0)
    return Result(
        custom_id=profiled.custom_id,
        slo_class=profiled.slo.name,
        batch_id=completion.batch_id,
        prompt_tokens=profiled.prompt_tokens,
        predicted_tokens_p50=profiled.output.p50 * answers,
        predicted_tokens_p90=profiled.output.p90 * answers,
        output_tokens=completion.output_tokens,
        # Answers are made one after the other, so that one is in memory at a time.
        kv_bytes=model.kv_bytes(profiled.prompt_tokens + longest),
        deadline_s=_deadline_s(profiled),
        arrival_s=profiled.arrival_s,
        blame=Blame.NONE,
        ttft_slo_s=profiled.slo.ttft_s,
        tpot_slo_s=profiled.slo.tpot_s,
        timing=completion.timing,
        answers=completion.answers,
        finish_reason=completion.finish_reason,
        failure=completion.failure,
        copies=profiled.copies,
    )


def _blame(result: Result, own_s: float, session: Session) -> Blame:
    """The cause of a broken promise; `own_s` is what the request takes with the engine to itself.

    A request that would have been in time but for the pause before its session was interrupted.
    """
    loading_s = session.loaded_s - session.began_s
    blame = blame_for(result, alone_s=loading_s + own_s)
    if session.began_s == 0 or result.timing is None or blame in (Blame.NONE, Blame.INFEASIBLE):
        return blame
    without_pause = replace(result, arrival_s=result.arrival_s + session.began_s)
    kept = blame_for(without_pause, alone_s=None) is Blame.NONE
    return Blame.INTERRUPTED if kept else blame


def refused(invalid: InvalidRequest) -> Result:
    """The row of a line that is no request."""
    return Result(
        custom_id=invalid.custom_id or str(invalid.source),
        slo_class=INVALID_CLASS,
        batch_id=None,
        prompt_tokens=0,
        predicted_tokens_p50=None,
        predicted_tokens_p90=None,
        output_tokens=0,
        kv_bytes=0,
        deadline_s=None,
        arrival_s=0.0,
        blame=Blame.ERROR,
        failure=Failure(invalid.code, invalid.reason, invalid.field),
        source=invalid.source,
    )


def too_large(work: Work) -> Completion:
    """Stands for the engine's answer to a request that no batch within the budget can hold."""
    return Completion(
        custom_id=work.profiled.custom_id,
        batch_id=None,
        failure=Failure(
            "out_of_memory",
            f"its KV cache of {work.profiled.kv_bytes / 1e6:.1f} MB is more than the placement "
            "leaves for one request; use more devices or a lower max_tokens",
        ),
    )


def expired(work: Work) -> Completion:
    """Stands for the engine's answer to a request that is not run, since it would be late."""
    due_s = work.profiled.finish_by_s or 0.0
    return Completion(
        custom_id=work.profiled.custom_id,
        batch_id=None,
        failure=Failure(
            EXPIRED, f"its deadline, {due_s:.1f} s after the run's start, passed before it was run"
        ),
    )


def not_run(profiled: ProfiledRequest, model: ModelSpec) -> Result:
    """The row of a request that the run was stopped before; `--resume` answers it."""
    stopped = Failure(
        Blame.INTERRUPTED.value, "the run was stopped before this request was answered"
    )
    result = _row(profiled, Completion(profiled.custom_id, None, failure=stopped), model)
    return replace(result, blame=blame_for(result, alone_s=None))


def is_not_run(result: Result) -> bool:
    return result.failure is not None and result.failure.code == Blame.INTERRUPTED.value


def as_promised_now(result: Result, profiled: ProfiledRequest, source: SourceLine) -> Result:
    """A result that was kept, under the promise and from the line that its request has now.

    The cause of a broken promise is looked for again where the promise is another one.
    """
    slo = profiled.slo
    promise = (slo.name, _deadline_s(profiled), slo.ttft_s, slo.tpot_s)
    if promise == (result.slo_class, result.deadline_s, result.ttft_slo_s, result.tpot_slo_s):
        return replace(result, source=source)
    name, deadline_s, ttft_s, tpot_s = promise
    now = replace(
        result,
        source=source,
        slo_class=name,
        deadline_s=deadline_s,
        ttft_slo_s=ttft_s,
        tpot_slo_s=tpot_s,
    )
    return replace(now, blame=blame_for(now, alone_s=None))


def _deadline_s(profiled: ProfiledRequest) -> float | None:
    if profiled.slo.deadline_s is None:
        return None
    return (profiled.finish_by_s or 0.0) - profiled.arrival_s


def _alone_s(profiled: ProfiledRequest, completion: Completion, step: StepTimes) -> float:
    predicted_s = alone_s(profiled, completion.output_tokens // profiled.copies, step)
    timing = completion.timing
    if timing is None:
        return predicted_s
    # The time model may be off; what it took among others bounds what it takes alone.
    return min(predicted_s, timing.answered_s - timing.prefill_s)
