"""How good predictions of lengths are. Pure functions of predictions and of what came true."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from uellm_cli.profiler.learning.censoring import Bools, Floats
from uellm_cli.profiler.learning.conformal import survival_steps
from uellm_cli.profiler.lengths.bounds import P90, Quantiles


def mean_absolute_error(predicted: Floats, tokens: Floats) -> float:
    """In tokens."""
    return float(np.mean(np.abs(predicted - tokens)))


def pinball(quantile: Floats, tokens: Floats, level: float) -> float:
    """The mean loss, in tokens, that the true quantile at `level` has the least of (Koenker 1978).

    A token too few costs `level`, one too many 1 - `level`.
    """
    over = tokens - quantile
    return float(np.mean(np.maximum(level * over, (level - 1) * over)))


def kendall_tau(predicted: Floats, tokens: Floats) -> float | None:
    """Kendall's tau-b, of how far the order is right; None where either is the same throughout."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(predicted, tokens).statistic)
    return None if math.isnan(tau) else tau


def coverage(quantiles: Quantiles, tokens: Floats, censored: Bools, column: int = P90) -> float:
    """The share of answers that are no longer than their quantile, that at 0.9 by default.

    How far the others would have gone beyond their cut is taken from those that were not cut
    (Kaplan-Meier, of lengths over their quantiles). With none cut this is the plain share.
    """
    values, reached = survival_steps(tokens / np.maximum(quantiles[:, column], 1.0), censored)
    within = int(np.searchsorted(values, 1.0, side="right"))
    return float(reached[within - 1]) if within else 0.0


def other_medians(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """The median of the other values of a value's group; NaN where it has none."""
    medians = np.full(len(values), np.nan)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        if len(members) > 1:
            own = values[members]
            medians[members] = [np.median(np.delete(own, i)) for i in range(len(own))]
    return medians
