"""Training of the `ngram` predictor.

A ridge regression on hashed n-grams says what the words are worth, and another what metadata are;
their scores of each row are made by regressions that have not seen the row, and go with the
hand-made features into one boosted model for each quantile (stacking, Wolpert 1992). How many trees
there are is what is best on rows kept aside, and so is the calibration made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.learning.censoring import Bools, Floats, Rows, fit_censored
from uellm_cli.profiler.learning.conformal import calibrate
from uellm_cli.profiler.learning.metrics import coverage
from uellm_cli.profiler.lengths.boosting import load_lightgbm
from uellm_cli.profiler.lengths.bounds import Quantiles, ascending
from uellm_cli.profiler.lengths.features import hand_features
from uellm_cli.profiler.lengths.hashing import (
    BUCKETS,
    TOLD_BUCKETS,
    Grams,
    hashed,
    hashed_metadata,
)
from uellm_cli.profiler.lengths.ngram import NGramModel, with_scores
from uellm_cli.profiler.lengths.text import texts_of
from uellm_cli.types import QUANTILE_LEVELS, Example

if TYPE_CHECKING:
    import lightgbm
    from scipy.sparse import csr_matrix

# Fewer say nothing about a tenth of the answers.
LEAST_EXAMPLES = 50
# With fewer, threads wait for each other for longer than they work.
MANY_EXAMPLES = 20_000
# Hashing takes fifty kilobytes a text, for as long as it lasts.
HASHED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class NGramTrainer:
    """`ridge` is the penalty on n-grams' weights; `tail_leaves` is for quantiles beyond 0.1 and
    0.9, which overfit with more; `rounds` is the most trees a quantile has.
    """

    folds: int = 5
    ridge: float = 3.0
    leaves: int = 6
    tail_leaves: int = 4
    rounds: int = 300
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        least = {"folds": 2, "ridge": 0, "leaves": 2, "tail_leaves": 2, "rounds": 1}
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:
                raise UsageError(f"ngram: {name} must be at least {value}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError("ngram: learning_rate must be more than 0")

    def train(
        self, examples: Sequence[Example], seed: int, note: Callable[[str], None]
    ) -> NGramModel:
        tokens, censored = _answers(examples)
        note(f"{len(examples):,} answers, {censored.sum():,} of them cut; learning")
        model, aside = self.learn(examples, seed)
        covered = coverage(aside, tokens, censored)
        note(f"on rows left out, P90 covers {covered:.1%} of answers before calibration")
        return replace(model, calibration=calibrate(aside, tokens, censored))

    def learn(self, examples: Sequence[Example], seed: int) -> tuple[NGramModel, Quantiles]:
        """A model that is not calibrated, and what is said of each example by one without it."""
        # A fold without a row leaves nothing to judge by.
        least = max(LEAST_EXAMPLES, self.folds)
        if len(examples) < least:
            raise PredictorError(
                f"ngram learns from at least {least} answers; there are {len(examples)}"
            )
        data = _Data.of(examples, self.folds, seed)
        tokens, censored = _answers(examples)

        def fit(rows: Rows, lengths: Floats, weights: Floats) -> _Fitted:
            return self._fit(data, rows, np.log(lengths), weights, seed)

        fitted = fit_censored(tokens, censored, fit)
        return fitted.model, fitted.aside

    def _fit(self, data: _Data, rows: Rows, targets: Floats, weights: Floats, seed: int) -> _Fitted:
        text = self._scored(data.grams, data.folds, rows, targets, weights)
        told = self._scored(data.told, data.folds, rows, targets, weights)
        inputs = with_scores(data.features, text.scores, told.scores)

        columns, boosters = [], []
        for level in QUANTILE_LEVELS:
            parameters = self._parameters(level, len(data.folds), seed)
            column, best = self._out_of_fold(data, rows, targets, weights, inputs, parameters)
            columns.append(column)
            boosters.append(_boost(inputs[rows], targets, weights, parameters, best))
        quantiles = ascending(np.exp(np.column_stack(columns)))
        model = NGramModel(text.weights, told.weights, text.intercept, tuple(boosters))
        return _Fitted(model, quantiles)

    def _scored(
        self,
        grams: csr_matrix,
        folds: NDArray[np.int64],
        rows: Rows,
        targets: Floats,
        weights: Floats,
    ) -> _Ridge:
        """A regression on `grams`, and each row's score by one that has not seen it."""
        fold_of = folds[rows]
        scores = np.empty(len(folds))
        for fold in range(self.folds):
            seen, aside = fold_of != fold, folds == fold
            solved, mean = _ridge(grams[rows[seen]], targets[seen], weights[seen], self.ridge)
            scores[aside] = mean + grams[aside] @ solved
        return _Ridge(*_ridge(grams[rows], targets, weights, self.ridge), scores)

    def _out_of_fold(
        self,
        data: _Data,
        rows: Rows,
        targets: Floats,
        weights: Floats,
        inputs: Floats,
        parameters: dict[str, Any],
    ) -> tuple[Floats, int]:
        """Each row's prediction by what has not seen it, and how many trees are best for that."""
        fold_of = data.folds[rows]
        losses, boosters = np.zeros(self.rounds), []
        for fold in range(self.folds):
            seen = fold_of != fold
            history: dict[str, Any] = {}
            boosters.append(
                _boost(
                    inputs[rows[seen]],
                    targets[seen],
                    weights[seen],
                    parameters,
                    self.rounds,
                    aside=(inputs[rows[~seen]], targets[~seen], weights[~seen]),
                    history=history,
                )
            )
            losses += np.asarray(history["aside"]["quantile"]) * weights[~seen].sum()
        best = int(losses.argmin()) + 1
        column = np.empty(len(data.folds))
        for fold, booster in enumerate(boosters):
            aside = data.folds == fold
            column[aside] = booster.predict(inputs[aside], num_iteration=best)
        return column, best

    def _parameters(self, level: float, count: int, seed: int) -> dict[str, Any]:
        is_tail = not 0.1 < level < 0.9
        return {
            "objective": "quantile",
            "alpha": level,
            "metric": "quantile",
            "num_leaves": self.tail_leaves if is_tail else self.leaves,
            "min_data_in_leaf": max(5, min(60 if is_tail else 30, count // 20)),
            "learning_rate": self.learning_rate,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "max_bin": 63,
            "num_threads": 1 if count < MANY_EXAMPLES else 0,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


@dataclass(frozen=True, slots=True)
class _Data:
    """Rows to learn from: n-grams [rows, BUCKETS], metadata [rows, TOLD_BUCKETS], features [rows,
    FEATURES], folds [rows].
    """

    grams: csr_matrix
    told: csr_matrix
    features: Floats
    folds: NDArray[np.int64]

    @classmethod
    def of(cls, examples: Sequence[Example], folds: int, seed: int) -> _Data:
        texts = texts_of([example.request for example in examples])
        return cls(
            grams=_grams_of(texts),
            told=counts_of(
                hashed_metadata([example.request.metadata for example in examples]), TOLD_BUCKETS
            ),
            features=hand_features(texts, [example.prompt_tokens for example in examples]),
            folds=folds_of(texts, folds, seed),
        )


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A model, and what is said of each row [rows, levels] by one that has not seen it."""

    model: NGramModel
    aside: Quantiles

    def out_of_fold(self, rows: Rows) -> Quantiles:
        return self.aside[rows]


@dataclass(frozen=True, slots=True)
class _Ridge:
    """`weights` of columns that with `intercept` give log tokens; `scores` [rows] of it."""

    weights: Floats
    intercept: float
    scores: Floats


def _answers(examples: Sequence[Example]) -> tuple[Floats, Bools]:
    tokens = np.array([max(example.output_tokens, 1) for example in examples], dtype=np.float64)
    return tokens, np.array([example.censored for example in examples])


def folds_of(texts: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """A fold for each row, the same for the same text: what is aside has not been seen.

    The rows of a text that would fill a fold by itself are spread over all.
    """
    rows_of = Counter(texts)
    numbers: dict[object, int] = {}
    groups = [
        numbers.setdefault(text if rows_of[text] * folds <= len(texts) else row, len(numbers))
        for row, text in enumerate(texts)
    ]
    places: NDArray[np.int64] = np.random.default_rng(seed).permutation(len(numbers))
    return places[groups] % folds


def _grams_of(texts: Sequence[str]) -> csr_matrix:
    """[texts, BUCKETS], of a thousand texts after the other."""
    from scipy.sparse import vstack

    starts = range(0, len(texts), HASHED_AT_ONCE)
    parts = [counts_of(hashed(texts[i : i + HASHED_AT_ONCE]), BUCKETS) for i in starts]
    return vstack(parts, format="csr")


def counts_of(grams: Grams, columns: int) -> csr_matrix:
    """N-grams of each text [texts, columns] as `Grams.scores` weighs them.

    In single precision: they are most of the memory, and are multiplied in double.
    """
    from scipy.sparse import csr_matrix

    counts = np.diff(grams.starts)
    values = np.repeat((1.0 / np.sqrt(counts)).astype(np.float32), counts)
    matrix = csr_matrix((values, grams.buckets, grams.starts), shape=(len(counts), columns))
    matrix.sum_duplicates()
    return matrix


def _ridge(
    grams: csr_matrix, targets: Floats, weights: Floats, penalty: float
) -> tuple[Floats, float]:
    """Weights of columns and the intercept: least squares, with a penalty on columns of many rows.

    An n-gram of few rows is told apart by them alone, one of all rows says nothing: columns are
    weighed by their inverse document frequency.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import lsmr

    rows_with = np.bincount(grams.indices, minlength=grams.shape[1])
    idf = np.log((1 + grams.shape[0]) / (1 + rows_with))
    mean = float(np.average(targets, weights=weights))
    root = np.sqrt(weights)
    design = diags(root) @ grams @ diags(idf)
    solution = lsmr(design, root * (targets - mean), damp=np.sqrt(penalty), maxiter=200)[0]
    return np.asarray(solution) * idf, mean


def _boost(
    inputs: Floats,
    targets: Floats,
    weights: Floats,
    parameters: dict[str, Any],
    rounds: int,
    aside: tuple[Floats, Floats, Floats] | None = None,
    history: dict[str, Any] | None = None,
) -> lightgbm.Booster:
    lgb = load_lightgbm()
    data = lgb.Dataset(inputs, targets, weight=weights, params=parameters)
    if aside is None or history is None:
        booster: lightgbm.Booster = lgb.train(parameters, data, rounds)
        return booster
    valid = lgb.Dataset(aside[0], aside[1], weight=aside[2], reference=data)
    watched: lightgbm.Booster = lgb.train(
        parameters,
        data,
        rounds,
        valid_sets=[valid],
        valid_names=["aside"],
        callbacks=[lgb.record_evaluation(history)],
    )
    return watched
