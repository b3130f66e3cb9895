"""What a schedule leads to when an engine runs it, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from uellm_cli.types import (
    Batch,
    ClassVerdict,
    ProfiledRequest,
    Schedule,
    StepTimes,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Moments of one static batch, in seconds from its own start."""

    first_token_s: float
    finished_s: float


def static_batch_times(
    prompt_tokens: Sequence[int], output_tokens: Sequence[int], step: StepTimes
) -> BatchTimes:
    """A left-padded batch: one prefill of all prompts, then decoding to the longest answer."""
    rows, longest_prompt = len(prompt_tokens), max(prompt_tokens)
    first_token_s = step.prefill_s(rows, longest_prompt)
    decoding_s = step.decode_s(rows, longest_prompt, max(output_tokens) - 1)
    return BatchTimes(first_token_s, first_token_s + decoding_s)


def simulate_static(
    batches: Sequence[Batch],
    requests: Mapping[str, ProfiledRequest],
    output_tokens: Callable[[ProfiledRequest], int],
    step: StepTimes,
    start_s: float = 0.0,
) -> dict[str, float]:
    """When each request is handed back, in seconds from the run's start, batch after batch.

    `start_s` is when the first batch can begin (the model is loaded by then).
    """
    finished: dict[str, float] = {}
    now_s = start_s
    for batch in batches:
        members = [requests[custom_id] for custom_id in batch.custom_ids]
        times = static_batch_times(
            [member.prompt_tokens for member in members],
            [output_tokens(member) for member in members],
            step,
        )
        # Requests that want several answers get them one after the other, each round a batch.
        now_s += times.finished_s * max(member.rounds for member in members)
        finished.update(dict.fromkeys(batch.custom_ids, now_s))
    return finished


def judge(
    schedule: Schedule,
    requests: Sequence[ProfiledRequest],
    step: StepTimes,
    start_s: float = 0.0,
) -> Verdict:
    """The verdict on a static schedule if every answer has its median predicted length.

    Requests that fit no batch count as late where they have a deadline.
    """
    by_id = {request.custom_id: request for request in requests}
    finished = simulate_static(schedule.batches, by_id, _median_tokens, step, start_s)
    late = [request for request in requests if _is_late(request, finished)]
    classes = {request.slo.name: [0, 0] for request in requests}
    for request in requests:
        classes[request.slo.name][0] += 1
    for request in late:
        classes[request.slo.name][1] += 1
    first_late = min(late, key=lambda request: request.finish_by_s or 0.0, default=None)
    return Verdict(
        makespan_s=max(finished.values(), default=start_s),
        late=len(late),
        classes=tuple(ClassVerdict(name, total, bad) for name, (total, bad) in classes.items()),
        step_source=step.source,
        first_late=first_late.custom_id if first_late else None,
    )


def alone_s(request: ProfiledRequest, output_tokens: int, step: StepTimes) -> float:
    """Seconds that a request would take with the engine to itself, for tokens over all answers."""
    each = max(round(output_tokens / request.rounds), 1)
    return static_batch_times([request.prompt_tokens], [each], step).finished_s * request.rounds


def _median_tokens(request: ProfiledRequest) -> int:
    return max(1, round(request.output.p50))


def _is_late(request: ProfiledRequest, finished: Mapping[str, float]) -> bool:
    due = request.finish_by_s
    return due is not None and finished.get(request.custom_id, float("inf")) > due
