"""Figures of predictors, each against a reference on the same rows, and their means over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np

from uellm_cli.profiler.learning.censoring import Bools, Floats
from uellm_cli.profiler.learning.metrics import (
    coverage,
    kendall_tau,
    mean_absolute_error,
    pinball,
)
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90, Quantiles
from uellm_cli.types import QUANTILE_LEVELS, Example


@dataclass(frozen=True, slots=True)
class Spread:
    """Over seeds: the mean, and the standard deviation (0 of a single one)."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Line:
    """One predictor over all seeds; None where there is nothing to say.

    `mae` and `pinball` (at 0.9) are over the reference's, `tau` is Kendall's tau-b, `coverage` the
    share of answers within P90. Errors are of `rows` answers on average. `pilot` is the number of
    rows that it was adapted to. With `failure` it could not be judged.
    """

    name: str
    pilot: int | None = None
    mae: Spread | None = None
    tau: Spread | None = None
    pinball: Spread | None = None
    coverage: Spread | None = None
    rows: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out, and of what: answers in all and those cut; the same of a test, on average.

    `reference_mae` and `reference_pinball` are the reference's own errors, in tokens.
    """

    rows: int
    censored: int
    test_rows: float
    test_censored: float
    seeds: tuple[int, ...]
    reference_mae: Spread
    reference_pinball: Spread
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """As `Line`, of one test."""

    mae: float | None
    tau: float | None
    pinball: float | None
    coverage: float | None
    rows: int


@dataclass(frozen=True, slots=True)
class Truth:
    """How long the answers were [rows], which of them were cut, and what the reference says."""

    tokens: Floats
    censored: Bools
    reference: Quantiles

    @classmethod
    def of(cls, examples: Sequence[Example], reference: Quantiles) -> Truth:
        tokens = np.array([max(example.output_tokens, 1) for example in examples], dtype=float)
        return cls(tokens, np.array([example.censored for example in examples]), reference)

    @property
    def mae_tokens(self) -> float:
        return self._mae(self.reference[:, MEDIAN], ~self.censored)

    @property
    def pinball_tokens(self) -> float:
        return self._pinball(self.reference, ~self.censored)

    def figures(self, quantiles: Quantiles) -> Figures:
        known = ~self.censored
        return Figures(
            mae=_over(self._mae(quantiles[:, MEDIAN], known), self.mae_tokens),
            tau=kendall_tau(quantiles[known, MEDIAN], self.tokens[known]),
            pinball=_over(self._pinball(quantiles, known), self.pinball_tokens),
            coverage=coverage(quantiles, self.tokens, self.censored),
            rows=int(known.sum()),
        )

    def figures_of_medians(self, medians: Floats) -> Figures:
        """Of rows with a median; it is NaN for the others."""
        known = self.judged_by(medians)
        reference = self._mae(self.reference[:, MEDIAN], known)
        return Figures(
            mae=_over(self._mae(medians, known), reference),
            tau=kendall_tau(medians[known], self.tokens[known]),
            pinball=None,
            coverage=None,
            rows=int(known.sum()),
        )

    def judged_by(self, medians: Floats) -> Bools:
        """The rows that `figures_of_medians` is of."""
        return ~self.censored & ~np.isnan(medians)

    def _mae(self, medians: Floats, known: Bools) -> float:
        return mean_absolute_error(medians[known], self.tokens[known])

    def _pinball(self, quantiles: Quantiles, known: Bools) -> float:
        return pinball(quantiles[known, P90], self.tokens[known], QUANTILE_LEVELS[P90])


@dataclass(slots=True)
class Tally:
    """Figures as they come, by predictor and pilot."""

    tests: list[Truth] = field(default_factory=list)
    _figures: dict[tuple[str, int | None], list[Figures]] = field(default_factory=dict)
    _failures: dict[tuple[str, int | None], str] = field(default_factory=dict)

    def add(self, name: str, figures: Figures | Exception, pilot: int | None = None) -> None:
        """The figures of one test, or why there are none."""
        if isinstance(figures, Exception):
            self._failures.setdefault((name, pilot), str(figures))
        else:
            self._figures.setdefault((name, pilot), []).append(figures)

    def evaluation(self, examples: Sequence[Example], seeds: Sequence[int]) -> Evaluation:
        failed = [Line(*key, failure=why) for key, why in self._failures.items()]
        return Evaluation(
            rows=len(examples),
            censored=sum(example.censored for example in examples),
            test_rows=fmean(len(test.tokens) for test in self.tests),
            test_censored=fmean(int(test.censored.sum()) for test in self.tests),
            seeds=tuple(seeds),
            reference_mae=_spread([test.mae_tokens for test in self.tests]),
            reference_pinball=_spread([test.pinball_tokens for test in self.tests]),
            lines=(*(_line(*key, found) for key, found in self._figures.items()), *failed),
        )


def _line(name: str, pilot: int | None, found: Sequence[Figures]) -> Line:
    return Line(
        name,
        pilot,
        mae=_spread_of(figures.mae for figures in found),
        tau=_spread_of(figures.tau for figures in found),
        pinball=_spread_of(figures.pinball for figures in found),
        coverage=_spread_of(figures.coverage for figures in found),
        rows=fmean(figures.rows for figures in found),
    )


def _spread_of(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return _spread(known) if known else None


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0)


def _over(error: float, reference: float) -> float | None:
    return error / reference if reference else None
