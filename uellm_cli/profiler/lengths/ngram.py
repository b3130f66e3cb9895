"""Gradient-boosted quantiles over hand-made features and ridge regressions on hashed n-grams.

The default: it needs no model and no device, and is quick. What it stands on is in the folder of a
trained one (`learning/ngram.py`), or ships with uellm (docs/predictors.md).
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from uellm_cli.errors import PredictorError
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.profiler.lengths.boosting import load_lightgbm
from uellm_cli.profiler.lengths.bounds import Quantiles, ascending
from uellm_cli.profiler.lengths.features import FEATURES, hand_features
from uellm_cli.profiler.lengths.hashing import BUCKETS, TOLD_BUCKETS, hashed, hashed_metadata
from uellm_cli.profiler.lengths.text import texts_of
from uellm_cli.types import QUANTILE_LEVELS, Request

if TYPE_CHECKING:
    import lightgbm

SHIPPED = Path(__file__).parent / "shipped" / "ngram"
# More have too little to do with a thousand rows.
THREADS = 2
WEIGHTS_FILE = "ngrams.safetensors"
CALIBRATION_FILE = "calibration.json"


def booster_file(level: float) -> str:
    return f"p{round(level * 100):02d}.txt.gz"


@dataclass(frozen=True)
class NGram:
    """`folder` is a trained predictor's; None for the one that ships with uellm."""

    folder: Path | None = None

    source = "ngram"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        return self._model.quantiles(requests, prompt_tokens)

    @cached_property
    def _model(self) -> NGramModel:
        return read_model(self.folder or SHIPPED)


@dataclass(frozen=True)
class NGramModel:
    """`weights` [BUCKETS] of n-grams and `told_weights` [TOLD_BUCKETS] of metadata give log tokens
    less `intercept`; a booster for each level.

    `calibration` was made of rows that none of it had seen.
    """

    weights: NDArray[np.float64]
    told_weights: NDArray[np.float64]
    intercept: float
    boosters: tuple[lightgbm.Booster, ...]
    calibration: Calibration = field(default_factory=Calibration)

    source = "ngram"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        if not requests:
            return np.zeros((0, len(QUANTILE_LEVELS)))
        texts = texts_of(requests)
        told = hashed_metadata([request.metadata for request in requests])
        inputs = with_scores(
            hand_features(texts, prompt_tokens),
            self.intercept + hashed(texts).scores(self.weights),
            self.intercept + told.scores(self.told_weights),
        )
        return self.calibration.applied(boosted(self.boosters, inputs))

    def write(self, folder: Path) -> None:
        from safetensors.numpy import save

        tensors = {
            "weights": self.weights.astype(np.float16),
            "told_weights": self.told_weights.astype(np.float16),
            "intercept": np.array([self.intercept]),
        }
        (folder / WEIGHTS_FILE).write_bytes(save(tensors))
        for level, booster in zip(QUANTILE_LEVELS, self.boosters, strict=True):
            text = booster.model_to_string().encode()
            # Without the time of writing: the same model is the same file.
            (folder / booster_file(level)).write_bytes(gzip.compress(text, mtime=0))
        (folder / CALIBRATION_FILE).write_bytes(msgspec.json.encode(self.calibration))


def with_scores(
    features: NDArray[np.float64], text: NDArray[np.float64], told: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What boosters see: [rows, FEATURES + 2], scores in log tokens."""
    return np.column_stack([features, text, told])


def boosted(boosters: Sequence[lightgbm.Booster], inputs: NDArray[np.float64]) -> Quantiles:
    columns = [np.asarray(booster.predict(inputs, num_threads=THREADS)) for booster in boosters]
    return ascending(np.exp(np.column_stack(columns)))


def read_model(folder: Path) -> NGramModel:
    """Raises PredictorError where a file is missing or not as it was written."""
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        boosters = tuple(
            load_lightgbm().Booster(
                model_str=gzip.decompress((folder / booster_file(level)).read_bytes()).decode()
            )
            for level in QUANTILE_LEVELS
        )
        calibration = msgspec.json.decode(
            (folder / CALIBRATION_FILE).read_bytes(), type=Calibration
        )
        weights = tensors["weights"].astype(np.float64)
        told_weights = tensors["told_weights"].astype(np.float64)
        intercept = float(tensors["intercept"][0])
    except Exception as error:  # each of the three libraries has errors of its own
        raise PredictorError(f"{folder} cannot be used as a predictor: {error}") from None
    widths = {booster.num_feature() for booster in boosters}
    shapes = (weights.shape, told_weights.shape)
    if shapes != ((BUCKETS,), (TOLD_BUCKETS,)) or widths != {len(FEATURES) + 2}:
        raise PredictorError(f"{folder} is a predictor of another version of uellm; train it again")
    return NGramModel(weights, told_weights, intercept, boosters, calibration)
