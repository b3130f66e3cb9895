"""Morphling (SoCC '21): stress trials tune the configuration, then requests run as they come.

A configuration here is how many requests run at a time and how many prompt tokens a step computes.
A trial runs the first requests with one; the fastest wins. Trials are simulated with the step-time
model, and what they would take on the machine is told apart (`Arrangement.tuning_s`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches
from uellm_cli.scheduler.fifo import Fifo
from uellm_cli.timing.scenarios import lengths_at_level
from uellm_cli.timing.simulator import simulate
from uellm_cli.types import Batching, Budget, Conditions

MOST_TRIALS = 30
# Steps of so many prompt tokens, as parts of what one pass has room for.
STEP_PARTS = (1.0, 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Morphling:
    """At most `trials` trials, of `stress` requests each."""

    trials: int = MOST_TRIALS
    stress: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.trials <= MOST_TRIALS:
            raise ValueError(f"between 1 and {MOST_TRIALS} trials, not {self.trials}")
        if self.stress < 1:
            raise ValueError(f"a trial runs at least one request, not {self.stress}")

    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        sample = columns.take(np.argsort(columns.arrival_s, kind="stable")[: self.stress])
        best, best_s, tuning_s = conditions.budget, np.inf, 0.0
        for budget in self._configurations(conditions):
            seconds = _trial_s(sample, replace(conditions, budget=budget, start_s=0.0))
            tuning_s += seconds
            if seconds < best_s:
                best, best_s = budget, seconds
        arranged = Fifo().arrange(columns, replace(conditions, budget=best))
        return replace(arranged, budget=best, tuning_s=tuning_s)

    def _configurations(self, conditions: Conditions) -> list[Budget]:
        """The largest first: of two that are as fast, the one with more at a time is kept."""
        budget, is_static = conditions.budget, conditions.batching is Batching.STATIC
        step_tokens = budget.prefill_tokens if is_static else conditions.most_step_tokens
        rows = [budget.max_sequences]
        while rows[-1] > 1:
            rows.append(rows[-1] // 2)
        tried = [
            replace(budget, max_sequences=many, prefill_tokens=max(1, int(part * step_tokens)))
            for many, part in product(rows, STEP_PARTS)
        ]
        return tried[: self.trials]


def _trial_s(sample: RequestColumns, conditions: Conditions) -> float:
    """Seconds that the sample takes, if answers are as long as expected."""
    at_once = replace(sample, arrival_s=np.zeros(len(sample)))
    arranged = cut_into_batches(at_once, np.arange(len(sample)), conditions)
    lengths = lengths_at_level(at_once, 0.5)
    return simulate(at_once, arranged, lengths, conditions).makespan_s
