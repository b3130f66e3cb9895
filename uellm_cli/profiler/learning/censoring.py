"""Answers that were cut at a cap: how long they would have been is not known, only that longer.

Their mass is redistributed to the right (Efron 1967; for quantile regression Portnoy 2003): each is
replaced by a few lengths beyond its cut, as likely as what is known of the others makes them; then
the model that was learnt says better what is likely, and it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from uellm_cli.profiler.learning.conformal import quantiles_of
from uellm_cli.profiler.lengths.bounds import Quantiles, repeated
from uellm_cli.types import QUANTILE_LEVELS

# Lengths that stand for one answer that was cut, and how often is learnt from them.
PARTS = 4
ROUNDS = 2
# How fast an answer grows that has outgrown all predictions, in log tokens on the exponential's
# scale: half of them are 1.4 times as long. Nothing is known of them, but that they went on.
UNKNOWN_SLOPE = 0.5
# No answer is imagined longer than so many times its cut: nothing is known out there.
MOST_TIMES = 8.0

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.int64]


class Fitted(Protocol):
    """What was learnt of rows."""

    def out_of_fold(self, rows: Rows) -> Quantiles:
        """What is predicted for these rows by what has not seen them."""
        ...


T = TypeVar("T", bound=Fitted)
# Learns from rows (which may occur several times), their lengths and weights.
Fit = Callable[[Rows, Floats, Floats], T]


def fit_censored(tokens: Floats, censored: Bools, fit: Fit[T]) -> T:
    """What `fit` learns of rows of `tokens`, those that are `censored` taken for what they are."""
    rows = np.arange(len(tokens))
    if not censored.any():
        return fit(rows, tokens, np.ones(len(tokens)))
    cut = rows[censored]
    likely = repeated(quantiles_of(tokens, censored), len(cut))
    fitted = fit(*redistributed(tokens, censored, likely))
    for _ in range(ROUNDS - 1):
        fitted = fit(*redistributed(tokens, censored, fitted.out_of_fold(cut)))
    return fitted


def redistributed(
    tokens: Floats, censored: Bools, likely: Quantiles
) -> tuple[Rows, Floats, Floats]:
    """Rows, lengths and weights with every censored row replaced by PARTS of it.

    `likely` [censored rows, levels] is how long each of them might be, its cut not regarded.
    """
    rows = np.arange(len(tokens))
    whole, cut = rows[~censored], rows[censored]
    lengths = beyond(tokens[censored], likely)
    return (
        np.concatenate([whole, np.repeat(cut, PARTS)]),
        np.concatenate([tokens[~censored], lengths.ravel()]),
        np.concatenate([np.ones(len(whole)), np.full(lengths.size, 1 / PARTS)]),
    )


def beyond(cuts: Floats, likely: Quantiles) -> Floats:
    """PARTS equally likely lengths [rows, PARTS] of answers that are longer than `cuts`.

    Log lengths run straight between quantiles over the exponential's, -log(1 - level), and on
    beyond the last one as they did before it, or faster: tails that are power laws.
    """
    scale = -np.log1p(-np.asarray(QUANTILE_LEVELS))
    shares = (np.arange(PARTS) + 0.5) / PARTS
    lengths = np.empty((len(cuts), PARTS))
    for i, (cut, row) in enumerate(zip(np.log(cuts), np.log(np.maximum(likely, 1.0)), strict=True)):
        slope = max((row[-1] - row[-3]) / (scale[-1] - scale[-3]), 1e-3)
        # Where the cut is on the exponential's scale; flat stretches end at their right.
        if cut >= row[-1]:
            slope = max(slope, UNKNOWN_SLOPE)
            reached = scale[-1] + (cut - row[-1]) / slope
        else:
            reached = float(np.interp(cut, row + np.arange(len(row)) * 1e-9, scale))
        places = reached - np.log1p(-shares)
        inside = np.interp(places, scale, row)
        outside = row[-1] + (places - scale[-1]) * slope
        lengths[i] = np.where(places > scale[-1], outside, inside)
    least = cuts[:, None]
    return np.clip(np.exp(lengths), least, least * MOST_TIMES)
