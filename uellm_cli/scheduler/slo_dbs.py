"""SLO-DBS: requests of like deadline share a batch, the most urgent first (UELLM)."""

from __future__ import annotations

from dataclasses import dataclass

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import JoinRule, cut_into_batches
from uellm_cli.scheduler.composite import BatchingOptions, CompositeMetric, LargestSoFar, Variant
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class SloDbs(BatchingOptions):
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        ordered = self.dated_first(columns, self.deadlines_s(columns))
        return cut_into_batches(columns, ordered, conditions, self._rule(columns))

    def _rule(self, columns: RequestColumns) -> JoinRule:
        if self.variant is Variant.CODE:
            return LargestSoFar(self.deadlines_s(columns), self)
        return CompositeMetric(columns, self, w1=self.w1, w2=0.0)
