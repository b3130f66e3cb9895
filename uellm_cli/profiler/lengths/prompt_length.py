"""A straight line from log prompt tokens to log output tokens, with its residuals' quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.profiler.lengths.bounds import bounded
from uellm_cli.types import QUANTILE_LEVELS, LengthEstimate, Request


@dataclass(frozen=True, slots=True)
class PromptLength:
    """log(output) = intercept + slope·log(prompt) + residual.

    The defaults are the least-squares fit to the conversations that `constant` stands on
    (docs/LOG.md); `fit` learns other ones.
    """

    intercept: float = 4.513
    slope: float = 0.0763
    residuals: tuple[float, ...] = (-1.407, -1.074, -0.56, -0.136, 0.933, 1.004, 1.067, 1.353)

    def predict(
        self, requests: Sequence[Request], prompt_tokens: Sequence[int], max_tokens: Sequence[int]
    ) -> list[LengthEstimate]:
        estimates = []
        for prompt, cap in zip(prompt_tokens, max_tokens, strict=True):
            centre = self.intercept + self.slope * math.log(max(prompt, 1))
            quantiles = (math.exp(centre + residual) for residual in self.residuals)
            estimates.append(bounded(quantiles, cap, "prompt-length"))
        return estimates


def fit(prompt_tokens: Sequence[int], output_tokens: Sequence[int]) -> PromptLength:
    """Least squares in log space over at least two requests with different prompt lengths.

    Raises ValueError for fewer.
    """
    import numpy as np

    if len(set(prompt_tokens)) < 2:
        raise ValueError("a line needs two different prompt lengths")
    x = np.log(np.maximum(np.asarray(prompt_tokens, dtype=float), 1.0))
    y = np.log(np.maximum(np.asarray(output_tokens, dtype=float), 1.0))
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.quantile(y - intercept - slope * x, QUANTILE_LEVELS)
    return PromptLength(float(intercept), float(slope), tuple(float(r) for r in residuals))
