"""ODBS: requests of like output length share a batch (UELLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.scheduler.batching import JoinRule, cut_into_batches
from uellm_cli.scheduler.composite import (
    BatchingOptions,
    CompositeMetric,
    LargestSoFar,
    Variant,
    predicted_tokens,
)
from uellm_cli.types import Budget, ProfiledRequest, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Odbs(BatchingOptions):
    def schedule(self, requests: Sequence[ProfiledRequest], budget: Budget) -> Schedule:
        ordered = sorted(requests, key=predicted_tokens)
        return cut_into_batches("odbs", ordered, self._rule(), budget)

    def _rule(self) -> JoinRule:
        if self.variant is Variant.CODE:
            return LargestSoFar(predicted_tokens, self)
        return CompositeMetric(self, w1=0.0, w2=self.w2)
