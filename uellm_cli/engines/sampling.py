"""How one row's next token is drawn: its parameters with every default resolved, and its chance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from uellm_cli.types import EngineRequest, SamplingParams

# Below this, scores over the temperature overflow; the draw is the best token anyway.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class RowSampling:
    """A row's sampling with every default resolved; temperature 0 is greedy, top_k 0 is off."""

    temperature: float
    top_p: float
    top_k: int

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def resolve_sampling(params: SamplingParams, defaults: GenerationConfig) -> RowSampling:
    """The user's values, else the model's own generation config where that one samples."""
    samples = bool(defaults.do_sample)

    def own(name: str, otherwise: float) -> float:
        value = getattr(defaults, name, None) if samples else None
        return otherwise if value is None else float(value)

    given = params.temperature
    temperature = (own("temperature", 1.0) if samples else 0.0) if given is None else given
    return RowSampling(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=own("top_p", 1.0) if params.top_p is None else params.top_p,
        top_k=int(own("top_k", 0)) if params.top_k is None else params.top_k,
    )


def row_generator(request: EngineRequest, run_seed: int, answer: int = 0) -> torch.Generator:
    """The randomness of a request's answer, counted from 0, whatever else is in its batch.

    By the request's own seed, else by the run's seed and the request's id.
    """
    seed = request.sampling.seed
    if seed is None:
        seed = _hashed(f"{run_seed}\0{request.custom_id}")
    if answer:
        seed = _hashed(f"{seed}\0{answer}")
    # OpenAI's seeds are any 64-bit integers; torch takes them modulo 2**64.
    return torch.Generator().manual_seed(seed % 2**64)


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def draw(scores: torch.Tensor, row: RowSampling, generator: torch.Generator) -> int:
    """One token id from `scores` [vocab] by temperature, then top-k, then top-p (as OpenAI's)."""
    logits = scores.float() / row.temperature
    if not row.top_k and row.top_p >= 1:
        probabilities = torch.softmax(logits, dim=-1).cpu()
        return int(torch.multinomial(probabilities, 1, generator=generator).item())
    kept_tokens = min(row.top_k or len(logits), len(logits))
    # Largest first; the draw itself is on the CPU, where a seed means the same on every device.
    logits, ids = (part.cpu() for part in torch.topk(logits, kept_tokens))
    probabilities = torch.softmax(logits, dim=-1)
    # A token stays while the ones before it have not reached top_p: the first always does.
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    kept = torch.where(before < row.top_p, probabilities, 0.0)
    kept[0] = probabilities[0]
    return int(ids[torch.multinomial(kept, 1, generator=generator)].item())


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to where the first stop string begins, as OpenAI's API returns it."""
    found = [text.find(stop) for stop in stops]
    return text[: min((at for at in found if at >= 0), default=len(text))]
