"""Whether a model computes in flight what it computes by itself: tried before it is believed.

Many things can be in a model that packing several texts into one would break without a word: state
that is carried from token to token, positions that are counted and not given, keys that one layer
borrows from another. Two texts in three steps show all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.cache import KvCache, LayerGroup, layer_groups
from uellm_cli.engines.inflight.flights import Chunk, Flight, Flights, Limits
from uellm_cli.engines.inflight.layers import AttentionLayer, observe_layers
from uellm_cli.engines.inflight.packed import PackedModel
from uellm_cli.engines.inflight.step import build_step
from uellm_cli.engines.inflight.unsupported import Unsupported
from uellm_cli.engines.jobs import Job
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.types import EngineRequest, SamplingParams

# Tokens of the two texts.
LENGTHS = (13, 7)
# Scores may differ by this share of their standard deviation: in lower precision even two right
# ways differ, and a wrong one differs by about 1.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.35}


@dataclass(frozen=True)
class Trial:
    """What a model is and computes before anything is changed, and a way to compare.

    `alone` are, for each of `tokens`, the scores [tokens, vocabulary] of what follows each token.
    """

    model: Any
    layers: tuple[AttentionLayer, ...]
    groups: tuple[LayerGroup, ...]
    page_tokens: int
    tokens: Sequence[Sequence[int]]
    alone: Sequence[torch.Tensor]

    @classmethod
    def of(cls, model: Any, tokens: Sequence[Sequence[int]], page_tokens: int) -> Trial:
        """Computes each text by itself, with the model's own attention; raises Unsupported.

        The model's attention is to be set again afterwards.
        """
        alone = scores_alone(model, tokens)
        layers = observe_layers(model)
        return cls(model, layers, layer_groups(layers), page_tokens, tokens, alone)

    def differs(self, attention: PackedAttention) -> str | None:
        """How what the model computes in flight differs; None where it does not."""
        return differs(
            self.model, attention, self.groups, self.page_tokens, self.tokens, self.alone
        )


def refuse_what_shows_late(config: Any) -> None:
    """Raises Unsupported for what a model of this config does only in texts longer than a trial's.

    Rotary positions whose frequencies depend on the longest text of a forward pass are not each
    row's own; and attention in chunks is done by a mask, which a packed pass has not.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(part for part in ropes.values() if isinstance(part, dict))):
        kind = rope.get("rope_type")
        if kind in ("dynamic", "longrope"):
            raise Unsupported(f"its {kind} positions depend on the longest text computed")
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise Unsupported("its attention goes by chunks")


def texts(model: Any, eos_ids: frozenset[int]) -> list[list[int]]:
    """Tokens [text, length] to try a model with."""
    vocab = model.get_input_embeddings().weight.shape[0]
    drawn = torch.randint(0, vocab, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    tokens = [token if token not in eos_ids else (token + 1) % vocab for token in drawn.tolist()]
    return [tokens[: LENGTHS[0]], tokens[LENGTHS[0] :]]


def scores_alone(model: Any, tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """For each text the scores [tokens, vocab] of what follows each token, by the model itself."""
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([text], device=model.device), use_cache=False)
            .logits[0]
            .float()
            for text in tokens
        ]


def differs(
    model: Any,
    attention: PackedAttention,
    groups: Sequence[LayerGroup],
    page_tokens: int,
    tokens: Sequence[Sequence[int]],
    alone: Sequence[torch.Tensor],
) -> str | None:
    """How what the model computes in flight differs from `alone`; None where it does not.

    The first step computes the beginnings of all texts, the second a token of the first and most of
    the others, and the last what is left.
    """
    pages = sum(len(text) // page_tokens + 1 for text in tokens)
    cache = KvCache(groups, page_tokens, [pages] * len(groups))
    packed = PackedModel(model, attention, cache)
    limits = Limits(len(tokens), sum(map(len, tokens)))
    flights = Flights(groups, cache.pools, page_tokens, limits, share_prefixes=False)
    rows = [_flight(number, text) for number, text in enumerate(tokens)]
    for flight in rows:
        flights.add(flight)
    flights.next_chunks()  # seats them, with pages for all they have
    for counts in ([5, 3], [1, len(tokens[1]) - 4], [len(tokens[0]) - 6, 1]):
        chunks = [Chunk(flight, n) for flight, n in zip(rows, counts, strict=True)]
        chunks.sort(key=lambda chunk: chunk.tokens)
        step = build_step(chunks, flights, model.device)
        step.drawing = np.arange(step.rows)
        step.drawn_at = torch.from_numpy(step.starts[1:].astype(np.int64) - 1).to(model.device)
        drawn = packed.logits(step).float()
        flights.advance(chunks)
        for chunk, scores in zip(chunks, drawn, strict=True):
            flight = chunk.flight
            expected = alone[flight.number][flight.computed - 1]
            off = float((scores - expected).abs().max() / expected.std().clamp_min(1e-6))
            if not off <= TOLERANCE.get(model.dtype, 0.35):
                return f"its scores are off by {off:.2g} standard deviations"
    return None


def _flight(number: int, tokens: Sequence[int]) -> Flight:
    request = EngineRequest("check", tuple(tokens), 1, SamplingParams())
    sampling = RowSampling(temperature=0.0, top_p=1.0, top_k=0)
    row = Row(request, sampling, seed=0)
    return Flight(number, number, Job(0, request, sampling), row, [*tokens], expected=1)
