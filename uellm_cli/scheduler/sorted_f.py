"""Sorted-F (arXiv 2508.06133): batches of least Σ output / size², one after the other.

Of a given size the best batch is that of the shortest answers, so each one is a stretch of the
requests sorted by length, as long as suits that quotient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, Ints, RequestColumns
from uellm_cli.scheduler.batching import SameGroup, cut_into_batches
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class SortedF:
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        ordered = np.argsort(columns.mean, kind="stable")
        groups = self._groups(columns, ordered, conditions.budget.max_sequences)
        return cut_into_batches(columns, ordered, conditions, SameGroup(groups))

    def _groups(self, columns: RequestColumns, ordered: Ints, rows: int) -> Ints:
        """[requests], the number of each one's batch."""
        tokens = columns.mean[ordered]
        groups = np.empty(len(columns), dtype=np.int64)
        first, number = 0, 0
        sizes = np.arange(1, rows + 1)
        while first < len(ordered):
            stretch = np.cumsum(tokens[first : first + rows])
            size = 1 + int(np.argmin(stretch / sizes[: len(stretch)] ** 2))
            groups[ordered[first : first + size]] = number
            first, number = first + size, number + 1
        return groups
