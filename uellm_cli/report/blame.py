"""Why a promise was broken.

The first cause that holds is named, from the least to the most avoidable:

1. `error`, or the failure's own cause where its code is one: there is no answer.
2. `none`: the promise was kept, or there was none.
3. `infeasible`: alone on the machine from the start it would have been late too.
4. `straggler`: its own last token was in time, the longest member of its batch was not.
5. `mispredicted`: it ran past its predicted p90, and would have been in time at that length.
6. `preempted`: it lost its memory to others on the way, and was computed again.
7. `queued`: everything else. It waited behind others or shared the device with them.

Not told apart here: how much of a wait came from loading and how much from other requests.
"""

from __future__ import annotations

from msgspec.structs import replace

from uellm_cli.report.rows import request_latency, slo_met
from uellm_cli.types import EXPIRED, Blame, Failure, RequestTiming, Result

_CAUSES_OF_FAILURE = {
    EXPIRED: Blame.EXPIRED,
    "interrupted": Blame.INTERRUPTED,
    "out_of_memory": Blame.OUT_OF_MEMORY,
}


def blame_for(result: Result, alone_s: float | None) -> Blame:
    """The cause of `result`'s broken promise; the `blame` it carries is not read.

    `alone_s` is the time from the request's start to its answer if nothing else ran, what is left
    of loading included; None if unknown.
    """
    if result.failure is not None:
        return _failure_blame(result.failure)
    timing = result.timing
    if timing is None:
        return Blame.ERROR
    if _keeps_promise(result, timing):
        return Blame.NONE
    if alone_s is not None and result.deadline_s is not None and alone_s > result.deadline_s:
        return Blame.INFEASIBLE
    if _keeps_promise(result, replace(timing, finished_s=timing.answered_s)):
        return Blame.STRAGGLER
    if _late_by_its_length(result, timing):
        return Blame.MISPREDICTED
    return Blame.PREEMPTED if timing.preemptions else Blame.QUEUED


def _failure_blame(failure: Failure) -> Blame:
    return _CAUSES_OF_FAILURE.get(failure.code, Blame.ERROR)


def _keeps_promise(result: Result, timing: RequestTiming) -> bool:
    latency = request_latency(timing, result.arrival_s, result.made_tokens)
    return slo_met(result, latency) is not False


def _late_by_its_length(result: Result, timing: RequestTiming) -> bool:
    """Whether stopping at the predicted p90 would have kept the deadline, at its own pace."""
    if result.deadline_s is None or result.predicted_tokens_p90 is None:
        return False
    p90, n = result.predicted_tokens_p90 / result.copies, result.made_tokens
    if n <= max(p90, 1):
        return False
    seconds_per_token = (timing.answered_s - timing.first_token_s) / (n - 1)
    answered_at_p90_s = timing.first_token_s + seconds_per_token * (max(p90, 1) - 1)
    return answered_at_p90_s - result.arrival_s <= result.deadline_s
