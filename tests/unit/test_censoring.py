from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from uellm_cli.profiler.learning.censoring import (
    MOST_TIMES,
    PARTS,
    beyond,
    fit_censored,
    redistributed,
)
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90, Quantiles, repeated
from uellm_cli.types import QUANTILE_LEVELS

Floats = NDArray[np.float64]


class Groups:
    """Learns weighted quantiles of each of two kinds of rows: even ones and odd ones."""

    def __init__(self, rows: NDArray[np.int64], tokens: Floats, weights: Floats) -> None:
        self.of = np.array([self._quantiles(rows, tokens, weights, kind) for kind in (0, 1)])
        self.weight = weights.sum()

    @staticmethod
    def _quantiles(
        rows: NDArray[np.int64], tokens: Floats, weights: Floats, kind: int
    ) -> list[float]:
        mine = rows % 2 == kind
        order = np.argsort(tokens[mine])
        reached = np.cumsum(weights[mine][order]) / weights[mine].sum()
        places = np.searchsorted(reached, QUANTILE_LEVELS)
        return [float(tokens[mine][order][min(p, mine.sum() - 1)]) for p in places]

    def out_of_fold(self, rows: NDArray[np.int64]) -> Quantiles:
        quantiles: Quantiles = self.of[rows % 2]
        return quantiles


def test_answers_with_caps_of_their_own_are_learnt_as_long_as_they_would_have_been() -> None:
    """Odd rows are eight times as long, and most of them are cut; the truth is known."""
    rng = np.random.default_rng(0)
    full = rng.lognormal(3.0, 0.6, 20_000) * np.where(np.arange(20_000) % 2, 8, 1)
    caps = rng.lognormal(5.0, 0.5, 20_000)
    tokens, censored = np.minimum(full, caps), full > caps
    assert 0.2 < censored.mean() < 0.5

    learnt = fit_censored(tokens, censored, Groups)
    believed = Groups(np.arange(20_000), tokens, np.ones(20_000))
    dropped = Groups(np.arange(20_000)[~censored], tokens[~censored], np.ones((~censored).sum()))
    for kind in (0, 1):
        truth = np.quantile(full[kind::2], QUANTILE_LEVELS)
        assert learnt.of[kind][MEDIAN] == pytest.approx(truth[MEDIAN], rel=0.12)
        assert learnt.of[kind][P90] == pytest.approx(truth[P90], rel=0.25)
    long = np.quantile(full[1::2], QUANTILE_LEVELS)
    assert believed.of[1][P90] < 0.7 * long[P90]
    assert dropped.of[1][MEDIAN] < 0.8 * long[MEDIAN]


def test_nothing_cut_is_learnt_as_it_is() -> None:
    tokens = np.array([1.0, 2.0, 3.0, 4.0])
    learnt = fit_censored(tokens, np.zeros(4, dtype=bool), Groups)
    assert learnt.weight == 4


def test_a_cut_row_is_replaced_by_longer_ones_of_its_weight() -> None:
    tokens, censored = np.array([10.0, 50.0]), np.array([False, True])
    likely = repeated((5.0, 8.0, 20.0, 40.0, 80.0, 160.0, 200.0, 400.0), 1)
    rows, lengths, weights = redistributed(tokens, censored, likely)
    assert list(rows) == [0] + [1] * PARTS
    assert lengths[0] == 10
    assert (lengths[1:] > 50).all()
    assert weights.sum() == pytest.approx(2.0)


def test_lengths_beyond_a_cut_are_where_the_prediction_has_its_rest() -> None:
    """An exponential's rest is as long again: half of what is left is beyond ln 2 more."""
    truth = -100 * np.log1p(-np.asarray(QUANTILE_LEVELS))
    (parts,) = beyond(np.array([100.0]), repeated(tuple(truth), 1))
    rest = -100 * np.log1p(-(np.arange(PARTS) + 0.5) / PARTS)
    assert parts == pytest.approx(100 + rest, rel=0.1)


def test_beyond_all_that_is_predicted_lengths_grow_on_and_not_without_end() -> None:
    flat = repeated((10.0,) * len(QUANTILE_LEVELS), 1)
    wide = repeated((1.0, 2.0, 10.0, 50.0, 250.0, 2000.0, 9000.0, 90_000.0), 1)
    (sure,) = beyond(np.array([1000.0]), flat)
    (unsure,) = beyond(np.array([200_000.0]), wide)
    # Half of what has outgrown its prediction is at least 1.4 times as long as it is already.
    assert 1200 < np.median(sure) < 1600
    assert (unsure >= 200_000).all()
    assert (unsure <= 200_000 * MOST_TIMES).all()
    assert unsure[-1] > 2 * unsure[0]
