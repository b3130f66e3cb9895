"""Multi-bin batching (arXiv 2412.04504): requests wait in bins of like length for a full batch.

Bins have equal shares of the requests. Offline all are there at once: in arrival order each goes to
its bin, and a bin that has a batch's worth is sent off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, Ints, RequestColumns
from uellm_cli.scheduler.batching import SameGroup, cut_into_batches
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class MultiBin:
    """`bins` of them."""

    bins: int = 4

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"there is at least one bin, not {self.bins}")

    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        arrived = np.argsort(columns.arrival_s, kind="stable")
        sent = self._sent_with(columns, arrived, conditions.budget.max_sequences)
        ordered = arrived[np.argsort(sent[arrived], kind="stable")]
        return cut_into_batches(columns, ordered, conditions, SameGroup(sent))

    def _sent_with(self, columns: RequestColumns, arrived: Ints, rows: int) -> Ints:
        """[requests], by whom each one's batch is completed: a place in the order of arrival."""
        inner = np.linspace(0, 1, self.bins + 1)[1:-1]
        edges = np.quantile(columns.p50, inner) if len(columns) else inner
        bin_of = np.searchsorted(edges, columns.p50, side="right")
        sent = np.empty(len(columns), dtype=np.int64)
        for number in range(self.bins):
            places = np.flatnonzero(bin_of[arrived] == number)
            full = len(places) // rows * rows
            sent[arrived[places[:full]]] = np.repeat(places[rows - 1 : full : rows], rows)
            # What never fills a batch is sent when nobody comes any more, bin after bin.
            sent[arrived[places[full:]]] = len(columns) + number
        return sent
