"""The batching rules of UELLM, as published in code and as printed in the paper.

`Variant.CODE` follows the repository HYIUYOU/UELLM: one measure (output length or SLO), and a
request joins while (value - largest so far)·(size + 1)·1.2 stays within a threshold.
`Variant.PAPER` follows arXiv 2409.14961 on SLO-ODBS: a composite of latency and output length,
w1·T_l + w2·T_o, with T_l = Σ (SLO_i + L_CM)·(|batch| + 1)·L1 over the members and the candidate,
and T_o alike over lengths. The paper gives no values: they are options here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from uellm_cli.types import ProfiledRequest

Measure = Callable[[ProfiledRequest], float]


class Variant(StrEnum):
    CODE = "code"
    PAPER = "paper"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingOptions:
    """Options that the three algorithms share.

    `undated_s` stands for the deadline of a request that has none; whatever it is, those that have
    one come first. The published limit of ten a batch is the budget's `max_sequences`.
    """

    variant: Variant = Variant.CODE
    threshold: float = 15_000.0
    w1: float = 1.0
    w2: float = 0.5
    l1: float = 1.2
    l2: float = 1.2
    undated_s: float = 86_400.0

    def deadline_s(self, request: ProfiledRequest) -> float:
        due = request.finish_by_s
        return self.undated_s if due is None else due

    def by_deadline(self, request: ProfiledRequest) -> tuple[bool, float]:
        """A sort key."""
        return request.finish_by_s is None, self.deadline_s(request)


def predicted_tokens(request: ProfiledRequest) -> float:
    return request.output.p50


@dataclass(frozen=True, slots=True)
class LargestSoFar:
    """The published code's rule on one measure.

    The published loop keeps a running maximum that restarts with each batch; over consecutive
    requests that is the maximum over the open batch's members.
    """

    measure: Measure
    options: BatchingOptions

    def joins(self, candidate: ProfiledRequest, batch: Sequence[ProfiledRequest]) -> bool:
        largest = max(self.measure(member) for member in batch)
        growth = (self.measure(candidate) - largest) * (len(batch) + 1) * self.options.l1
        return growth <= self.options.threshold


@dataclass(frozen=True, slots=True)
class CompositeMetric:
    """The paper's rule; a weight of zero leaves its term out."""

    options: BatchingOptions
    w1: float
    w2: float

    def joins(self, candidate: ProfiledRequest, batch: Sequence[ProfiledRequest]) -> bool:
        options = self.options
        latency = _total(candidate, batch, options.deadline_s) * options.l1
        output = _total(candidate, batch, predicted_tokens) * options.l2
        metric = self.w1 * latency + self.w2 * output
        return metric <= options.threshold


def _total(candidate: ProfiledRequest, batch: Sequence[ProfiledRequest], measure: Measure) -> float:
    """Σ (value + largest of the open batch)·(|batch| + 1) over the members and the candidate."""
    largest = max(measure(member) for member in batch)
    values = [measure(member) for member in batch] + [measure(candidate)]
    return sum(value + largest for value in values) * (len(batch) + 1)
