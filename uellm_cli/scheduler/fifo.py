"""Arrival order: what every other order is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class Fifo:
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        ordered = np.argsort(columns.arrival_s, kind="stable")
        return cut_into_batches(columns, ordered, conditions)
