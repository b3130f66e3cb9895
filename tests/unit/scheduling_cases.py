"""What tests of schedulers and simulators share: conditions, requests, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.builders import ONE_SECOND_STEPS, ROOMY
from uellm_cli.columns import Arrangement, RequestColumns, columns_of
from uellm_cli.scheduler import SCHEDULERS
from uellm_cli.types import Batching, Budget, Conditions, ProfiledRequest, Schedule, StepTimes

STATIC = Conditions(ROOMY, ONE_SECOND_STEPS, Batching.STATIC)
IN_FLIGHT = replace(STATIC, batching=Batching.IN_FLIGHT)


def conditions(
    batching: Batching, rows: int = 10, step: StepTimes = ONE_SECOND_STEPS, kv_bytes: int = 10**15
) -> Conditions:
    return Conditions(Budget(kv_bytes, rows, 10**9), step, batching)


def in_order(columns: RequestColumns, *sizes: int) -> Arrangement:
    """Requests as they are, in batches of these sizes; in one if none is given."""
    starts = np.cumsum([0, *sizes[:-1]]) if sizes else np.zeros(1, dtype=np.int64)
    return Arrangement(np.arange(len(columns)), starts, np.array([], dtype=np.int64))


def schedule(
    name: str,
    requests: Sequence[ProfiledRequest],
    under: Conditions = STATIC,
    **options: object,
) -> Schedule:
    """What a scheduler makes of requests."""
    columns = columns_of(requests)
    arranged = SCHEDULERS.build(name, options).arrange(columns, under)
    return arranged.named(name, columns.custom_ids)


def order_of(schedule: Schedule) -> list[str]:
    return [custom_id for batch in schedule.batches for custom_id in batch.custom_ids]
