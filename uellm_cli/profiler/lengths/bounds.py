"""What every length estimate has to satisfy, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from uellm_cli.types import QUANTILE_LEVELS, LengthEstimate, LengthPredictor, Request

# [requests, QUANTILE_LEVELS] in tokens, ascending along each row.
Quantiles: TypeAlias = NDArray[np.float64]


def estimates(
    predictor: LengthPredictor,
    requests: Sequence[Request],
    prompt_tokens: Sequence[int],
    max_tokens: Sequence[int],
) -> list[LengthEstimate]:
    """What `predictor` says, cut to [1, max_tokens]: no answer is empty, and none passes its cap.

    Cutting is right, and not only safe: the quantile of a length that is capped is the capped
    quantile of the length.
    """
    if not requests:
        return []
    caps = np.asarray(max_tokens, dtype=np.float64)[:, None]
    cut = np.minimum(np.maximum(predictor.quantiles(requests, prompt_tokens), 1.0), caps)
    return [LengthEstimate(tuple(row), predictor.source) for row in cut.tolist()]


def repeated(quantiles: Sequence[float], count: int) -> Quantiles:
    """The same distribution `count` times."""
    return np.tile(np.asarray(quantiles, dtype=np.float64), (count, 1))


def ascending(quantiles: Quantiles) -> Quantiles:
    """Quantiles that were estimated one by one, put in order along each row.

    Sorting never makes them worse (Chernozhukov, Fernandez-Val, Galichon 2010).
    """
    return np.sort(quantiles, axis=1)


MEDIAN = QUANTILE_LEVELS.index(0.5)
P90 = QUANTILE_LEVELS.index(0.9)
