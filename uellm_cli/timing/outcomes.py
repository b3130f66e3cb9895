"""When requests begin and end, and which promises that breaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Bools, Floats, Ints, RequestColumns


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Moments of each request [requests], in seconds from the run's start; never: infinite.

    `prefill_s` is when its first prompt is begun, `first_token_s` when its first token is there,
    `finished_s` when all its answers are handed back. `preemptions` counts rows that had to make
    room, over all requests.
    """

    prefill_s: Floats
    first_token_s: Floats
    finished_s: Floats
    preemptions: int = 0

    @property
    def makespan_s(self) -> float:
        """When the last of those that run is done; 0 where none does."""
        ended = self.finished_s[np.isfinite(self.finished_s)]
        return float(ended.max()) if len(ended) else 0.0


def never(requests: int) -> Outcomes:
    """Outcomes in which nobody has run yet."""
    return Outcomes(np.full(requests, np.inf), np.full(requests, np.inf), np.full(requests, np.inf))


def finishes_late(columns: RequestColumns, outcomes: Outcomes) -> Bools:
    """Those with a deadline that end after it, or never."""
    return (outcomes.finished_s > columns.finish_by_s) & np.isfinite(columns.finish_by_s)


def begins_late(columns: RequestColumns, outcomes: Outcomes) -> Bools:
    """Those whose first token comes too late."""
    due_s = columns.first_token_by_s
    return (outcomes.first_token_s > due_s) & np.isfinite(due_s)


def is_slow(columns: RequestColumns, outcomes: Outcomes, output_tokens: Ints) -> Bools:
    """Those whose tokens come too slowly, as reports judge it: (E2E - TTFT) / (n - 1)."""
    steps = np.maximum(output_tokens * columns.rounds - 1, 1)
    with np.errstate(invalid="ignore"):
        tpot_s = (outcomes.finished_s - outcomes.first_token_s) / steps
    return np.asarray((tpot_s > columns.tpot_s) & (output_tokens > 1))


def breaks_promise(columns: RequestColumns, outcomes: Outcomes, output_tokens: Ints) -> Bools:
    """[requests], whether any of its promises is broken; one that never runs breaks them all."""
    return (
        (columns.is_promised & np.isinf(outcomes.finished_s))
        | finishes_late(columns, outcomes)
        | begins_late(columns, outcomes)
        | is_slow(columns, outcomes, output_tokens)
    )
