"""Longest expected answer first (Graham, 1969): no long one is left to run alone at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class Lpt:
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        return cut_into_batches(columns, np.argsort(-columns.mean, kind="stable"), conditions)
