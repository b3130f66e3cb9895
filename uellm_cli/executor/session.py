"""One stretch of a run, from a start or a resume to its end: what is left to do, and its clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from uellm_cli.clock import Clock, VirtualClock
from uellm_cli.errors import RunDirectoryError
from uellm_cli.executor.execute import Encode, RunTimer
from uellm_cli.executor.journal import Record
from uellm_cli.executor.results import Work, not_run
from uellm_cli.models.tokens import PromptTokenizer
from uellm_cli.requests import request_hash
from uellm_cli.types import ModelSpec, ProfiledRequest, Request, Result, RunInfo


def unanswered(
    requests: Sequence[Request], profiled: Sequence[ProfiledRequest], records: Sequence[Record]
) -> dict[str, Work]:
    """The requests that the journal has no result for, by id.

    Raises RunDirectoryError when a result there answers another request than the one of its id.
    """
    texts = {request.custom_id: request for request in requests}
    done = {record.result.custom_id: record.request_hash for record in records}
    for custom_id, asked in done.items():
        if custom_id not in texts or request_hash(texts[custom_id]) != asked:
            raise RunDirectoryError(
                f"the journal's answer to {custom_id!r} is to another request than the input's; "
                "run anew in another directory"
            )
    return {
        known.custom_id: Work(texts[known.custom_id], known)
        for known in profiled
        if known.custom_id not in done
    }


def rows_of_unanswered(
    work: Mapping[str, Work], results: Sequence[Result], model: ModelSpec
) -> list[Result]:
    """Rows for what an interrupted run has left undone."""
    done = {result.custom_id for result in results}
    left = (member for custom_id, member in work.items() if custom_id not in done)
    return [not_run(member, model) for member in left]


def timer_of(info: RunInfo, clock: Clock, records: Sequence[Record]) -> RunTimer:
    """Time since the run's first start, on the clock that its engine lives by.

    Simulated time begins at 0, and for a resumed run where the last answer was.
    """
    if info.simulated:
        began_s = latest_s(records)
        clock = VirtualClock(info.started + timedelta(seconds=began_s))
        return RunTimer(clock, clock.now_s() - began_s, began_s)
    elapsed_s = (clock.wall() - info.started).total_seconds()
    began_s = elapsed_s if records else 0.0
    return RunTimer(clock, clock.now_s() - elapsed_s, began_s)


def latest_s(records: Sequence[Record]) -> float:
    """When the last answer was handed back, in seconds from the run's start; 0 without any."""
    timings = (record.result.timing for record in records)
    return max((timing.finished_s for timing in timings if timing is not None), default=0.0)


def encoder_of(info: RunInfo, tokenizer: PromptTokenizer) -> Encode:
    """Prompts as token ids; where nobody reads them, as many zeros."""
    if info.simulated:
        return lambda members: [(0,) * member.profiled.prompt_tokens for member in members]
    return lambda members: tokenizer.encode([member.request for member in members])
