"""Training of the `encoder` predictor: a pretrained transformer and the n-gram model beside it.

A share of the answers is kept aside; both learn from the rest, and what they say together is
calibrated on those aside. With few answers the transformer stays as it is and only its head is
learnt. An answer that was cut is learnt as a few lengths beyond its cut, as likely as the n-gram
model (or, without it, all other answers) has them: one redistribution (`learning/censoring.py`),
since a second one would train the network again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import msgspec
import numpy as np

from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.learning.censoring import PARTS, Bools, Floats, beyond
from uellm_cli.profiler.learning.conformal import calibrate, quantiles_of
from uellm_cli.profiler.learning.ngram import NGramTrainer
from uellm_cli.profiler.lengths.bounds import repeated
from uellm_cli.profiler.lengths.encoder import (
    BATCH_TOKENS,
    EncoderModel,
    EncoderSettings,
    standardised,
)
from uellm_cli.profiler.lengths.encoder_text import TokenReader
from uellm_cli.profiler.lengths.features import hand_features
from uellm_cli.profiler.lengths.ngram import NGramModel
from uellm_cli.profiler.lengths.text import texts_of
from uellm_cli.types import Example, Request

# Answers that calibration is made of.
ASIDE_SHARE = 0.15
LEAST_ASIDE = 24
LEAST_LEARNT = 50
# From so many on, fine-tuning is better than the embedding as it comes.
FINE_TUNED_FROM = 200
# Rows that the network sees while it is fine-tuned, and in how many epochs at the most and least.
ROWS_SEEN = 12_000
MOST_EPOCHS = 3
LEAST_EPOCHS = 2


@dataclass(frozen=True, slots=True)
class EncoderTrainer:
    """`base` is a Hub id or a folder, of an encoder or a causal language model.

    Of its layers the first `layers` are kept (None: all), of a prompt's tokens `max_prompt_tokens`,
    half from its beginning and half from its end. `epochs` of None are fewer, the more answers
    there are. `blend` is the n-gram model's share in the result. `device` and `dtype` are as
    `Encoder` has them; weights are kept in `dtype`.
    """

    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    layers: int | None = None
    epochs: int | None = None
    learning_rate: float = 1e-4
    batch_rows: int = 32
    max_prompt_tokens: int = 128
    blend: float = 0.5
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        counts = (self.layers, self.epochs, self.batch_rows, self.max_prompt_tokens)
        if any(count is not None and count < 1 for count in counts):
            raise UsageError(
                "encoder: layers, epochs, batch_rows and max_prompt_tokens must be at least 1"
            )
        if not 0 <= self.blend < 1:
            raise UsageError("encoder: blend must be at least 0 and less than 1")

    def train(
        self, examples: Sequence[Example], seed: int, note: Callable[[str], None]
    ) -> EncoderModel:
        texts = texts_of([example.request for example in examples])
        aside = held_out(texts, seed)
        learnt = list(compress(examples, ~aside))
        if len(learnt) < LEAST_LEARNT:
            raise PredictorError(
                f"encoder learns from at least {LEAST_LEARNT + LEAST_ASIDE} answers; there are "
                f"{len(examples)}, to {len(set(texts))} different prompts"
            )
        ngram = NGramTrainer().train(learnt, seed, note) if self.blend > 0 else None
        model = self._fitted(learnt, ngram, seed, note)

        held = list(compress(examples, aside))
        predicted = model.quantiles(*_asked(held))
        calibration = calibrate(predicted, _tokens(held), _censored(held))
        return replace(
            model, settings=msgspec.structs.replace(model.settings, calibration=calibration)
        )

    def _fitted(
        self,
        examples: Sequence[Example],
        ngram: NGramModel | None,
        seed: int,
        note: Callable[[str], None],
    ) -> EncoderModel:
        """Network and n-gram model together, not calibrated yet."""
        from uellm_cli.profiler.learning import encoder_fit as fit
        from uellm_cli.profiler.lengths import encoder_network as networks

        device = networks.chosen_device(self.device)
        dtype = networks.chosen_dtype(self.dtype, device)
        requests, prompt_tokens = _asked(examples)
        texts = texts_of(requests)
        features = hand_features(texts, prompt_tokens)
        scales = features.std(axis=0)
        settings = EncoderSettings(
            max_prompt_tokens=self.max_prompt_tokens,
            feature_means=tuple(features.mean(axis=0).tolist()),
            feature_scales=tuple(np.where(scales > 0, scales, 1.0).tolist()),
            blend=self.blend,
        )
        log_tokens = np.log(self._lengths(examples, ngram))

        with fit.seeded(seed, device):
            # Plain products: on a CPU a third quicker where gradients are asked for.
            attention = "eager" if device.type == "cpu" else None
            base = networks.load_base(self.base, layers=self.layers, attention=attention)
            limit = getattr(base.config, "max_position_embeddings", self.max_prompt_tokens)
            if self.max_prompt_tokens > limit:
                raise UsageError(f"encoder: {self.base} reads no more than {limit} tokens")
            reader = TokenReader(networks.load_tokenizer(self.base), self.max_prompt_tokens)
            head = networks.QuantileHead(base.config.hidden_size)
            head.start_from(quantiles_of(log_tokens.ravel(), np.zeros(log_tokens.size, bool)))
            network = networks.Network(base, head).to(device)
            values = standardised(features, settings)
            lessons = fit.Lessons.on(device, reader.ids(texts), values, log_tokens)
            fit.fit_head(network, lessons, dtype, BATCH_TOKENS)
            if len(examples) < FINE_TUNED_FROM:
                note(f"{len(examples):,} answers are few: {self.base} stays as it is")
            else:
                recipe = fit.Recipe(
                    self._epochs(len(examples)), self.batch_rows, self.learning_rate, dtype
                )
                fit.fine_tune(network, lessons, recipe, seed, note)
        network.base.to(dtype)
        return EncoderModel(network, reader, settings, ngram)

    def _epochs(self, rows: int) -> int:
        return self.epochs or min(max(round(ROWS_SEEN / rows), LEAST_EPOCHS), MOST_EPOCHS)

    def _lengths(self, examples: Sequence[Example], ngram: NGramModel | None) -> Floats:
        """[rows, PARTS] in tokens: what was answered, or might have been where it was cut."""
        tokens, censored = _tokens(examples), _censored(examples)
        lengths = np.repeat(tokens[:, None], PARTS, axis=1)
        if censored.any():
            cut = [example for example in examples if example.censored]
            likely = (
                repeated(quantiles_of(tokens, censored), len(cut))
                if ngram is None
                else ngram.quantiles(*_asked(cut))
            )
            lengths[censored] = beyond(tokens[censored], likely)
        return lengths


def held_out(texts: Sequence[str], seed: int) -> Bools:
    """Which rows are kept aside: whole groups of the same text, so that none of them is learnt."""
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
    places = np.random.default_rng(seed).permutation(len(numbers))[groups]
    wanted = max(round(ASIDE_SHARE * len(texts)), min(LEAST_ASIDE, len(texts) // 2))
    # Groups in the order of their places, as many as are needed for so many rows.
    last = np.sort(places)[wanted - 1] if wanted else -1
    return np.asarray(places <= last)


def _asked(examples: Sequence[Example]) -> tuple[list[Request], list[int]]:
    return [e.request for e in examples], [e.prompt_tokens for e in examples]


def _tokens(examples: Sequence[Example]) -> Floats:
    return np.array([max(example.output_tokens, 1) for example in examples], dtype=np.float64)


def _censored(examples: Sequence[Example]) -> Bools:
    return np.array([example.censored for example in examples], dtype=bool)
