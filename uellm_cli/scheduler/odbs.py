"""ODBS: requests of like output length share a batch (UELLM)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import JoinRule, cut_into_batches
from uellm_cli.scheduler.composite import BatchingOptions, CompositeMetric, LargestSoFar, Variant
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Odbs(BatchingOptions):
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        ordered = np.argsort(columns.p50, kind="stable")
        return cut_into_batches(columns, ordered, conditions, self._rule(columns))

    def _rule(self, columns: RequestColumns) -> JoinRule:
        if self.variant is Variant.CODE:
            return LargestSoFar(columns.p50, self)
        return CompositeMetric(columns, self, w1=0.0, w2=self.w2)
