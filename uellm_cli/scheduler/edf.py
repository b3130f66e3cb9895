"""Earliest deadline first; a first token that is promised is a deadline too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm_cli.columns import Arrangement, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches
from uellm_cli.types import Conditions


@dataclass(frozen=True, slots=True)
class Edf:
    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        return cut_into_batches(columns, np.argsort(columns.due_s, kind="stable"), conditions)
