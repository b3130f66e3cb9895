"""What every length estimate has to satisfy, whoever made it."""

from __future__ import annotations

from collections.abc import Iterable

from uellm_cli.types import LengthEstimate


def bounded(quantiles: Iterable[float], max_tokens: int, source: str) -> LengthEstimate:
    """Quantiles cut to [1, max_tokens]: no answer is empty, and none passes its cap."""
    cut = (min(max(value, 1.0), float(max_tokens)) for value in quantiles)
    return LengthEstimate(tuple(cut), source)
