"""Adapting a predictor to a model by a few of its answers, as far as they show that it helps.

Several ways are tried on rows kept aside, from leaving the base as it is to a distribution of the
answers' own; the one with the least pinball loss is taken. PAPER.md, section 3, has what a trial
found: a shift alone makes the tail worse, so both sides of the median have a slope of their own,
and all slopes are drawn towards 1 as long as answers are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uellm_cli.profiler.learning import ngram
from uellm_cli.profiler.learning.censoring import Bools, Floats, Rows
from uellm_cli.profiler.learning.conformal import calibrate, quantiles_of
from uellm_cli.profiler.learning.ngram import NGramTrainer, counts_of, folds_of
from uellm_cli.profiler.lengths.adapted import (
    Adaptation,
    AdaptedModel,
    Base,
    blended,
    corrections,
)
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90, Quantiles
from uellm_cli.profiler.lengths.hashing import BUCKETS, Grams, hashed
from uellm_cli.profiler.lengths.text import texts_of
from uellm_cli.types import QUANTILE_LEVELS, Example, LengthPredictor

# Fewer answers say nothing about a tenth of them.
LEAST_EXAMPLES = 16
# More take minutes to learn from, and more memory than a kernel of all pairs should have.
MOST_EXAMPLES = 2000
# From so many on, n-grams may correct what the base makes of a prompt.
LEAST_FOR_WORDS = 50
FOLDS = 5
# As many answers as these speak for a slope of 1, and for a spread as the base has it.
PRIOR_ROWS = 15.0
SPREADS = np.linspace(0.4, 2.5, 43)
# A penalty on n-grams so strong that only what many answers share counts.
PENALTIES = (1.0, 3.0, 10.0)
# Shares of a model learnt from the pilot alone that are tried.
OWN_SHARES = (0.5, 1.0)
# What a way with more to learn has to gain.
LEAST_GAIN = 0.01


@dataclass(frozen=True, slots=True)
class _Pilot:
    """Answers to adapt to: what the base says of them [rows, levels], and how long they are."""

    quantiles: Quantiles
    tokens: Floats
    censored: Bools
    grams: Grams
    folds: NDArray[np.int64]

    def rows(self) -> Rows:
        return np.arange(len(self.tokens))


@dataclass(frozen=True, slots=True)
class _Learnt:
    adaptation: Adaptation
    weights: Floats | None = None


Way = Callable[[_Pilot, Rows], _Learnt]


def adapt(
    base: Base, predictor: LengthPredictor, examples: Sequence[Example], seed: int
) -> AdaptedModel:
    """`predictor`, which is called `base`, adapted to the answers in `examples`.

    Of fewer than LEAST_EXAMPLES, nothing is learnt; of more than MOST_EXAMPLES, from so many: the
    engine waits for this.
    """
    if len(examples) < LEAST_EXAMPLES:
        return AdaptedModel(base, predictor, Adaptation())
    examples = _thinned(examples, MOST_EXAMPLES)
    requests = [example.request for example in examples]
    texts = texts_of(requests)
    pilot = _Pilot(
        quantiles=predictor.quantiles(requests, [example.prompt_tokens for example in examples]),
        tokens=np.array([max(example.output_tokens, 1) for example in examples], dtype=float),
        censored=np.array([example.censored for example in examples]),
        grams=hashed(texts),
        folds=folds_of(texts, FOLDS, seed),
    )
    best, aside = _best(pilot)
    learnt = best(pilot, pilot.rows())
    share, own = 0.0, None
    if len(examples) >= ngram.LEAST_EXAMPLES:
        own, own_aside = NGramTrainer().learn(examples, seed)
        share, aside = _best_share(pilot, aside, own_aside)
    adaptation = replace(
        learnt.adaptation,
        own_share=share,
        calibration=calibrate(aside, pilot.tokens, pilot.censored),
    )
    return AdaptedModel(base, predictor, adaptation, learnt.weights, own if share else None)


def _thinned(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """At most so many of them, from all over their order."""
    if len(examples) <= most:
        return examples
    return [examples[i * len(examples) // most] for i in range(most)]


def _best(pilot: _Pilot) -> tuple[Way, Quantiles]:
    """The way that does best on rows kept aside, and what it says of each while it is."""
    ways: list[Way] = [_affine, _own]
    if len(pilot.tokens) >= LEAST_FOR_WORDS:
        ways += [_with_words(penalty) for penalty in PENALTIES]
    best: Way = _as_it_is
    aside = _said_aside(pilot, best)
    least = _loss(aside, pilot)
    for way in ways:
        said = _said_aside(pilot, way)
        loss = _loss(said, pilot)
        if loss < least * (1 - LEAST_GAIN):
            best, aside, least = way, said, loss
    return best, aside


def _best_share(pilot: _Pilot, adapted: Quantiles, own: Quantiles) -> tuple[float, Quantiles]:
    """How much of the pilot's own model does best on rows kept aside, and what both say of them."""
    best, aside, least = 0.0, adapted, _loss(adapted, pilot)
    for share in OWN_SHARES:
        said = blended(adapted, own, share)
        loss = _loss(said, pilot)
        if loss < least * (1 - LEAST_GAIN):
            best, aside, least = share, said, loss
    return best, aside


