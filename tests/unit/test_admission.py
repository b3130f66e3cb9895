"""Admission: who may enter a batch that others are in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import exactly
from uellm_cli.admission import Demand, admits, expected_tokens, peak
from uellm_cli.types import LengthEstimate

SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=7)


def demand(rows: list[tuple[int, int]]) -> Demand:
    held, growth = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    return Demand(held, growth)


def highest_in_a_simulation(rows: list[tuple[int, int]]) -> int:
    """Each row grows by one a step, and leaves once it has grown by its own growth."""
    most = 0
    for step in range(max((growth for _, growth in rows), default=0) + 1):
        most = max(most, sum(held + step for held, growth in rows if growth >= step))
    return most


def test_the_peak_of_a_batch_counted_by_hand() -> None:
    # 10 tokens with 2 to go, 4 with 5 to go. After 2 steps both are there: 12 + 6 = 18; after 5
    # steps the second alone: 9.
    assert peak(demand([(10, 2), (4, 5)])) == 18


@given(SIZES)
def test_the_peak_is_the_highest_moment_of_a_simulation(rows: list[tuple[int, int]]) -> None:
    assert peak(demand(rows)) == highest_in_a_simulation(rows)


@given(SIZES, st.integers(1, 30), st.integers(0, 30), st.integers(0, 300))
def test_a_row_enters_exactly_where_all_find_room_to_end(
    rows: list[tuple[int, int]], held: int, growth: int, capacity: int
) -> None:
    fits = highest_in_a_simulation([*rows, (held, growth)]) <= capacity
    assert admits(demand(rows), held, growth, capacity) is (fits or not rows)


@pytest.mark.parametrize("made", [0, 1, 20, 99])
def test_without_a_prediction_an_answer_is_expected_to_reach_its_cap(made: int) -> None:
    assert expected_tokens(None, made, 100) == 100


def test_what_has_been_made_rules_shorter_answers_out() -> None:
    estimate = LengthEstimate((5, 10, 20, 40, 80, 120, 160, 200), "test")
    expected = [expected_tokens(estimate, made, 1000) for made in (0, 39, 119, 159)]
    assert expected == sorted(expected)
    # Half of all answers have at most 40 tokens: of the others, 0.7 have at most the 0.85 quantile.
    assert expected[0] == pytest.approx(estimate.at(0.7), abs=1)
    assert expected_tokens(estimate, 40, 1000) == pytest.approx(estimate.at(0.85), abs=1)


@given(st.integers(1, 500), st.integers(0, 600), st.integers(1, 600))
def test_more_is_expected_than_there_is_but_never_more_than_the_cap(
    predicted: int, made: int, cap: int
) -> None:
    made = min(made, cap)
    expected = expected_tokens(exactly(predicted), made, cap)
    assert min(made + 1, cap) <= expected <= cap
