from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uellm_cli.profiler.learning.conformal import (
    Calibration,
    calibrate,
    quantiles_of,
    survival_steps,
)
from uellm_cli.profiler.learning.metrics import coverage
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90, repeated
from uellm_cli.types import QUANTILE_LEVELS


def lengths(seed: int, rows: int) -> NDArray[np.float64]:
    """Log-normal answers, none shorter than a token."""
    drawn: NDArray[np.float64] = np.random.default_rng(seed).lognormal(4.0, 1.0, rows)
    return np.maximum(drawn, 1.0)


NOBODY = np.zeros(20_000, dtype=bool)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_quantiles_that_are_off_by_a_factor_are_put_right(factor: float) -> None:
    truth = np.quantile(lengths(0, 100_000), QUANTILE_LEVELS)
    said = repeated(tuple(truth * factor), 2000)
    moved = calibrate(said, lengths(1, 2000), NOBODY[:2000]).applied(said)
    assert moved[0] == pytest.approx(truth, rel=0.2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.3, 3.0))
def test_coverage_of_new_exchangeable_rows_is_within_two_points(seed: int, spread: float) -> None:
    # Predictions that know something of each row, and are wrong in scale and in spread.
    rng = np.random.default_rng(seed)
    known = rng.normal(4.0, 1.0, 40_000)
    tokens = np.maximum(np.exp(known + rng.normal(0.0, 0.7, 40_000)), 1.0)
    levels = np.linspace(-1.5, 1.5, len(QUANTILE_LEVELS)) * spread
    said = np.exp(0.5 + known[:, None] + levels)
    calibration = calibrate(said[:20_000], tokens[:20_000], NOBODY[:20_000])
    moved = calibration.applied(said[20_000:])
    for level in (0.5, 0.9, 0.95):
        column = QUANTILE_LEVELS.index(level)
        covered = coverage(moved, tokens[20_000:], NOBODY, column)
        assert covered == pytest.approx(level, abs=0.02)


def test_a_few_rows_err_on_the_safe_side() -> None:
    """24 rows: the 0.9 quantile lies above 23 of them, so that it holds on average."""
    covered = []
    for seed in range(400):
        tokens = lengths(seed, 124)
        said = repeated((50.0,) * len(QUANTILE_LEVELS), 124)
        moved = calibrate(said[:24], tokens[:24], NOBODY[:24]).applied(said[24:])
        covered.append(coverage(moved, tokens[24:], NOBODY[24:124]))
    assert 0.9 <= np.mean(covered) <= 0.94


def test_without_rows_nothing_is_moved() -> None:
    said = repeated((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), 3)
    assert np.array_equal(calibrate(said[:0], np.zeros(0), NOBODY[:0]).applied(said), said)


def test_shifts_that_would_cross_leave_quantiles_in_order() -> None:
    said = repeated((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), 1)
    calibration = Calibration((3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0), 10)
    assert (np.diff(calibration.applied(said)) >= 0).all()


def test_nothing_cut_survival_is_the_plain_distribution() -> None:
    values, reached = survival_steps(np.array([3.0, 1.0, 2.0, 2.0]), NOBODY[:4])
    assert list(values) == [1, 2, 2, 3]
    assert list(reached) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_survival_with_cuts_is_kaplan_and_meier_s() -> None:
    # By hand: 1 of 5 ends at 2; at 4, one of the 3 left there; the last, of 1, at 9.
    values, reached = survival_steps(
        np.array([2.0, 3.0, 4.0, 6.0, 9.0]), np.array([False, True, False, True, False])
    )
    assert list(values) == [2, 3, 4, 6, 9]
    assert list(reached) == pytest.approx([0.2, 0.2, 1 - 0.8 * 2 / 3, 1 - 0.8 * 2 / 3, 1.0])


def test_what_is_cut_at_a_length_ended_after_what_ends_there() -> None:
    values, reached = survival_steps(np.array([5.0, 5.0]), np.array([True, False]))
    assert list(values) == [5, 5]
    assert list(reached) == pytest.approx([0.5, 0.5])


def test_quantiles_below_a_common_cap_are_right_though_many_are_cut() -> None:
    full = lengths(3, 20_000)
    cut = np.minimum(full, 100.0)
    found = quantiles_of(cut, full > 100.0)
    truth = np.quantile(full, QUANTILE_LEVELS)
    assert found[MEDIAN] == pytest.approx(truth[MEDIAN], rel=0.03)
    assert truth[P90] > 100
    assert found[P90] == 100  # all that is known of it


def test_calibration_counts_what_was_cut_as_longer() -> None:
    """Answers with caps of their own: taken at their word, the cut ones would move all down."""
    full, caps = lengths(4, 20_000), lengths(5, 20_000) * 2
    tokens, censored = np.minimum(full, caps), full > caps
    said = repeated(tuple(np.quantile(full, QUANTILE_LEVELS)), len(full))
    right = calibrate(said, tokens, censored).log_shifts
    wrong = calibrate(said, tokens, np.zeros(len(full), dtype=bool)).log_shifts
    assert right[MEDIAN] == pytest.approx(0.0, abs=0.05)
    assert right[P90] == pytest.approx(0.0, abs=0.1)
    assert wrong[P90] < -0.3
