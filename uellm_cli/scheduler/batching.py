"""Cutting an order of requests into what engines take at a time, under a budget.

A static batch pads every prompt to its longest and runs every row to its longest answer, so its KV
cache is rows x (longest prompt + longest predicted answer). An algorithm that is about batches
brings a rule for when a request joins the open one; the budget is kept for it. In flight rows come
and go one by one: there an order is all that an algorithm decides, and a batch is a handful that
the engine takes together. It keeps the budget all the same: a model that cannot be served in flight
runs it as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from uellm_cli.columns import Arrangement, Bools, Floats, Ints, RequestColumns
from uellm_cli.types import Batching, Budget, Conditions


class JoinRule(Protocol):
    """When a request joins the open batch; requests are told by their rows in `RequestColumns`."""

    def opens(self, row: int) -> None:
        """A batch begins with this request."""
        ...

    def joins(self, row: int) -> bool:
        """Whether this one may join the open batch."""
        ...

    def added(self, row: int) -> None:
        """It has joined."""
        ...


class Anyone:
    """As many as the budget allows."""

    def opens(self, row: int) -> None:
        """Nothing to remember."""

    def joins(self, row: int) -> bool:
        return True

    def added(self, row: int) -> None:
        """Nothing to remember."""


class SameGroup:
    """Requests [requests] of the same group only."""

    def __init__(self, groups: Ints) -> None:
        self._groups = groups
        self._open = -1

    def opens(self, row: int) -> None:
        self._open = self._groups[row]

    def joins(self, row: int) -> bool:
        return bool(self._groups[row] == self._open)

    def added(self, row: int) -> None:
        """A group stays what it is."""


def cut_into_batches(
    columns: RequestColumns, ordered: Ints, conditions: Conditions, rule: JoinRule | None = None
) -> Arrangement:
    """Batches of consecutive requests; one that is over the budget alone goes to `oversized`."""
    whole = in_one_piece(columns, ordered, conditions)
    if rule is None or conditions.batching is Batching.IN_FLIGHT:
        rule = Anyone()
    starts = _starts(columns, whole.order, conditions.budget, rule)
    return replace(whole, starts=starts)


def in_one_piece(columns: RequestColumns, ordered: Ints, conditions: Conditions) -> Arrangement:
    """An order that is not cut yet: in flight that is all there is to simulate."""
    fits = fits_alone(columns, conditions.budget)[ordered]
    starts = np.zeros(min(1, int(fits.sum())), dtype=np.int64)
    return Arrangement(ordered[fits], starts, ordered[~fits])


def fits_alone(columns: RequestColumns, budget: Budget) -> Bools:
    """Whether each request [requests] has room at its 0.9 quantile with nothing beside it."""
    # kv_bytes counts whole tokens, so a lone row may exceed its product by rounding.
    return np.asarray(np.floor(columns.kv_bytes) <= budget.kv_bytes)


def padded_fits(prompts: Ints, answers: Floats, price: Floats, budget: Budget) -> bool:
    """Whether a static batch of these rows keeps the budget."""
    rows, longest = len(prompts), int(prompts.max())
    # The price of a token is the dearest member's; where layers keep only a window or a state,
    # padding costs less than that, never more.
    kv_bytes = int(rows * (longest + float(answers.max())) * float(price.max()))
    return (
        kv_bytes <= budget.kv_bytes
        and rows <= budget.max_sequences
        and (rows == 1 or rows * longest <= budget.prefill_tokens)
    )


def _starts(columns: RequestColumns, ordered: Ints, budget: Budget, rule: JoinRule) -> Ints:
    """Where batches begin, closing each as soon as the next request does not fit or join it."""
    prompts = columns.prompt_tokens[ordered].tolist()
    answers = columns.p90[ordered].tolist()
    prices = columns.kv_token_bytes[ordered].tolist()
    starts: list[int] = []
    rows, longest_prompt, longest_answer, dearest = 0, 0, 0.0, 0.0
    for place, row in enumerate(ordered.tolist()):
        prompt = max(longest_prompt, prompts[place])
        answer = max(longest_answer, answers[place])
        price = max(dearest, prices[place])
        has_room = (
            0 < rows < budget.max_sequences
            and int((rows + 1) * (prompt + answer) * price) <= budget.kv_bytes
            and (rows + 1) * prompt <= budget.prefill_tokens
        )
        if has_room and rule.joins(row):
            rule.added(row)
            rows, longest_prompt, longest_answer, dearest = rows + 1, prompt, answer, price
        else:
            rule.opens(row)
            starts.append(place)
            rows, longest_prompt = 1, prompts[place]
            longest_answer, dearest = answers[place], prices[place]
    return np.array(starts, dtype=np.int64)
