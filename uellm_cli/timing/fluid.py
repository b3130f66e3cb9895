"""A run seen from afar: what a step takes on average while all seats are taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Floats, RequestColumns
from uellm_cli.timing.slots import rows_at_a_time
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class Fluid:
    """`seats` requests at a time over all replicas, steps of `step_s`, and seconds [requests].

    `seat_s` is how long each answer of a request keeps a seat, `first_s` until it has its first
    token; `work_s` is its part in the whole, which the seats share: their sum is the makespan of
    an order that leaves no seat empty.
    """

    seats: int
    step_s: float
    seat_s: Floats
    first_s: Floats
    work_s: Floats


def fluid(columns: RequestColumns, output_tokens: Floats, conditions: Conditions) -> Fluid:
    """The machine full of these requests, each with `output_tokens` [requests]."""
    budget, step = conditions.budget, conditions.step
    every = np.repeat(np.arange(len(columns)), columns.rounds)
    tokens = np.rint(output_tokens).astype(np.int64)
    rows = rows_at_a_time(columns, every, tokens, budget) if len(every) else 1
    prompts = columns.prompt_tokens
    prefill_steps = -(-prompts // conditions.most_step_tokens)
    taken = prefill_steps + output_tokens - 1
    cached = output_tokens * prompts + output_tokens * output_tokens / 2
    own_s = (
        step.per_sequence_s * taken
        + step.per_prefill_token_s * prompts
        + step.per_cached_token_s * cached
    )
    in_all = float((columns.rounds * taken).sum())
    # A replica's steps are shared by its rows: fixed costs once, their own one after the other.
    step_s = step.fixed_s + rows * float((columns.rounds * own_s).sum()) / max(in_all, 1.0)
    seats = rows * conditions.replicas
    return Fluid(
        seats=seats,
        step_s=step_s,
        seat_s=taken * step_s,
        first_s=np.asarray(prefill_steps * step_s, dtype=np.float64),
        work_s=columns.rounds * taken * step_s / seats,
    )