def _said_aside(pilot: _Pilot, way: Way) -> Quantiles:
    said = np.empty_like(pilot.quantiles)
    for fold in range(FOLDS):
        aside = np.flatnonzero(pilot.folds == fold)
        if len(aside):
            learnt = way(pilot, np.flatnonzero(pilot.folds != fold))
            said[aside] = _applied(learnt, pilot, aside)
    return said


def _applied(learnt: _Learnt, pilot: _Pilot, rows: Rows) -> Quantiles:
    correction = np.zeros(len(rows))
    if learnt.weights is not None:
        correction = corrections(pilot.grams.scores(learnt.weights)[rows])
    return learnt.adaptation.applied(pilot.quantiles[rows], correction)


def _loss(quantiles: Quantiles, pilot: _Pilot) -> float:
    """Mean pinball loss over all levels, in log tokens, once calibrated as it will be.

    An answer that was cut can only be said to be too short.
    """
    said = calibrate(quantiles, pilot.tokens, pilot.censored).applied(quantiles)
    return pinball_loss(np.log(said), np.log(pilot.tokens), pilot.censored)


def pinball_loss(quantiles: Quantiles, values: Floats, censored: Bools) -> float:
    levels = np.asarray(QUANTILE_LEVELS)
    over = values[:, None] - quantiles
    over = np.where(censored[:, None], np.maximum(over, 0.0), over)
    return float(np.mean(np.where(over >= 0, levels * over, (levels - 1) * over)))


# --- Ways -----------------------------------------------------------------------------------------


def _as_it_is(pilot: _Pilot, rows: Rows) -> _Learnt:
    """The base, moved by what most answers are longer or shorter."""
    median = np.log(pilot.quantiles[rows, MEDIAN])
    return _Learnt(Adaptation(intercept=_middle(pilot, rows, np.log(pilot.tokens[rows]) - median)))


def _affine(pilot: _Pilot, rows: Rows) -> _Learnt:
    """The median's place and slope, and a spread of its own on either side."""
    logs = np.log(pilot.quantiles[rows])
    median, tokens = logs[:, MEDIAN], np.log(pilot.tokens[rows])
    centred = median - median.mean()
    residual = tokens - median
    # Least squares for the slope's difference from 1, with PRIOR_ROWS that say there is none.
    spread = float(centred @ centred)
    prior = PRIOR_ROWS * max(float(np.var(median)), 1e-6)
    slope = 1.0 + float(centred @ (residual - residual.mean())) / (spread + prior)
    slope = min(max(slope, 0.2), 2.0)
    intercept = _middle(pilot, rows, tokens - slope * median)
    away = logs - median[:, None]
    left = tokens - intercept - slope * median
    below, above = QUANTILE_LEVELS.index(0.1), P90
    return _Learnt(
        Adaptation(
            intercept=intercept,
            slope=slope,
            spread=(
                _spread(away[:, below], left, QUANTILE_LEVELS[below]),
                _spread(away[:, above], left, QUANTILE_LEVELS[above]),
            ),
        )
    )


def _own(pilot: _Pilot, rows: Rows) -> _Learnt:
    """The answers' own distribution, whatever is asked."""
    return _Learnt(Adaptation(constant=quantiles_of(pilot.tokens[rows], pilot.censored[rows])))


def _with_words(penalty: float) -> Way:
    """As `_affine`, and what is left explained by the prompts' n-grams."""

    def learn(pilot: _Pilot, rows: Rows) -> _Learnt:
        learnt = _affine(pilot, rows)
        said = np.log(_applied(learnt, pilot, rows)[:, MEDIAN])
        residual = np.clip(np.log(pilot.tokens[rows]) - said, -2.0, 2.0)
        return replace(learnt, weights=_ridge(pilot.grams, rows, residual, penalty))

    return learn


def _middle(pilot: _Pilot, rows: Rows, values: Floats) -> float:
    return quantiles_of(values, pilot.censored[rows])[MEDIAN]


def _spread(away: Floats, left: Floats, level: float) -> float:
    """How many times as far from the median a quantile should lie: least pinball loss, near 1."""
    over = left - SPREADS[:, None] * away
    losses = np.where(over >= 0, level * over, (level - 1) * over).sum(axis=1)
    scale = float(np.abs(left).mean())
    losses += PRIOR_ROWS * level * (1 - level) * scale * np.abs(np.log(SPREADS))
    return float(SPREADS[int(losses.argmin())])


def _ridge(grams: Grams, rows: Rows, residual: Floats, penalty: float) -> Floats:
    """Weights [BUCKETS] of the n-grams of `rows`, by the dual of ridge regression: rows are few."""
    design = counts_of(grams, BUCKETS)[rows]
    kernel = (design @ design.T).toarray()
    # Rows of many n-grams in common are alike whatever they ask: what all share says nothing.
    mean = kernel.mean(axis=0)
    kernel = kernel - mean[:, None] - mean[None, :] + kernel.mean()
    scale = max(float(np.trace(kernel)) / len(rows), 1e-9)
    dual = np.linalg.solve(kernel + penalty * scale * np.eye(len(rows)), residual)
    dual -= dual.mean()
    return np.asarray(design.T @ dual).ravel()
