"""Arrival order in full batches: what every other order is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.scheduler.batching import Anyone, cut_into_batches
from uellm_cli.types import Budget, ProfiledRequest, Schedule


@dataclass(frozen=True, slots=True)
class Fifo:
    def schedule(self, requests: Sequence[ProfiledRequest], budget: Budget) -> Schedule:
        ordered = sorted(requests, key=lambda request: request.arrival_s)
        return cut_into_batches("fifo", ordered, Anyone(), budget)
