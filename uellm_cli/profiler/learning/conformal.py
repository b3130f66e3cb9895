"""Split conformal calibration: quantiles moved until as many answers lie below them as they say.

Residuals are of log tokens, for lengths spread in proportion. The k-th smallest of n residuals,
k = ⌈(n+1)·level⌉, bounds that of a new exchangeable row with probability of at least `level` (Vovk
et al. 2005; Romano, Patterson, Candès 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm_cli.profiler.lengths.bounds import Quantiles, ascending
from uellm_cli.types import QUANTILE_LEVELS


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is added to the log of each quantile; `rows` is how many answers that stands on."""

    log_shifts: tuple[float, ...] = (0.0,) * len(QUANTILE_LEVELS)
    rows: int = 0

    def applied(self, quantiles: Quantiles) -> Quantiles:
        return ascending(quantiles * np.exp(np.asarray(self.log_shifts)))


def calibrate(
    quantiles: Quantiles, tokens: NDArray[np.float64], censored: NDArray[np.bool_]
) -> Calibration:
    """The calibration of `quantiles` [rows, levels], predicted by what has not seen these rows.

    `tokens` [rows] is how long answers were, and where `censored` at least were. Without rows
    nothing is shifted.
    """
    if not len(tokens):
        return Calibration()
    residuals = np.log(np.maximum(tokens, 1.0))[:, None] - np.log(np.maximum(quantiles, 1.0))
    shifts = [_shift(residuals[:, i], censored, level) for i, level in enumerate(QUANTILE_LEVELS)]
    return Calibration(tuple(shifts), len(tokens))


def _shift(residuals: NDArray[np.float64], censored: NDArray[np.bool_], level: float) -> float:
    """The residual that a share of `level` lies below, on the safe side of the median."""
    count = len(residuals)
    rank = math.ceil((count + 1) * level) if level >= 0.5 else math.floor((count + 1) * level)
    share = min(max(rank, 1), count) / count
    values, reached = survival_steps(residuals, censored)
    # A hair below: shares are sums of many small parts.
    index = int(np.searchsorted(reached, share - 1e-9))
    return float(values[min(index, len(values) - 1)])


def survival_steps(
    values: NDArray[np.float64], censored: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values in ascending order, and the share of the population up to each (Kaplan-Meier).

    What is censored is known to be larger than its value, and its share goes to those above. With
    nothing censored this is the plain distribution.
    """
    # Where values are equal, those that ended come first: they were there when the others went on.
    order = np.lexsort((censored, values))
    at_risk = np.arange(len(values), 0, -1, dtype=np.float64)
    left = np.cumprod(1.0 - ~censored[order] / at_risk)
    return values[order], np.asarray(1.0 - left, dtype=np.float64)


def quantiles_of(
    tokens: Sequence[float] | NDArray[np.float64], censored: NDArray[np.bool_]
) -> tuple[float, ...]:
    """QUANTILE_LEVELS of lengths, of which some are only known to be longer (Kaplan-Meier).

    Beyond the last length that is known, it is that one.
    """
    values, reached = survival_steps(np.asarray(tokens, dtype=np.float64), censored)
    places = np.searchsorted(reached, np.asarray(QUANTILE_LEVELS) - 1e-9)
    return tuple(values[np.minimum(places, len(values) - 1)].tolist())
