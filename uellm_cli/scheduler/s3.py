"""S³ (arXiv 2306.06000): batches by decreasing first fit of predicted KV into the memory.

A length is predicted as a class, and a request gets the memory of its class's longest. In flight
the engine does what S³'s supervisor does: who outgrows its class makes others give way, and enters
again with more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, Floats, Ints, RequestColumns
from uellm_cli.scheduler.batching import SameGroup, cut_into_batches, fits_alone
from uellm_cli.types import Budget, Conditions


@dataclass(frozen=True, slots=True)
class S3:
    """Classes of length are `buckets` of equal width, up to the longest prediction."""

    buckets: int = 10

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ValueError(f"there is at least one class of length, not {self.buckets}")

    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        sizes = columns.kv_token_bytes * (columns.prompt_tokens + self._class_tokens(columns))
        # A class's longest may be more than there is; the request itself is not.
        sizes = np.minimum(sizes, conditions.budget.kv_bytes)
        decreasing = np.lexsort((columns.arrival_s, -sizes))
        fitting = decreasing[fits_alone(columns, conditions.budget)[decreasing]]
        bins = np.full(len(columns), -1, dtype=np.int64)
        bins[fitting] = first_fit(sizes[fitting], conditions.budget)
        ordered = decreasing[np.argsort(bins[decreasing], kind="stable")]
        return cut_into_batches(columns, ordered, conditions, SameGroup(bins))

    def _class_tokens(self, columns: RequestColumns) -> Floats:
        width = columns.p90.max(initial=1.0) / self.buckets
        return np.asarray(np.ceil(columns.p90 / width) * width)


def first_fit(sizes: Floats, budget: Budget) -> Ints:
    """The bin of each size, the first with room for it: `kv_bytes` and `max_sequences` of them.

    A tree of what is left in the bins below each node finds that in log n steps.
    """
    leaves = 1 << max(len(sizes) - 1, 0).bit_length()
    room = [float(budget.kv_bytes)] * (2 * leaves)
    seats = [budget.max_sequences] * leaves
    bins = []
    for size in sizes.tolist():
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= size else 2 * node + 1
        bins.append(node - leaves)
        seats[node - leaves] -= 1
        room[node] = room[node] - size if seats[node - leaves] else -1.0
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return np.array(bins, dtype=np.int64)
