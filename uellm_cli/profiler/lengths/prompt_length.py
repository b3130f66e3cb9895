"""A straight line from log prompt tokens to log output tokens, with its residuals' quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uellm_cli.profiler.lengths.bounds import Quantiles
from uellm_cli.types import QUANTILE_LEVELS, Request


@dataclass(frozen=True)
class PromptLength:
    """log(output) = intercept + slope·log(prompt) + residual.

    The defaults are the least-squares fit to the conversations that `constant` stands on
    (docs/LOG.md); `fit` learns other ones.
    """

    intercept: float = 4.513
    slope: float = 0.0763
    residuals: tuple[float, ...] = (-1.407, -1.074, -0.56, -0.136, 0.933, 1.004, 1.067, 1.353)

    source = "prompt-length"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        prompts = np.maximum(np.asarray(prompt_tokens, dtype=np.float64), 1.0)
        centre = self.intercept + self.slope * np.log(prompts)
        moved: Quantiles = np.exp(centre[:, None] + np.asarray(self.residuals))
        return moved


def fit(prompt_tokens: Sequence[int], output_tokens: Sequence[int]) -> PromptLength:
    """Least squares in log space over at least two requests with different prompt lengths.

    Raises ValueError for fewer.
    """
    if len(set(prompt_tokens)) < 2:
        raise ValueError("a line needs two different prompt lengths")
    x = np.log(np.maximum(np.asarray(prompt_tokens, dtype=float), 1.0))
    y = np.log(np.maximum(np.asarray(output_tokens, dtype=float), 1.0))
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.quantile(y - intercept - slope * x, QUANTILE_LEVELS)
    return PromptLength(float(intercept), float(slope), tuple(float(r) for r in residuals))
