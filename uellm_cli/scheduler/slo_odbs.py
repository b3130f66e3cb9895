"""SLO-ODBS: batches by deadline and output length together, UELLM's own algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import JoinRule, cut_into_batches
from uellm_cli.scheduler.composite import BatchingOptions, CompositeMetric, LargestSoFar, Variant
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class SloOdbs(BatchingOptions):
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        key = self.deadlines_s(columns)
        if self.variant is Variant.CODE:
            key = self.w1 * key + self.w2 * columns.p50
        ordered = self.dated_first(columns, key)
        return cut_into_batches(columns, ordered, conditions, self._rule(columns))

    def _rule(self, columns: RequestColumns) -> JoinRule:
        if self.variant is Variant.CODE:
            return LargestSoFar(columns.p50, self)
        return CompositeMetric(columns, self, w1=self.w1, w2=self.w2)
