"""Arrival order in batches of a fixed size: what every other order is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.errors import UsageError
from uellm_cli.scheduler.batching import UpTo, cut_into_batches
from uellm_cli.types import Budget, ProfiledRequest, Schedule


@dataclass(frozen=True, slots=True)
class Fifo:
    batch_size: int = 10

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {self.batch_size}")

    def schedule(self, requests: Sequence[ProfiledRequest], budget: Budget) -> Schedule:
        ordered = sorted(requests, key=lambda request: request.arrival_s)
        return cut_into_batches("fifo", ordered, UpTo(self.batch_size), budget)
