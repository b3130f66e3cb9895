"""What would keep the promises that a plan breaks: found by asking the simulator.

Each remedy is tried alone, with requests by their latest begin, which keeps all promises if
that can be done: where even a plain order does, the scheduler's own will.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from uellm_cli.columns import Arrangement, Ints, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches, in_one_piece
from uellm_cli.scheduler.urgency import urgency_of
from uellm_cli.timing.fluid import fluid
from uellm_cli.timing.outcomes import breaks_promise
from uellm_cli.timing.simulator import simulate
from uellm_cli.types import Batching, Conditions, Remedy, RemedyKind

# A promise or two in a million may be broken in some scenario whatever is done.
NOBODY = 0.5
# More copies of the model than this are no remedy but another project.
MOST_COPIES = 16
# How finely time and caps are told: halvings of what is known to do.
HALVINGS = 7
LEVEL = 0.7


def remedies(
    columns: RequestColumns, scenarios: Sequence[Ints], conditions: Conditions
) -> tuple[Remedy, ...]:
    """Every single change that is enough, as small as it can be, for output tokens as drawn."""
    found = [
        _more_time(columns, scenarios, conditions),
        _more_devices(columns, scenarios, conditions),
        _shorter(columns, scenarios, conditions),
        _without_a_class(columns, scenarios, conditions),
    ]
    return tuple(remedy for remedy in found if remedy is not None)


def _late(columns: RequestColumns, scenarios: Sequence[Ints], conditions: Conditions) -> float:
    """Requests that are late on average."""
    arranged = _arranged(columns, conditions)
    return float(
        np.mean(
            [
                breaks_promise(
                    columns, simulate(columns, arranged, drawn, conditions, followed=0), drawn
                ).sum()
                for drawn in scenarios
            ]
        )
    )


def _arranged(columns: RequestColumns, conditions: Conditions) -> Arrangement:
    urgency = urgency_of(columns, fluid(columns, columns.at_level(LEVEL), conditions), conditions)
    order = np.lexsort((-columns.mean, urgency.latest_s))
    cut = in_one_piece if conditions.batching is Batching.IN_FLIGHT else cut_into_batches
    return cut(columns, order, conditions)


def _more_time(
    columns: RequestColumns, scenarios: Sequence[Ints], conditions: Conditions
) -> Remedy | None:
    """The least time that every deadline has to be put off by."""
    arranged = _arranged(columns, conditions)
    most_s = max(
        simulate(columns, arranged, drawn, conditions, followed=0).makespan_s for drawn in scenarios
    )

    def is_enough(seconds: float) -> bool:
        later = replace(
            columns,
            finish_by_s=columns.finish_by_s + seconds,
            first_token_by_s=columns.first_token_by_s + seconds,
        )
        return _late(later, scenarios, conditions) < NOBODY

    seconds = _least(is_enough, most_s)
    return None if seconds is None else Remedy(RemedyKind.TIME, seconds)


def _more_devices(
    columns: RequestColumns, scenarios: Sequence[Ints], conditions: Conditions
) -> Remedy | None:
    """The fewest copies of the model, each on devices like those there are."""
    copies = conditions.replicas * 2
    while copies <= MOST_COPIES:
        if _late(columns, scenarios, replace(conditions, replicas=copies)) < NOBODY:
            return Remedy(RemedyKind.DEVICES, copies)
        copies *= 2
    return None


def _shorter(
    columns: RequestColumns, scenarios: Sequence[Ints], conditions: Conditions
) -> Remedy | None:
    """The longest cap on output tokens under which all are in time."""
    longest = int(max(drawn.max() for drawn in scenarios))

    def is_enough(cut: float) -> bool:
        cap = max(1, longest - int(cut))
        capped = replace(columns, quantiles=np.minimum(columns.quantiles, cap))
        return _late(capped, [np.minimum(drawn, cap) for drawn in scenarios], conditions) < NOBODY

    cut = _least(is_enough, longest - 1)
    return None if cut is None else Remedy(RemedyKind.CAP, max(1, longest - int(cut)))


def _without_a_class(
    columns: RequestColumns, scenarios: Sequence[Ints], conditions: Conditions
) -> Remedy | None:
    """The class of least weight without which all others are in time."""
    if len(columns.class_names) < 2:
        return None
    weights = [
        columns.weight[columns.slo_class == c].mean() for c in range(len(columns.class_names))
    ]
    for number in np.argsort(weights, kind="stable").tolist():
        others = np.flatnonzero(columns.slo_class != number)
        rest = columns.take(others)
        if _late(rest, [drawn[others] for drawn in scenarios], conditions) < NOBODY:
            members = len(columns) - len(others)
            return Remedy(RemedyKind.CLASS, members, columns.class_names[number])
    return None


def _least(is_enough: Callable[[float], bool], most: float) -> float | None:
    """The least amount that is enough, to 1/128 of `most`; None where not even that is."""
    if most <= 0 or not is_enough(most):
        return None
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
