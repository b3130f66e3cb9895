"""The verdict on an arrangement: who will be late, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, Bools, Floats, Ints, RequestColumns
from uellm_cli.timing.outcomes import Outcomes, begins_late, breaks_promise, finishes_late
from uellm_cli.timing.scenarios import lengths_at_level
from uellm_cli.timing.simulator import FOLLOWED, alone_seconds, simulate
from uellm_cli.types import Cause, ClassVerdict, Conditions, LateRequest, Spread, Verdict

LOW, HIGH = 0.1, 0.9


@dataclass(frozen=True, slots=True)
class Outlook:
    """An arrangement in several scenarios.

    `makespan_s` is [scenarios], `late` counts requests [scenarios, classes]. `share_late`
    [requests] and the moments `mean` are over the scenarios.
    """

    makespan_s: Floats
    late: Ints
    share_late: Floats
    mean: Outcomes

    @property
    def all_late(self) -> Ints:
        return np.asarray(self.late.sum(axis=1))


def outlook(
    columns: RequestColumns,
    arranged: Arrangement,
    scenarios: Iterable[Ints],
    conditions: Conditions,
    followed: int = FOLLOWED,
) -> Outlook:
    """Simulates the arrangement in each of `scenarios`, output tokens [requests].

    Raises ValueError without one.
    """
    runs = [
        (lengths, simulate(columns, arranged, lengths, conditions, followed))
        for lengths in scenarios
    ]
    if not runs:
        raise ValueError("an outlook stands on at least one scenario")
    late = [breaks_promise(columns, outcomes, lengths) for lengths, outcomes in runs]
    return Outlook(
        makespan_s=np.array([max(outcomes.makespan_s, conditions.start_s) for _, outcomes in runs]),
        late=np.array([_by_class(columns, each) for each in late]),
        share_late=np.mean(late, axis=0),
        mean=mean_of([outcomes for _, outcomes in runs]),
    )


def verdict_of(
    columns: RequestColumns, arranged: Arrangement, seen: Outlook, conditions: Conditions
) -> Verdict:
    """What to tell about an outlook of the same arrangement."""
    return Verdict(
        makespan_s=spread(seen.makespan_s),
        late=spread(seen.all_late),
        classes=tuple(
            _class_verdict(columns, seen, number) for number in range(len(columns.class_names))
        ),
        step_source=conditions.step.source,
        scenarios=len(seen.makespan_s),
        first_late=_first_late(columns, arranged, seen, conditions),
    )


def mean_of(runs: Sequence[Outcomes]) -> Outcomes:
    """The mean moments of each request; infinite for one that never runs."""
    return Outcomes(
        np.mean([outcomes.prefill_s for outcomes in runs], axis=0),
        np.mean([outcomes.first_token_s for outcomes in runs], axis=0),
        np.mean([outcomes.finished_s for outcomes in runs], axis=0),
    )


def spread(values: Floats | Ints) -> Spread:
    low, high = np.quantile(values, [LOW, HIGH])
    return Spread(float(np.mean(values)), float(low), float(high))


def _by_class(columns: RequestColumns, late: Bools) -> Ints:
    return np.bincount(columns.slo_class[late], minlength=len(columns.class_names))


def _class_verdict(columns: RequestColumns, seen: Outlook, number: int) -> ClassVerdict:
    members = columns.slo_class == number
    runs = members & np.isfinite(seen.mean.finished_s)
    return ClassVerdict(
        name=columns.class_names[number],
        requests=int(members.sum()),
        promised=int((members & columns.is_promised).sum()),
        late=spread(seen.late[:, number]),
        begin_s=float(seen.mean.prefill_s[runs].min()) if runs.any() else 0.0,
        end_s=float(seen.mean.finished_s[runs].max()) if runs.any() else 0.0,
    )


def _first_late(
    columns: RequestColumns, arranged: Arrangement, seen: Outlook, conditions: Conditions
) -> LateRequest | None:
    """The one due first of those that are more often late than not; else the most often late."""
    most = float(seen.share_late.max(initial=0.0))
    if most <= 0:
        return None
    late = np.flatnonzero(seen.share_late >= min(0.5, most))
    first = int(late[np.argmin(columns.due_s[late])])
    alone_s = alone_seconds(columns, lengths_at_level(columns, 0.5), conditions.step)
    own_end_s = conditions.start_s + float(alone_s[first])
    due_s = float(columns.due_s[first])
    return LateRequest(
        custom_id=columns.custom_ids[first],
        slo_class=columns.class_names[columns.slo_class[first]],
        cause=_cause(columns, first, first in arranged.oversized, own_end_s, seen.mean),
        share=float(seen.share_late[first]),
        due_s=_finite(due_s),
        begin_s=_finite(float(seen.mean.prefill_s[first])),
        end_s=_finite(float(seen.mean.finished_s[first])),
        alone_s=own_end_s,
    )


def _finite(seconds: float) -> float | None:
    return seconds if np.isfinite(seconds) else None


def _cause(
    columns: RequestColumns, row: int, is_oversized: bool, own_end_s: float, mean: Outcomes
) -> Cause:
    """Which promise is broken, and whether others have a part in it, by the mean moments."""
    if is_oversized:
        return Cause.NO_ROOM
    if own_end_s > columns.finish_by_s[row]:
        return Cause.ALONE
    if finishes_late(columns, mean)[row]:
        return Cause.QUEUED
    if begins_late(columns, mean)[row]:
        return Cause.BEGIN
    is_paced = bool(np.isfinite(columns.tpot_s[row]))
    return Cause.PACE if is_paced else Cause.QUEUED
