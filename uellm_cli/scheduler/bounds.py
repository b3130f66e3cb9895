"""What no schedule can beat: lower bounds on the makespan and on how many are late.

Both hold for whatever order, by the work alone (PAPER.md, section 4): every step has a fixed cost,
at most all seats taken and at most the memory full, and every request its own cost in each of its
steps. Static batches pad, so their bounds are the same, only further away.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from uellm_cli.columns import Floats, Ints, RequestColumns
from uellm_cli.timing.simulator import alone_seconds
from uellm_cli.types import Conditions


def makespan_bound_s(columns: RequestColumns, output_tokens: Ints, conditions: Conditions) -> float:
    """The earliest end of all requests, in seconds from the run's start."""
    if not len(columns):
        return conditions.start_s
    steps = max(
        _steps_by_seats(columns, output_tokens, conditions).sum(),
        _steps_by_memory(columns, output_tokens, conditions).sum(),
    )
    own_s = _own_s(columns, output_tokens, conditions)
    together_s = conditions.step.fixed_s * float(steps) + float(own_s.sum())
    # Several answers to one request are made beside each other.
    longest_s = alone_seconds(columns, output_tokens, conditions.step) / columns.rounds
    return conditions.start_s + max(together_s, float(longest_s.max()))


def late_bound(columns: RequestColumns, output_tokens: Ints, conditions: Conditions) -> int:
    """The fewest requests that finish after their deadline.

    Those that alone are late are late in any company. Of the others, all that are in time have done
    their work by their deadlines; the most of them that can is Moore's and Hodgson's (1968) count.
    """
    due_s = columns.finish_by_s - conditions.start_s
    alone_s = alone_seconds(columns, output_tokens, conditions.step) / columns.rounds
    hopeless = np.isfinite(due_s) & (alone_s > due_s)
    work_s = conditions.step.fixed_s * _steps_by_seats(columns, output_tokens, conditions) + _own_s(
        columns, output_tokens, conditions
    )
    rest = np.flatnonzero(np.isfinite(due_s) & ~hopeless)
    return int(hopeless.sum()) + fewest_late(work_s[rest], due_s[rest])


def fewest_late(work_s: Floats, due_s: Floats) -> int:
    """The fewest late jobs on one machine that does one after the other."""
    taken: list[float] = []
    done_s = 0.0
    for job in np.argsort(due_s, kind="stable").tolist():
        heappush(taken, -float(work_s[job]))
        done_s += float(work_s[job])
        if done_s > due_s[job]:
            done_s += heappop(taken)
    return len(work_s) - len(taken)


def _steps_by_seats(columns: RequestColumns, output_tokens: Ints, conditions: Conditions) -> Floats:
    """[requests], each one's part in the steps, if all seats are taken all the time."""
    seats = conditions.budget.max_sequences * conditions.replicas
    return columns.rounds * output_tokens / seats


def _steps_by_memory(
    columns: RequestColumns, output_tokens: Ints, conditions: Conditions
) -> Floats:
    """[requests], each one's part in the steps, if the memory is full all the time.

    At its step t of o an answer holds its prompt and t - 1 tokens.
    """
    held = output_tokens * columns.prompt_tokens + output_tokens * (output_tokens - 1) / 2
    capacity = conditions.budget.kv_bytes * conditions.replicas
    return columns.rounds * held * columns.kv_token_bytes / max(capacity, 1)


def _own_s(columns: RequestColumns, output_tokens: Ints, conditions: Conditions) -> Floats:
    """[requests], what a request adds to the steps that it is in."""
    step, tokens, prompts = conditions.step, output_tokens, columns.prompt_tokens
    cached = (tokens - 1) * prompts + tokens * (tokens - 1) / 2
    own_s = (
        step.per_sequence_s * tokens
        + step.per_prefill_token_s * prompts
        + step.per_cached_token_s * cached
    )
    return np.asarray(columns.rounds * own_s / conditions.replicas)
