from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.builders import profiled
from uellm_cli.columns import Arrangement, columns_of, one_after_another
from uellm_cli.types import QUANTILE_LEVELS, SLO, Budget, LengthEstimate

SPREAD = LengthEstimate((1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0), "test")


def rows(*numbers: int) -> np.typing.NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def test_requests_keep_their_order_and_promises_as_columns() -> None:
    columns = columns_of(
        [
            profiled("a", deadline_s=5, prompt_tokens=7, slo_class="fast", arrival_s=2.0),
            profiled("b", slo_class="slow"),
            profiled("c", deadline_s=9, slo_class="fast"),
        ]
    )
    assert columns.custom_ids.tolist() == ["a", "b", "c"]
    assert columns.prompt_tokens.tolist() == [7, 10, 10]
    # Five seconds from its own arrival.
    assert columns.finish_by_s.tolist() == [7.0, math.inf, 9.0]
    assert columns.class_names == ("fast", "slow")
    assert columns.slo_class.tolist() == [0, 1, 0]
    assert columns.is_promised.tolist() == [True, False, True]


def test_a_first_token_is_due_from_the_arrival_on() -> None:
    request = replace(profiled("a", arrival_s=3.0), slo=SLO("fast", ttft_s=2.0, tpot_s=0.1))
    columns = columns_of([request])
    assert columns.first_token_by_s.tolist() == [5.0]
    assert columns.tpot_s.tolist() == [0.1]
    assert columns.is_promised.all()


def test_no_requests_are_empty_columns() -> None:
    columns = columns_of([])
    assert len(columns) == 0
    assert columns.mean.shape == (0,)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_quantiles_are_those_of_the_estimates(levels: list[float]) -> None:
    requests = [replace(profiled(f"r{i}"), output=SPREAD) for i in range(len(levels))]
    drawn = columns_of(requests).drawn(np.array(levels))
    assert drawn == pytest.approx([SPREAD.at(level) for level in levels])


def test_the_mean_is_that_of_many_draws() -> None:
    columns = columns_of([replace(profiled("a"), output=SPREAD)] * 20_000)
    drawn = columns.drawn(np.random.default_rng(0).random(20_000))
    assert columns.mean[0] == pytest.approx(drawn.mean(), rel=0.02)
    assert columns.p50[0] == 10.0
    assert columns.p90[0] == 40.0
    assert len(QUANTILE_LEVELS) == len(SPREAD.tokens)


def test_taken_rows_are_whole_requests() -> None:
    columns = columns_of([profiled(name, output=i) for i, name in enumerate("abc", start=1)])
    taken = columns.take(rows(2, 0))
    assert taken.custom_ids.tolist() == ["c", "a"]
    assert taken.p50.tolist() == [3.0, 1.0]
    assert taken.class_names == columns.class_names


def test_an_arrangement_has_names_and_sizes() -> None:
    columns = columns_of([profiled(name) for name in "abcd"])
    arranged = Arrangement(rows(2, 0, 3), rows(0, 2), rows(1))
    assert arranged.sizes.tolist() == [2, 1]
    assert arranged.batch_of.tolist() == [0, 0, 1]
    schedule = arranged.named("test", columns.custom_ids)
    assert [batch.custom_ids for batch in schedule.batches] == [("c", "a"), ("d",)]
    assert schedule.oversized == ("b",)


def test_arrangements_follow_one_another_under_the_tightest_budget() -> None:
    first = Arrangement(rows(0, 1), rows(0, 1), rows(), Budget(10, 4, 100), tuning_s=1.0)
    second = Arrangement(rows(2, 3, 4), rows(0), rows(5), Budget(20, 2, 50), tuning_s=2.0)
    both = one_after_another([first, second])
    assert both.order.tolist() == [0, 1, 2, 3, 4]
    assert both.starts.tolist() == [0, 1, 2]
    assert both.oversized.tolist() == [5]
    assert both.budget == Budget(10, 2, 50)
    assert both.tuning_s == 3.0
