"""S³ as UELLM's repository imitates it: shortest first, and few tokens of output a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from uellm_cli.columns import Arrangement, Floats, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class S3Uellm:
    """At most `total` predicted tokens and `most` requests a batch, as published."""

    total: float = 1024.0
    most: int = 20

    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        rows = min(self.most, conditions.budget.max_sequences)
        narrowed = replace(conditions, budget=replace(conditions.budget, max_sequences=rows))
        ordered = np.argsort(columns.p50, kind="stable")
        return cut_into_batches(columns, ordered, narrowed, TokensInAll(columns.p50, self.total))


class TokensInAll:
    """A batch of at most `limit` in the sum of `tokens` [requests]."""

    def __init__(self, tokens: Floats, limit: float) -> None:
        self._tokens = tokens.tolist()
        self._limit = limit
        self._sum = 0.0

    def opens(self, row: int) -> None:
        self._sum = self._tokens[row]

    def joins(self, row: int) -> bool:
        return bool(self._sum + self._tokens[row] <= self._limit)

    def added(self, row: int) -> None:
        self._sum += self._tokens[row]
