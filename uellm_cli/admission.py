"""Who enters a batch that others are in already, so that all of them find room to end.

One rule for the simulator and for real engines. Sizes are in any unit of KV cache (pages, tokens,
bytes), as long as it is the same throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm_cli.types import LengthEstimate

# Answers outgrow their median half of the time, and nearly never all at once: with many rows their
# sum is close to the sum of their means, which for right-skewed lengths is above the median.
DEFAULT_LEVEL = 0.7


def expected_tokens(
    estimate: LengthEstimate | None, made: int, cap: int, level: float = DEFAULT_LEVEL
) -> int:
    """Tokens that an answer of at most `cap` will have in the end, after `made` of them.

    The quantile at `level` of those lengths that are still possible: what has been made already
    rules out every shorter one. The cap where nothing was predicted.
    """
    if estimate is None:
        return cap
    reached = _share_up_to(estimate, made)
    tokens = estimate.at(reached + level * (1 - reached))
    return max(min(made + 1, cap), min(cap, round(tokens)))


def _share_up_to(estimate: LengthEstimate, tokens: int) -> float:
    """The share of lengths that are at most `tokens`, by bisection of the quantiles."""
    if tokens < estimate.at(0.0):
        return 0.0
    low, high = 0.0, 1.0
    if estimate.at(1.0) <= tokens:
        return 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if estimate.at(middle) <= tokens:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Demand:
    """What rows hold now and how much each will grow before it ends, [rows] each."""

    held: NDArray[np.int64]
    growth: NDArray[np.int64]

    def with_row(self, held: int, growth: int) -> Demand:
        return Demand(np.append(self.held, held), np.append(self.growth, growth))


def peak(demand: Demand) -> int:
    """The most that will be held at any time, if every row grows by one unit a step and then ends.

    LightLLM's past-future rule (PAPER.md, section 4): when the row with the i-th largest growth
    r_i ends, the i rows with at least as much to go are left, each r_i larger than now. The peak is
    at one of these moments: max over i of (the sum of what the first i hold + i·r_i).
    """
    if not len(demand.held):
        return 0
    order = np.argsort(-demand.growth, kind="stable")
    held = np.cumsum(demand.held[order])
    count = np.arange(1, len(order) + 1)
    return int((held + count * demand.growth[order]).max())


def admits(demand: Demand, held: int, growth: int, capacity: int) -> bool:
    """Whether another row, of `held` and `growth`, may enter beside `demand`.

    A row that is alone always may: whether it fits at all is not a matter of order.
    """
    if not len(demand.held):
        return True
    # Often there is room for all even if none ever ends; that is cheaper to see.
    most = int(demand.held.sum() + demand.growth.sum()) + held + growth
    return most <= capacity or peak(demand.with_row(held, growth)) <= capacity
