"""Cutting an ordered list of requests into static batches under a budget.

A static batch pads every prompt to its longest and runs every row to its longest answer, so its KV
cache is rows x (longest prompt + longest predicted answer). Every algorithm cuts its order here:
it brings a rule for when a request joins the open batch; the budget is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm_cli.types import Batch, Budget, ProfiledRequest, Schedule


class JoinRule(Protocol):
    """When a request may join an open batch, which is never empty."""

    def joins(self, candidate: ProfiledRequest, batch: Sequence[ProfiledRequest]) -> bool: ...


@dataclass(frozen=True, slots=True)
class Anyone:
    """As many as the budget allows."""

    def joins(self, candidate: ProfiledRequest, batch: Sequence[ProfiledRequest]) -> bool:
        return True


def cut_into_batches(
    algorithm: str, ordered: Iterable[ProfiledRequest], rule: JoinRule, budget: Budget
) -> Schedule:
    """Batches of consecutive requests; one that is over the budget alone goes to `oversized`."""
    batches: list[list[ProfiledRequest]] = []
    footprint = _EMPTY
    oversized: list[str] = []
    for request in ordered:
        if not _EMPTY.with_row(request).within(budget):
            oversized.append(request.custom_id)
            continue
        grown = footprint.with_row(request)
        if batches and grown.within(budget) and rule.joins(request, batches[-1]):
            batches[-1].append(request)
            footprint = grown
        else:
            batches.append([request])
            footprint = _EMPTY.with_row(request)
    return Schedule(
        algorithm=algorithm,
        batches=tuple(
            Batch(i, tuple(request.custom_id for request in batch))
            for i, batch in enumerate(batches)
        ),
        oversized=tuple(oversized),
    )


@dataclass(frozen=True, slots=True)
class _Footprint:
    """The KV cache of a padded batch: its two maxima and the price of a token.

    The price is the dearest member's; where layers keep only a window or a state, padding costs
    less than that, never more.
    """

    rows: int
    longest_prompt: int
    longest_answer: float
    bytes_per_token: float

    def with_row(self, request: ProfiledRequest) -> _Footprint:
        answer = request.output.p90
        price = request.kv_bytes / (request.prompt_tokens + answer)
        return _Footprint(
            rows=self.rows + 1,
            longest_prompt=max(self.longest_prompt, request.prompt_tokens),
            longest_answer=max(self.longest_answer, answer),
            bytes_per_token=max(self.bytes_per_token, price),
        )

    def within(self, budget: Budget) -> bool:
        tokens_per_row = self.longest_prompt + self.longest_answer
        # kv_bytes counts whole tokens, so a lone row may exceed its product by rounding.
        kv_bytes = int(self.rows * tokens_per_row * self.bytes_per_token)
        return (
            kv_bytes <= budget.kv_bytes
            and self.rows <= budget.max_sequences
            and (self.rows == 1 or self.rows * self.longest_prompt <= budget.prefill_tokens)
        )


_EMPTY = _Footprint(rows=0, longest_prompt=0, longest_answer=0.0, bytes_per_token=0.0)
