"""Static batches by arithmetic: each runs to its longest member, one after the other."""

from __future__ import annotations

from heapq import heapreplace

import numpy as np

from uellm_cli.columns import Arrangement, Floats, Ints, RequestColumns
from uellm_cli.timing.outcomes import Outcomes, never
from uellm_cli.types import Conditions, StepTimes


def batch_seconds(
    rows: Ints, longest_prompt: Ints, longest_answer: Ints, step: StepTimes
) -> tuple[Floats, Floats]:
    """Seconds [batches] of left-padded batches until their first token, and until their end.

    One prefill of all prompts, then decoding to the longest answer (`StepTimes.decode_s`).
    """
    steps = longest_answer - 1
    per_row_s = step.fixed_s + step.per_sequence_s * rows
    prefill_s = per_row_s + step.per_prefill_token_s * rows * longest_prompt
    cached = rows * (steps * longest_prompt + steps * (steps + 1) / 2)
    return prefill_s, prefill_s + steps * per_row_s + step.per_cached_token_s * cached


def simulate_batches(
    columns: RequestColumns, arranged: Arrangement, output_tokens: Ints, conditions: Conditions
) -> Outcomes:
    """When each request [requests] is handed back: with its batch.

    A batch begins when all its members have arrived, on the replica that is free first.
    """
    outcomes = never(len(columns))
    order, starts = arranged.order, arranged.starts
    if not len(order):
        return outcomes
    first_s, whole_s = batch_seconds(
        arranged.sizes,
        np.maximum.reduceat(columns.prompt_tokens[order], starts),
        np.maximum.reduceat(output_tokens[order], starts),
        conditions.step,
    )
    # Requests that want several answers get them one after the other, each round a batch.
    whole_s = whole_s * np.maximum.reduceat(columns.rounds[order], starts)
    begin_s = _begins(whole_s, np.maximum.reduceat(columns.arrival_s[order], starts), conditions)
    batch_of = arranged.batch_of
    outcomes.prefill_s[order] = begin_s[batch_of]
    outcomes.first_token_s[order] = (begin_s + first_s)[batch_of]
    outcomes.finished_s[order] = (begin_s + whole_s)[batch_of]
    return outcomes


def _begins(whole_s: Floats, arrived_s: Floats, conditions: Conditions) -> Floats:
    if conditions.replicas == 1 and arrived_s.max() <= conditions.start_s:
        return conditions.start_s + np.cumsum(whole_s) - whole_s
    free_s = [conditions.start_s] * conditions.replicas
    begins = []
    for arrived, seconds in zip(arrived_s.tolist(), whole_s.tolist(), strict=True):
        begins.append(max(free_s[0], arrived))
        heapreplace(free_s, begins[-1] + seconds)
    return np.array(begins)
