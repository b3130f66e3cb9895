"""Whether a model computes in flight what it computes by itself: tried before it is believed.

Many things can be in a model that packing several texts into one would break without a word: state
that is carried from token to token, positions that are counted and not given, keys that one layer
borrows from another. Two texts in three steps show all of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.cache import KvCache, LayerGroup, blocks, layer_groups
from uellm_cli.engines.inflight.flights import Chunk, Flight, Flights, Limits
from uellm_cli.engines.inflight.layers import AttentionLayer, observe_layers
from uellm_cli.engines.inflight.packed import PackedModel
from uellm_cli.engines.inflight.step import Step, build_step
from uellm_cli.engines.inflight.unsupported import Unsupported, why_failed
from uellm_cli.engines.jobs import Job
from uellm_cli.engines.loaded import input_device
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.errors import ModelError
from uellm_cli.types import EngineRequest, SamplingParams

# Tokens of the two texts.
LENGTHS = (13, 7)
# What the three steps compute of each: the beginnings of both, then a token of the first and most
# of the other, and what is left.
CHUNKS = ((5, 3), (1, 3), (7, 1))
# In lower precision a rounding may turn round which expert a token goes to, and with it all that
# follows: such a model differs from itself now and then, a wrong one with whatever it is tried.
LOW_PRECISION_TRIES = 3
# Scores may differ by this share of their standard deviation: in lower precision even two right
# ways differ, and a wrong one differs by about 1.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.35}


@dataclass(frozen=True)
class Sample:
    """`alone` are, for each text of `tokens`, the scores [tokens, vocab] of what follows each."""

    tokens: Sequence[Sequence[int]]
    alone: Sequence[torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """What a model is and computes before anything is changed, and a way to compare."""

    model: Any
    layers: tuple[AttentionLayer, ...]
    groups: tuple[LayerGroup, ...]
    page_tokens: int
    samples: Sequence[Sample]

    @classmethod
    def of(cls, model: Any, eos_ids: frozenset[int], page_tokens: int) -> Trial:
        """Computes each text by itself, with the model's own attention; raises Unsupported.

        The model's attention is to be set again afterwards.
        """
        tries = 1 if model.dtype == torch.float32 else LOW_PRECISION_TRIES
        try:
            tokens = [texts(model, eos_ids, seed) for seed in range(tries)]
            samples = [Sample(each, scores_alone(model, each)) for each in tokens]
            refuse_what_is_no_number(model, samples)
            layers = observe_layers(model)
        except Exception as error:
            raise Unsupported(f"it cannot be looked into ({why_failed(error)})") from error
        return cls(model, layers, layer_groups(layers), page_tokens, samples)

    def differs(self, attention: PackedAttention) -> str | None:
        """How what the model computes in flight differs; None where it does not.

        That it cannot compute it is told in the same way.
        """
        how = None
        for sample in self.samples:
            try:
                how = self._how(attention, sample)
            except Exception as error:
                return why_failed(error)
            if how is None:
                break
        return how

    def _how(self, attention: PackedAttention, sample: Sample) -> str | None:
        for off in self._offs(attention, sample):
            if not off <= TOLERANCE.get(self.model.dtype, 0.35):  # or where it is no number
                return f"its scores are off by {off:.2g} standard deviations"
        return None

    def _offs(self, attention: PackedAttention, sample: Sample) -> Iterator[float]:
        """In standard deviations, how far each text's scores are off in each of the steps."""
        pages = sum(blocks(len(text) + 1, self.page_tokens) for text in sample.tokens)
        heads_first = attention.backend.heads_first
        cache = KvCache(self.groups, self.page_tokens, [pages] * len(self.groups), heads_first)
        packed = PackedModel(self.model, attention, cache)
        limits = Limits(len(sample.tokens), sum(map(len, sample.tokens)))
        flights = Flights(self.groups, cache.pools, self.page_tokens, limits, share_prefixes=False)
        rows = [_flight(number, text) for number, text in enumerate(sample.tokens)]
        for flight in rows:
            flights.add(flight)
        flights.next_chunks()  # seats them, with pages for all they have
        for counts in CHUNKS:
            chunks = [Chunk(flight, n) for flight, n in zip(rows, counts, strict=True)]
            chunks.sort(key=lambda chunk: chunk.tokens)
            drawn = packed.logits(_all_drawing(chunks, flights, input_device(self.model))).float()
            flights.advance(chunks)
            for chunk, scores in zip(chunks, drawn, strict=True):
                expected = sample.alone[chunk.flight.number][chunk.flight.computed - 1]
                yield float((scores - expected).abs().max() / expected.std().clamp_min(1e-6))


def refuse_what_is_no_number(model: Any, samples: Sequence[Sample]) -> None:
    """Raises ModelError for weights that no request could be answered with, else Unsupported.

    The weights are read only where the model's own scores are no numbers.
    """
    if all(bool(scores.isfinite().all()) for sample in samples for scores in sample.alone):
        return
    for name, weight in model.named_parameters():
        if weight.device.type != "meta" and not bool(weight.isfinite().all()):
            raise ModelError(
                f"the model's weights hold numbers that are none (NaN or infinity) in {name}; "
                "download or save it again"
            )
    raise Unsupported("its scores for a text that it is tried with are no finite numbers")


def refuse_what_shows_late(config: Any) -> None:
    """Raises Unsupported for what a model of this config does only in texts longer than a trial's.

    Rotary positions whose frequencies depend on the longest text of a forward pass are not each
    row's own.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        kind = rope.get("rope_type")
        if kind in ("dynamic", "longrope"):
            raise Unsupported(f"its {kind} positions depend on the longest text computed")


def texts(model: Any, eos_ids: frozenset[int], seed: int = 0) -> list[list[int]]:
    """Tokens [text, length] to try a model with."""
    vocab = model.get_input_embeddings().weight.shape[0]
    drawn = torch.randint(0, vocab, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))
    tokens = [token if token not in eos_ids else (token + 1) % vocab for token in drawn.tolist()]
    return [tokens[: LENGTHS[0]], tokens[LENGTHS[0] :]]


def scores_alone(model: Any, tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """For each text the scores [tokens, vocab] of what follows each token, by the model itself."""
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([text], device=input_device(model)), use_cache=False)
            .logits[0]
            .float()
            for text in tokens
        ]


def _all_drawing(chunks: Sequence[Chunk], flights: Flights, device: torch.device) -> Step:
    """A step in which every row draws, also one that has tokens left to compute."""
    step = build_step(chunks, flights, device)
    step.drawing = np.arange(step.rows)
    step.drawn_at = torch.from_numpy(step.starts[1:].astype(np.int64) - 1).to(device)
    return step


def _flight(number: int, tokens: Sequence[int]) -> Flight:
    request = EngineRequest("check", tuple(tokens), 1, SamplingParams())
    sampling = RowSampling(temperature=0.0, top_p=1.0, top_k=0)
    row = Row(request, sampling, seed=0)
    return Flight(number, number, Job(0, request, sampling), row, [*tokens], expected=1)
