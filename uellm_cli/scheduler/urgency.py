"""Which requests can be in time, and the latest that each may begin.

In flight a request keeps a seat from its begin to its end, and seats are taken in order, so the
k-th begins when the work before it is done: about the sum of theirs, shared by all seats.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from uellm_cli.columns import Bools, Floats, Ints, RequestColumns
from uellm_cli.timing.fluid import Fluid
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class Urgency:
    """Seconds from when the engine can begin [requests].

    `latest_s` is the latest begin by which a request keeps its promises, infinite without any;
    `ahead_s` is by how much a seat is free before the work ahead is done with: others are half
    way through theirs.
    """

    latest_s: Floats
    work_s: Floats
    ahead_s: float

    def begins_s(self, order: Ints) -> Floats:
        """When each of `order` would begin [order]."""
        work_s = self.work_s[order]
        return np.maximum(np.cumsum(work_s) - work_s - self.ahead_s, 0.0)

    def margins_s(self, order: Ints) -> Floats:
        """By how much all may be put off from each place of `order` on, so that all are in time."""
        spare_s = self.latest_s[order] - self.begins_s(order)
        return np.minimum.accumulate(spare_s[::-1])[::-1]


def urgency_of(columns: RequestColumns, machine: Fluid, conditions: Conditions) -> Urgency:
    finish_s = columns.finish_by_s - conditions.start_s - machine.seat_s
    first_s = columns.first_token_by_s - conditions.start_s - machine.first_s
    busy = machine.seat_s.mean() / 2 if len(columns) else 0.0
    return Urgency(
        latest_s=np.minimum(finish_s, first_s),
        work_s=machine.work_s,
        ahead_s=float(busy) * (1 - 1 / machine.seats),
    )


def savable(urgency: Urgency, weight: Floats, promised: Ints) -> Bools:
    """Which of `promised`, in order of their latest begin, can be in time together [promised].

    Moore and Hodgson (1968): take each in turn; when one would begin too late, let go of the one
    that takes most for its weight among those taken so far. Exact for one machine and equal
    weights, a heuristic for others.
    """
    begins_s = urgency.begins_s(promised)
    latest_s = urgency.latest_s[promised]
    kept = np.ones(len(promised), dtype=np.bool_)
    if bool((begins_s <= latest_s).all()):
        return kept
    taken: list[tuple[float, int]] = []
    before_s = 0.0
    works, weights = urgency.work_s[promised].tolist(), weight[promised].tolist()
    for place, last_s in enumerate(latest_s.tolist()):
        if last_s < 0:
            kept[place] = False  # too late whatever is done
            continue
        heappush(taken, (-works[place] / max(weights[place], 1e-9), place))
        if before_s - urgency.ahead_s > last_s:
            _, dropped = heappop(taken)
            kept[dropped] = False
            before_s -= works[dropped]
        before_s += works[place]
    return kept


def woven(urgent: Ints, fillers: Ints, urgency: Urgency, share: float) -> Ints:
    """`urgent` in its order, with `fillers` in theirs before it as far as its margins allow.

    They use up to `share` of what each urgent one can wait; those that fit nowhere come last.
    """
    if not len(urgent) or not len(fillers):
        return np.concatenate([urgent, fillers])
    allowed_s = share * np.maximum(urgency.margins_s(urgent), 0.0)
    filled_s = np.cumsum(urgency.work_s[fillers])
    places = np.searchsorted(allowed_s, filled_s)
    return np.insert(urgent, places, fillers)
