"""A predictor adapted to one model by what that model has answered: a pilot's results, mostly.

Models differ in how much they say: a predictor that has learnt from another's answers is wrong by a
factor, and by another one for long answers. What is adapted is log tokens: the median's place and
slope, how far the quantiles lie from it on either side, and a correction by what the prompt says.
Beside that may stand an n-gram model that knows these answers alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from uellm_cli.errors import PredictorError
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.profiler.learning.saved import build_predictor, is_saved, read_description
from uellm_cli.profiler.lengths import ngram
from uellm_cli.profiler.lengths.bounds import MEDIAN, Quantiles, ascending, repeated
from uellm_cli.profiler.lengths.hashing import BUCKETS, hashed
from uellm_cli.profiler.lengths.ngram import NGramModel
from uellm_cli.profiler.lengths.text import texts_of
from uellm_cli.types import LengthPredictor, Request

ADAPTATION_FILE = "adaptation.json"
WEIGHTS_FILE = "residuals.safetensors"
OWN_FOLDER = "own"
BASE_FOLDER = "base"
# No correction by the prompt's words is beyond this, in log tokens: it stands on few answers.
MOST_CORRECTION = 1.5


@dataclass(frozen=True)
class Adaptation:
    """log q' = intercept + slope·log median + spread·(log q - log median), before calibration.

    `spread` is [below, above] the median. `constant` stands in the place of the base's quantiles
    where the pilot's own distribution is the better guess. `own_share` is the weight, in log
    tokens, of the model that was learnt from the pilot alone.
    """

    intercept: float = 0.0
    slope: float = 1.0
    spread: tuple[float, float] = (1.0, 1.0)
    constant: tuple[float, ...] | None = None
    own_share: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)

    def applied(self, quantiles: Quantiles, correction: NDArray[np.float64]) -> Quantiles:
        """The base's `quantiles` [rows, levels] adapted, not calibrated; `correction` [rows] is of
        log tokens.
        """
        if self.constant is not None:
            moved = repeated(self.constant, len(quantiles))
        else:
            logs = np.log(np.maximum(quantiles, 1.0))
            median = logs[:, MEDIAN : MEDIAN + 1]
            away = logs - median
            away = np.where(away < 0, self.spread[0], self.spread[1]) * away
            moved = np.exp(self.intercept + self.slope * median + away)
        return ascending(moved * np.exp(correction)[:, None])


class Base(msgspec.Struct, frozen=True):
    """Which predictor was adapted: its name, or its folder, and its options."""

    name: str
    options: Mapping[str, Any] = {}

    @property
    def folder(self) -> Path | None:
        """Where it was written, if it was trained."""
        folder = self.name if is_saved(self.name) else self.options.get("folder")
        return None if folder is None else Path(str(folder))

    def without_folder(self) -> Base:
        """The base as it goes with a copy of its folder."""
        name = read_description(Path(self.name)).kind if is_saved(self.name) else self.name
        return Base(name, {key: value for key, value in self.options.items() if key != "folder"})


class Saved(msgspec.Struct, frozen=True):
    base: Base
    adaptation: Adaptation


@dataclass(frozen=True)
class AdaptedModel:
    """`weights` [BUCKETS] correct log tokens by the prompt's n-grams; None where they do not.

    `own` was learnt from the pilot alone; None where it has no share.
    """

    base: Base
    predictor: LengthPredictor
    adaptation: Adaptation
    weights: NDArray[np.float64] | None = None
    own: NGramModel | None = None

    @property
    def source(self) -> str:
        share, rows = self.adaptation.own_share, self.adaptation.calibration.rows
        if self.adaptation.constant is not None:
            kind = "constant"
        elif share == 1:
            kind = "ngram"
        else:
            kind = self.predictor.source
        return f"{kind} + {rows} answers" if rows else kind

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        share = self.adaptation.own_share
        if self.own is not None and share == 1:
            said = self.own.quantiles(requests, prompt_tokens)
        else:
            base = self.predictor.quantiles(requests, prompt_tokens)
            said = self.adaptation.applied(base, self.correction(requests))
            if self.own is not None:
                said = blended(said, self.own.quantiles(requests, prompt_tokens), share)
        return self.adaptation.calibration.applied(said)

    def correction(self, requests: Sequence[Request]) -> NDArray[np.float64]:
        if self.weights is None or not requests:
            return np.zeros(len(requests))
        return corrections(hashed(texts_of(requests)).scores(self.weights))

    def write(self, folder: Path) -> None:
        saved = Saved(self.base.without_folder(), self.adaptation)
        # A copy, so that it predicts the same wherever it is, and whatever becomes of the base.
        if self.base.folder is not None:
            shutil.copytree(self.base.folder, folder / BASE_FOLDER)
        (folder / ADAPTATION_FILE).write_bytes(msgspec.json.encode(saved))
        if self.weights is not None:
            from safetensors.numpy import save

            tensors = {"weights": self.weights.astype(np.float32)}
            (folder / WEIGHTS_FILE).write_bytes(save(tensors))
        if self.own is not None:
            (folder / OWN_FOLDER).mkdir()
            self.own.write(folder / OWN_FOLDER)


def blended(quantiles: Quantiles, own: Quantiles, share: float) -> Quantiles:
    """The mean of both in log tokens, of which `own` has a `share`."""
    mixed: Quantiles = quantiles ** (1 - share) * own**share
    return mixed


def corrections(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(scores, -MOST_CORRECTION, MOST_CORRECTION)


@dataclass(frozen=True)
class Adapted:
    """`folder` is where the adapted predictor was written: a run's directory has one."""

    folder: Path | None = None

    @property
    def source(self) -> str:
        return self._model.source

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        return self._model.quantiles(requests, prompt_tokens)

    @cached_property
    def _model(self) -> AdaptedModel:
        if self.folder is None:
            raise PredictorError(
                "adapted is a predictor that a run has adapted to its model: give the folder "
                "RUN_DIR/predictor as --predictor"
            )
        return read_model(self.folder)


def read_model(folder: Path) -> AdaptedModel:
    """Raises PredictorError where a file is missing or not as it was written."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    weights = None
    try:
        content = (folder / ADAPTATION_FILE).read_bytes()
        saved = msgspec.json.decode(content, type=Saved)
        if (folder / WEIGHTS_FILE).exists():
            weights = load_file(folder / WEIGHTS_FILE)["weights"].astype(np.float64)
    except (OSError, KeyError, msgspec.MsgspecError, SafetensorError) as error:
        raise PredictorError(f"{folder} cannot be used as a predictor: {error}") from None
    if weights is not None and weights.shape != (BUCKETS,):
        raise PredictorError(f"{folder} is a predictor of another version of uellm")
    base = saved.base
    if (folder / BASE_FOLDER).is_dir():
        base = Base(base.name, {**base.options, "folder": str(folder / BASE_FOLDER)})
    own = ngram.read_model(folder / OWN_FOLDER) if (folder / OWN_FOLDER).is_dir() else None
    predictor = build_predictor(base.name, base.options)
    return AdaptedModel(base, predictor, saved.adaptation, weights, own)
