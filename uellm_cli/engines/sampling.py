"""Per-request sampling and stopping inside one transformers `generate` call over a batch.

`generate` knows one temperature and one stop for the whole batch. Here every row has its own: a
logits processor draws each sampled row's token with that row's generator and leaves it as the only
finite score, so that `generate`'s argmax picks it; a stopping criterion ends rows one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from uellm_cli.types import EngineRequest, FinishReason, SamplingParams

# Below this, scores over the temperature overflow; the draw is the best token anyway.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class RowSampling:
    """A row's sampling with every default resolved; temperature 0 is greedy, top_k 0 is off."""

    temperature: float
    top_p: float
    top_k: int


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


def row_generator(request: EngineRequest, run_seed: int) -> torch.Generator:
    """A request's own randomness: by its seed, else by the run's seed and its id."""
    seed = request.sampling.seed
    if seed is None:
        digest = hashlib.sha256(f"{run_seed}\0{request.custom_id}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big", signed=True)
    # OpenAI's seeds are any 64-bit integers; torch takes them modulo 2**64.
    return torch.Generator().manual_seed(seed % 2**64)


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


class RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token of each row that samples; greedy rows pass through."""

    def __init__(self, rows: Sequence[RowSampling], generators: Sequence[torch.Generator]) -> None:
        self._sampled = [
            (i, row, generator)
            for i, (row, generator) in enumerate(zip(rows, generators, strict=True))
            if row.temperature > 0
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for i, row, generator in self._sampled:
            token = draw(scores[i], row, generator)
            scores[i] = float("-inf")
            scores[i, token] = 0.0
        return scores


@dataclass(slots=True)
class RowEnd:
    """How a row ended: after how many tokens, when, and why."""

    tokens: int
    at_s: float
    reason: FinishReason


class RowStops(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its end-of-sequence token, its stop string or its cap.

    `ends[i]` is row i's end once it has one, `first_token_s` when all rows had their first token.
    """

    def __init__(
        self,
        requests: Sequence[EngineRequest],
        prompt_width: int,
        eos_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        now_s: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._prompt_width = prompt_width
        self._eos_ids = eos_ids
        self._decode = decode
        self._now_s = now_s
        self.ends: list[RowEnd | None] = [None] * len(requests)
        self.first_token_s: float | None = None

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: object,
        **kwargs: object,
    ) -> torch.Tensor:
        made = input_ids.shape[1] - self._prompt_width
        last = input_ids[:, -1].tolist()
        now_s = self._now_s()
        if self.first_token_s is None:
            self.first_token_s = now_s
        for i, request in enumerate(self._requests):
            if self.ends[i] is None:
                reason = self._reason(request, last[i], made, input_ids[i])
                if reason is not None:
                    self.ends[i] = RowEnd(made, now_s, reason)
        ended = [end is not None for end in self.ends]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)

    def _reason(
        self, request: EngineRequest, last: int, made: int, row: torch.Tensor
    ) -> FinishReason | None:
        if last in self._eos_ids:
            return FinishReason.STOP
        if request.sampling.stop and self._has_stop(request.sampling.stop, row, made):
            return FinishReason.STOP
        return FinishReason.LENGTH if made >= request.max_tokens else None

    def _has_stop(self, stops: Sequence[str], row: torch.Tensor, made: int) -> bool:
        # A token is at least a byte, so a stop string that ends in this token lies within as many
        # last tokens as the string has bytes.
        window = min(made, max(len(stop.encode()) for stop in stops))
        # One token more on the left, since decoding may strip the space of a first one.
        tail = self._decode(row[max(self._prompt_width, len(row) - window - 1) :].tolist())
        return any(stop in tail for stop in stops)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to where the first stop string begins, as OpenAI's API returns it."""
    found = [text.find(stop) for stop in stops]
    return text[: min((at for at in found if at >= 0), default=len(text))]
