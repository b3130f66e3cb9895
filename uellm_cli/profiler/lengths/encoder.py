"""A fine-tuned transformer that reads the prompt: what the UELLM paper predicts lengths with.

Hand-made features stand beside the text's embedding, and the n-gram model's quantiles are averaged
with the network's: the two err in different places. None ships with uellm; one is learnt by
`uellm predictor train --kind encoder` (`learning/encoder.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from uellm_cli.atomic import write_json
from uellm_cli.errors import PredictorError, UellmError, UsageError
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.profiler.lengths.bounds import Quantiles
from uellm_cli.profiler.lengths.encoder_text import TokenReader
from uellm_cli.profiler.lengths.features import FEATURES, hand_features
from uellm_cli.profiler.lengths.ngram import NGramModel, read_model
from uellm_cli.profiler.lengths.text import texts_of
from uellm_cli.types import QUANTILE_LEVELS, Request

if TYPE_CHECKING:
    from uellm_cli.profiler.lengths.encoder_network import Network

SETTINGS_FILE = "encoder.json"
TOKENIZER_FILE = "tokenizer.json"
NGRAM_FOLDER = "ngram"
# Padded tokens of one forward pass: enough for a full product, few enough for the caches.
BATCH_TOKENS = 2048
# Requests whose texts and tokens are in memory together.
AT_ONCE = 8192
# No prompt is further from those of the training than this, in standard deviations.
FARTHEST = 5.0


@dataclass(frozen=True)
class Encoder:
    """`folder` is a trained predictor's. `batch_tokens` go through the network together.

    `device` is torch's name of it; `auto` is a GPU where there is one. `dtype` is `auto` (bfloat16
    where the device is quick at it), `float32`, `bfloat16` or `float16`.
    """

    folder: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int = BATCH_TOKENS

    source = "encoder"

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise UsageError("encoder: batch_tokens must be at least 1")

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        return self._model.quantiles(requests, prompt_tokens)

    @cached_property
    def _model(self) -> EncoderModel:
        if self.folder is None:
            raise PredictorError(
                "no encoder ships with uellm: train one with `uellm predictor train DATA "
                "--kind encoder -o DIR` and give its folder as the predictor"
            )
        model = read_encoder(self.folder, self.device, self.dtype)
        return replace(model, batch_tokens=self.batch_tokens)


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is no weight. Features are standardised by their means and scales [FEATURES].

    `blend` is the n-gram model's share of the log of each quantile. `calibration` was made of rows
    that neither has seen.
    """

    max_prompt_tokens: int
    feature_means: tuple[float, ...]
    feature_scales: tuple[float, ...]
    blend: float
    calibration: Calibration = Calibration()


@dataclass(frozen=True)
class EncoderModel:
    """`ngram` is None only where its share is nothing."""

    network: Network
    reader: TokenReader
    settings: EncoderSettings
    ngram: NGramModel | None = None
    batch_tokens: int = BATCH_TOKENS

    source = "encoder"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        parts = [np.zeros((0, len(QUANTILE_LEVELS)))]
        for i in range(0, len(requests), AT_ONCE):
            some = slice(i, i + AT_ONCE)
            parts.append(self._some(requests[some], prompt_tokens[some]))
        return self.settings.calibration.applied(np.concatenate(parts))

    def _some(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        texts = texts_of(requests)
        features = standardised(hand_features(texts, prompt_tokens), self.settings)
        ids = self.reader.ids(texts)
        logs = self.network.log_quantiles(ids, features, self.batch_tokens)
        if self.ngram is not None:
            share = self.settings.blend
            other = np.log(np.maximum(self.ngram.quantiles(requests, prompt_tokens), 1.0))
            logs = (1 - share) * logs + share * other
        return np.exp(logs)

    def write(self, folder: Path) -> None:
        self.network.write(folder)
        self.reader.tokenizer.save(str(folder / TOKENIZER_FILE))
        if self.ngram is not None:
            (folder / NGRAM_FOLDER).mkdir()
            self.ngram.write(folder / NGRAM_FOLDER)
        write_json(folder / SETTINGS_FILE, self.settings)


def standardised(features: NDArray[np.float64], settings: EncoderSettings) -> NDArray[np.float64]:
    values = (features - np.asarray(settings.feature_means)) / np.asarray(settings.feature_scales)
    return np.asarray(np.clip(values, -FARTHEST, FARTHEST))


def read_encoder(folder: Path, device: str, dtype: str) -> EncoderModel:
    """Raises PredictorError where a file is missing or not as it was written."""
    from tokenizers import Tokenizer

    from uellm_cli.profiler.lengths.encoder_network import read_network

    try:
        settings = msgspec.json.decode((folder / SETTINGS_FILE).read_bytes(), type=EncoderSettings)
        if len(settings.feature_means) != len(FEATURES):
            raise PredictorError(f"{folder} is of another version of uellm; train it again")
        return EncoderModel(
            network=read_network(folder, device, dtype),
            reader=TokenReader(
                Tokenizer.from_file(str(folder / TOKENIZER_FILE)), settings.max_prompt_tokens
            ),
            settings=settings,
            ngram=read_model(folder / NGRAM_FOLDER) if settings.blend > 0 else None,
        )
    except UellmError:
        raise
    except Exception as error:  # each of the libraries has errors of its own
        raise PredictorError(f"{folder} cannot be used as an encoder: {error}") from None
