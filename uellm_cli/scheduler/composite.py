"""The batching rules of UELLM, as published in code and as printed in the paper.

`Variant.CODE` follows the repository HYIUYOU/UELLM: one measure (output length or SLO), and a
request joins while (value - largest so far)·(size + 1)·1.2 stays within a threshold.
`Variant.PAPER` follows arXiv 2409.14961 on SLO-ODBS: a composite of latency and output length,
w1·T_l + w2·T_o, with T_l = Σ (SLO_i + L_CM)·(|batch| + 1)·L1 over the members and the candidate,
and T_o alike over lengths. The paper gives no values: they are options here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from uellm_cli.columns import Floats, Ints, RequestColumns


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

    def deadlines_s(self, columns: RequestColumns) -> Floats:
        due_s = columns.finish_by_s
        return np.where(np.isfinite(due_s), due_s, self.undated_s)

    def dated_first(self, columns: RequestColumns, key: Floats) -> Ints:
        """Requests by `key`, those with a deadline before those without."""
        return np.lexsort((key, ~np.isfinite(columns.finish_by_s)))


class LargestSoFar:
    """The published code's rule on one measure [requests].

    The published loop keeps a running maximum that restarts with each batch; over consecutive
    requests that is the maximum over the open batch's members.
    """

    def __init__(self, measure: Floats, options: BatchingOptions) -> None:
        self._measure = measure.tolist()
        self._options = options
        self._largest, self._size = 0.0, 0

    def opens(self, row: int) -> None:
        self._largest, self._size = self._measure[row], 1

    def joins(self, row: int) -> bool:
        growth = (self._measure[row] - self._largest) * (self._size + 1) * self._options.l1
        return bool(growth <= self._options.threshold)

    def added(self, row: int) -> None:
        self._largest = max(self._largest, self._measure[row])
        self._size += 1


class CompositeMetric:
    """The paper's rule on deadlines and lengths; a weight of zero leaves its term out."""

    def __init__(
        self, columns: RequestColumns, options: BatchingOptions, w1: float, w2: float
    ) -> None:
        self._options = options
        self._latency = _Total(options.deadlines_s(columns), w1 * options.l1)
        self._output = _Total(columns.p50, w2 * options.l2)

    def opens(self, row: int) -> None:
        self._latency.opens(row)
        self._output.opens(row)

    def joins(self, row: int) -> bool:
        metric = self._latency.with_(row) + self._output.with_(row)
        return bool(metric <= self._options.threshold)

    def added(self, row: int) -> None:
        self._latency.added(row)
        self._output.added(row)


class _Total:
    """Σ (value + largest of the open batch)·(|batch| + 1)·factor over members and candidate."""

    def __init__(self, values: Floats, factor: float) -> None:
        self._values = values.tolist()
        self._factor = factor
        self._sum, self._largest, self._size = 0.0, 0.0, 0

    def opens(self, row: int) -> None:
        self._sum = self._largest = self._values[row]
        self._size = 1

    def with_(self, row: int) -> float:
        size = self._size + 1
        total = self._sum + self._values[row] + size * self._largest
        return float(total * size * self._factor)

    def added(self, row: int) -> None:
        self._sum += self._values[row]
        self._largest = max(self._largest, self._values[row])
        self._size += 1
