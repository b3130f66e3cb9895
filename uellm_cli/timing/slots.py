"""In flight by arithmetic: as many slots as rows, each taking the next request when it is free.

In steps this is exact, whatever each of them takes, as long as a seat is all that a request waits
for: it enters at the step after the one in which a seat's last request ended. From when everybody
enters and leaves follow the rows, the prompts and the cached tokens of every step, and so its
seconds. A million requests take about a second.

Where memory is what requests wait for, there are as many slots as it holds requests on average,
which is near what the admission rule comes to; `in_flight` follows that rule itself. Prompts that
enter in one step are computed in it, even if they are more than one step's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np

from uellm_cli.columns import Arrangement, Floats, Ints, RequestColumns
from uellm_cli.timing.outcomes import Outcomes, never
from uellm_cli.types import Budget, Conditions


def simulate_slots(
    columns: RequestColumns, arranged: Arrangement, output_tokens: Ints, conditions: Conditions
) -> Outcomes:
    """When each request [requests] begins and ends; all are taken to be there from the start."""
    outcomes = never(len(columns))
    requests = np.repeat(arranged.order, columns.rounds[arranged.order])
    if not len(requests):
        return outcomes
    rows = rows_at_a_time(columns, requests, output_tokens, conditions.budget)
    prompts = columns.prompt_tokens[requests]
    prefill_steps = -(-prompts // conditions.most_step_tokens)
    taken = prefill_steps + output_tokens[requests] - 1
    enters = entering_steps(taken, rows * conditions.replicas)
    begin_s, drawn_s, end_s = _times(enters, prefill_steps, taken, prompts, conditions)
    # Of several answers the first one begins first and the last one ends it.
    np.minimum.at(outcomes.prefill_s, requests, begin_s)
    np.minimum.at(outcomes.first_token_s, requests, drawn_s)
    outcomes.finished_s[requests] = 0.0
    np.maximum.at(outcomes.finished_s, requests, end_s)
    return outcomes


def rows_at_a_time(
    columns: RequestColumns, requests: Ints, output_tokens: Ints, budget: Budget
) -> int:
    """How many of `requests` run together: the budget's rows, or what its memory holds on average.

    A request of prompt s and output o holds s + t tokens at its step t: o·s + o²/2 in all.
    """
    tokens = output_tokens[requests]
    prompts = columns.prompt_tokens[requests]
    price = columns.kv_token_bytes[requests]
    rows = min(budget.max_sequences, len(requests))
    largest = np.sort(price * (prompts + tokens))[-rows:]
    if largest.sum() <= budget.kv_bytes:
        return rows
    held = float((price * (tokens * prompts + tokens * tokens / 2)).sum())
    return max(1, min(rows, int(budget.kv_bytes * tokens.sum() / held)))


def entering_steps(taken: Ints, slots: int) -> Ints:
    """The step at which each request enters, if it takes so many steps and a free slot."""
    free = [0] * min(slots, len(taken))
    enters = []
    for steps in taken.tolist():
        enters.append(free[0])
        heapreplace(free, free[0] + steps)
    return np.array(enters, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Moments:
    """The steps at which anything changes, ascending; changes add up over them."""

    steps: Ints

    def sums(self, at: Ints, change: Floats | Ints) -> Floats:
        """[moments], all changes up to each."""
        return np.cumsum(np.bincount(at, weights=change, minlength=len(self.steps)))


def _times(
    enters: Ints, prefill_steps: Ints, taken: Ints, prompts: Ints, conditions: Conditions
) -> tuple[Floats, Floats, Floats]:
    """When each row is begun, has its first token and has ended, in seconds."""
    decodes, leaves = enters + prefill_steps, enters + taken
    steps, at = np.unique(np.concatenate([enters, decodes, leaves]), return_inverse=True)
    entered, decoding, left = np.split(at, 3)
    moments = _Moments(steps)
    ones = np.ones(len(enters))
    both = np.concatenate
    running = moments.sums(both([entered, left]), both([ones, -ones]))
    decoding_rows = moments.sums(both([decoding, left]), both([ones, -ones]))
    share = prompts / prefill_steps
    prefilled = moments.sums(both([entered, decoding]), both([share, -share]))
    # A row reads its prompt and all it has made: prompt + 1 in its first decode step, and one more
    # in each that follows.
    first = prompts + 1.0 - decodes
    cached = moments.sums(both([decoding, left]), both([first, -first])) + decoding_rows * steps
    step, replicas = conditions.step, conditions.replicas
    lasting = np.diff(steps, append=steps[-1])
    read = lasting * cached + decoding_rows * lasting * (lasting - 1) / 2
    seconds = lasting * (
        step.fixed_s
        + (step.per_sequence_s * running + step.per_prefill_token_s * prefilled) / replicas
    )
    seconds += step.per_cached_token_s * read / replicas
    begins = conditions.start_s + np.cumsum(seconds) - seconds
    return begins[entered], begins[decoding], begins[left]
