"""Training of the `history` predictor: past answers' lengths, by what was asked.

How much a way of being alike counts is learnt: its strength is the one with the least pinball loss
on rows that were left out, given what the ways before it say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.learning.adapt import pinball_loss
from uellm_cli.profiler.learning.censoring import Bools, Floats
from uellm_cli.profiler.learning.conformal import Calibration, calibrate, quantiles_of
from uellm_cli.profiler.learning.metrics import coverage
from uellm_cli.profiler.lengths.bounds import Quantiles, repeated
from uellm_cli.profiler.lengths.history import (
    LIKENESSES,
    Groups,
    HistoryModel,
    Keys,
    calibrated,
    keys_of,
    mixed,
    tokens_of,
)
from uellm_cli.types import QUANTILE_LEVELS, Example

# Fewer say nothing about a tenth of the answers.
LEAST_EXAMPLES = 20
# Answers that it takes to count as much as what wider likenesses say; the last: it is no help.
NEVER = 1e12
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, NEVER)
# What a likeness has to save of the loss to count at all.
LEAST_GAIN = 0.002
# With fewer rows that have others like them, nothing is learnt of a likeness. Then it does not
# count; only an answer to the very same prompt is believed without proof, and as much as the rest.
LEAST_ALIKE = 20
UNPROVEN_PROMPT = 1.0
# Rows that make a calibration of their own.
LEAST_CALIBRATED = 100


@dataclass(frozen=True, slots=True)
class HistoryTrainer:
    """`folds` of the rows are left out in turn, to learn strengths and to calibrate."""

    folds: int = 5

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError("history: folds must be at least 2")

    def train(
        self, examples: Sequence[Example], seed: int, note: Callable[[str], None]
    ) -> HistoryModel:
        if len(examples) < LEAST_EXAMPLES:
            raise PredictorError(
                f"history learns from at least {LEAST_EXAMPLES} answers; there are {len(examples)}"
            )
        keys = keys_of([example.request for example in examples])
        tokens = np.array([max(e.output_tokens, 1) for e in examples], dtype=np.float64)
        censored = np.array([example.censored for example in examples])
        # Single rows, not prompts: that an earlier answer is there is what this predictor is for.
        folds = np.random.default_rng(seed).permutation(len(examples)) % self.folds
        strengths, aside, narrowest = _strengths(keys, tokens, censored, folds)
        calibrations = _calibrations(aside, narrowest, tokens, censored)
        covered = coverage(calibrated(aside, narrowest, calibrations), tokens, censored)
        note(_remark(strengths, before=coverage(aside, tokens, censored), after=covered))
        return HistoryModel(
            overall=quantiles_of(tokens, censored),
            groups=tuple(
                grouped(column, tokens, censored) if strength < NEVER else _no_groups()
                for column, strength in zip(keys.T, strengths, strict=True)
            ),
            strengths=strengths,
            calibrations=calibrations,
        )


def _remark(strengths: Sequence[float], before: float, after: float) -> str:
    helpful = [n for n, strength in zip(LIKENESSES, strengths, strict=True) if strength < NEVER]
    ways = f"alike by {', '.join(helpful)}" if helpful else "no likeness tells anything"
    return (
        f"{ways}; on rows left out, P90 covers {before:.1%} of answers before calibration and "
        f"{after:.1%} after"
    )


def _calibrations(
    aside: Quantiles, narrowest: NDArray[np.int64], tokens: Floats, censored: Bools
) -> tuple[Calibration, ...]:
    """One for each way in which rows may be alike at most; that of all rows where these are few."""
    overall = calibrate(aside, tokens, censored)
    calibrations = []
    for number in range(len(LIKENESSES) + 1):
        rows = narrowest == number
        enough = np.count_nonzero(rows) >= LEAST_CALIBRATED
        own = calibrate(aside[rows], tokens[rows], censored[rows]) if enough else overall
        calibrations.append(own)
    return tuple(calibrations)


def _strengths(
    keys: Keys, tokens: Floats, censored: Bools, folds: NDArray[np.int64]
) -> tuple[tuple[float, ...], Quantiles, NDArray[np.int64]]:
    """By likeness; and of each row by what has not seen it, quantiles [rows, levels] and the number
    of the narrowest likeness that it has to others.
    """
    logs = np.empty((len(tokens), len(QUANTILE_LEVELS)))
    for fold in range(int(folds.max()) + 1):
        aside, seen = folds == fold, folds != fold
        own = quantiles_of(tokens[seen], censored[seen])
        logs[aside] = np.log(repeated(own, int(aside.sum())))
    strengths: list[float] = []
    narrowest = np.zeros(len(tokens), dtype=np.int64)
    lengths = np.log(tokens)
    for number, (name, column) in enumerate(zip(LIKENESSES, keys.T, strict=True), start=1):
        rows, own_logs = _left_out(column, tokens, censored, folds)
        if np.count_nonzero(rows) < LEAST_ALIKE:
            strengths.append(UNPROVEN_PROMPT if name == "prompt" else NEVER)
            continue
        said = [mixed(logs, own_logs, rows, strength) for strength in STRENGTHS]
        losses = [pinball_loss(quantiles, lengths, censored) for quantiles in said]
        best = int(np.argmin(losses))
        if losses[best] > losses[-1] * (1 - LEAST_GAIN):
            best = len(STRENGTHS) - 1
        strengths.append(STRENGTHS[best])
        logs = said[best]
        if STRENGTHS[best] < NEVER:
            narrowest[rows > 0] = number
    return tuple(strengths), tokens_of(logs), narrowest


def _left_out(
    keys: Keys, tokens: Floats, censored: Bools, folds: NDArray[np.int64]
) -> tuple[Floats, Quantiles]:
    """What the groups of the other folds' rows say of each row, and of how many answers."""
    rows = np.empty(len(keys))
    logs = np.empty((len(keys), len(QUANTILE_LEVELS)))
    for fold in range(int(folds.max()) + 1):
        aside, seen = folds == fold, folds != fold
        groups = grouped(keys[seen], tokens[seen], censored[seen])
        rows[aside], logs[aside] = groups.found(keys[aside])
    return rows, logs


def _no_groups() -> Groups:
    return Groups(
        np.zeros(0, np.uint64),
        np.zeros(0, np.int32),
        np.zeros((0, len(QUANTILE_LEVELS)), np.float32),
    )


def grouped(keys: Keys, tokens: Floats, censored: Bools) -> Groups:
    """The rows of each key, and their lengths' quantiles as `conformal.quantiles_of` has them.

    All groups at once: a million rows may be as many groups.
    """
    order = np.lexsort((censored, tokens, keys))
    keys, tokens, ended = keys[order], tokens[order], ~censored[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(first, append=len(keys))
    at_risk = np.repeat(first + sizes, sizes) - np.arange(len(keys))
    left = 1.0 - ended / at_risk
    # Products within a group, as sums of logs; only a group's last may have a factor of 0.
    logs = np.log(np.where(at_risk > 1, left, 1.0))
    sums = np.cumsum(logs)
    sums -= np.repeat(sums[first] - logs[first], sizes)
    reached = 1.0 - np.exp(sums) * np.where(at_risk > 1, 1.0, left)

    quantiles = np.empty((len(first), len(QUANTILE_LEVELS)), dtype=np.float32)
    for i, level in enumerate(QUANTILE_LEVELS):
        before = np.add.reduceat((reached < level - 1e-9).astype(np.int64), first)
        quantiles[:, i] = tokens[first + np.minimum(before, sizes - 1)]
    return Groups(keys[first], sizes.astype(np.int32), quantiles)
