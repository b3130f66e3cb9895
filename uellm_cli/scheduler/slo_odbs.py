"""SLO-ODBS: batches by deadline and output length together, UELLM's own algorithm."""

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
class SloOdbs(BatchingOptions):
    def schedule(self, requests: Sequence[ProfiledRequest], budget: Budget) -> Schedule:
        ordered = sorted(requests, key=self._sort_key)
        return cut_into_batches("slo-odbs", ordered, self._rule(), budget)

    def _sort_key(self, request: ProfiledRequest) -> tuple[bool, float]:
        undated, deadline_s = self.by_deadline(request)
        if self.variant is Variant.PAPER:
            return undated, deadline_s
        return undated, self.w1 * deadline_s + self.w2 * predicted_tokens(request)

    def _rule(self) -> JoinRule:
        if self.variant is Variant.CODE:
            return LargestSoFar(predicted_tokens, self)
        return CompositeMetric(self, w1=self.w1, w2=self.w2)
