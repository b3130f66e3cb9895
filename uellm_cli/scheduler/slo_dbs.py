"""SLO-DBS: requests of like deadline share a batch, the most urgent first (UELLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.scheduler.batching import JoinRule, cut_into_batches
from uellm_cli.scheduler.composite import (
    BatchingOptions,
    CompositeMetric,
    LargestSoFar,
    Variant,
)
from uellm_cli.types import Budget, ProfiledRequest, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class SloDbs(BatchingOptions):
    def schedule(self, requests: Sequence[ProfiledRequest], budget: Budget) -> Schedule:
        ordered = sorted(requests, key=self.by_deadline)
        return cut_into_batches("slo-dbs", ordered, self._rule(), budget)

    def _rule(self) -> JoinRule:
        if self.variant is Variant.CODE:
            return LargestSoFar(self.deadline_s, self)
        return CompositeMetric(self, w1=self.w1, w2=0.0)
