"""What lengths answers may turn out to have: scenarios drawn from their predictions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtr, ndtri

from uellm_cli.columns import Floats, Ints, RequestColumns

# How much answers are off in the same direction, as the correlation of normal variables behind
# their lengths. A predictor that has not seen a model misjudges how much it says altogether; one
# that has been adapted to it is off by chance, answer by answer. Both assumed, with the pilots of
# docs/predictors.md in mind.
UNADAPTED = 0.3
ADAPTED = 0.02

# So many lengths are drawn in all: scenarios take time to simulate.
LENGTHS_DRAWN = 160_000
FEWEST, MOST = 2, 16


def how_many(requests: int) -> int:
    """How many scenarios so many requests are worth."""
    return max(FEWEST, min(MOST, LENGTHS_DRAWN // max(requests, 1)))


def drawn_lengths(
    columns: RequestColumns, count: int, seed: int, correlation: float
) -> Iterator[Ints]:
    """`count` times the output tokens [requests] of each answer, within its cap.

    Correlated by a one-factor Gaussian copula: a level is Φ(√c·z + √(1-c)·e), with one z a
    scenario and one e a request. Raises ValueError for a correlation outside [0, 1].
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"a correlation is between 0 and 1, not {correlation}")
    generator = np.random.default_rng(seed % 2**63)
    # Common parts in evenly spread strata: a few scenarios are not all of one kind by chance.
    strata = (generator.permutation(count) + generator.random(count)) / count
    for common in _normal(strata).tolist():
        own = generator.standard_normal(len(columns))
        levels = ndtr(np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)
        yield lengths_at(columns, levels)


def lengths_at(columns: RequestColumns, levels: Floats) -> Ints:
    """Output tokens [requests] at a level for each, at least one and at most the cap."""
    tokens = np.rint(columns.drawn(levels)).astype(np.int64)
    return np.clip(tokens, 1, columns.max_tokens)


def lengths_at_level(columns: RequestColumns, level: float) -> Ints:
    """Output tokens [requests] if every answer is at its quantile of `level`."""
    return lengths_at(columns, np.full(len(columns), level))


def _normal(levels: Floats) -> Floats:
    return np.asarray(ndtri(levels))
