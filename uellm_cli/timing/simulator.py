"""What an arrangement leads to when engines run it: one entry for all ways to find out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from uellm_cli.columns import Arrangement, Floats, Ints, RequestColumns
from uellm_cli.timing.batches import batch_seconds, simulate_batches
from uellm_cli.timing.in_flight import simulate_in_flight
from uellm_cli.timing.outcomes import Outcomes
from uellm_cli.timing.slots import simulate_slots
from uellm_cli.types import Batching, Conditions, ProfiledRequest, StepTimes

# Up to so many requests are followed event by event, which takes some 150 µs each.
FOLLOWED = 400


def simulate(
    columns: RequestColumns,
    arranged: Arrangement,
    output_tokens: Ints,
    conditions: Conditions,
    followed: int = FOLLOWED,
) -> Outcomes:
    """When each request begins and ends [requests] if answers have `output_tokens` [requests].

    In flight up to `followed` answers are followed event by event, and those that come in while it
    runs always; a larger pile that is there from the start is worked out slot by slot.
    """
    if arranged.budget is not None:
        conditions = replace(conditions, budget=arranged.budget)
    if conditions.batching is Batching.STATIC:
        return simulate_batches(columns, arranged, output_tokens, conditions)
    arrives = bool((columns.arrival_s > conditions.start_s).any())
    if arrives or int(columns.rounds[arranged.order].sum()) <= followed:
        return simulate_in_flight(columns, arranged, output_tokens, conditions)
    return simulate_slots(columns, arranged, output_tokens, conditions)


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Moments of one static batch, in seconds from its own start."""

    first_token_s: float
    finished_s: float


def static_batch_times(
    prompt_tokens: Sequence[int], output_tokens: Sequence[int], step: StepTimes
) -> BatchTimes:
    """A left-padded batch: one prefill of all prompts, then decoding to the longest answer."""
    rows, longest_prompt = len(prompt_tokens), max(prompt_tokens)
    first_token_s = step.prefill_s(rows, longest_prompt)
    decoding_s = step.decode_s(rows, longest_prompt, max(output_tokens) - 1)
    return BatchTimes(first_token_s, first_token_s + decoding_s)


def alone_s(request: ProfiledRequest, output_tokens: int, step: StepTimes) -> float:
    """Seconds that a request would take with the engine to itself, for tokens over all answers."""
    each = max(round(output_tokens / request.rounds), 1)
    return static_batch_times([request.prompt_tokens], [each], step).finished_s * request.rounds


def alone_seconds(columns: RequestColumns, output_tokens: Ints, step: StepTimes) -> Floats:
    """Seconds [requests] that each would take with the engine to itself, answer after answer."""
    one_row = np.ones(len(columns), dtype=np.int64)
    _, once_s = batch_seconds(one_row, columns.prompt_tokens, output_tokens, step)
    return columns.rounds * once_s
