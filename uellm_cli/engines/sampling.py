"""How a row's next token is drawn: its parameters with every default resolved, and its chance.

A draw has no state. The chance of an answer's t-th token is a number made of the answer's seed and
of t, and the token is where that number falls in the row's own distribution, in the order of the
token ids. So a row draws the same tokens alone, beside others, in another engine, or when it is
computed again after an interruption, as far as the model's scores are the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from uellm_cli.types import EngineRequest, SamplingParams

# Below this, scores over the temperature overflow; the draw is the best token anyway.
MIN_TEMPERATURE = 1e-5
# How many of the best tokens a draw with top-p first looks at: for most answers they are enough.
CANDIDATES = 128
# Weights are added up in blocks, and exactly only in the block where a chance falls.
BLOCK = 128
# Of the 87 between the logarithms of the largest and the least weight: down to a float's digits.
_HALVINGS = 32


@dataclass(frozen=True, slots=True)
class RowSampling:
    """A row's sampling with every default resolved; temperature 0 is greedy, top_k 0 is off."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def is_of_the_best(self) -> bool:
        """Whether it draws from the best few tokens, as far as can be told beforehand."""
        return self.top_k > 0 or self.top_p < 1


def resolve_sampling(params: SamplingParams, defaults: GenerationConfig) -> RowSampling:
    """The user's values, else the model's own generation config where that one samples.

    A model's repetition penalty counts for greedy answers too, as in transformers' `generate`.
    """
    samples = bool(defaults.do_sample)

    def own(name: str, otherwise: float) -> float:
        value = getattr(defaults, name, None) if samples else None
        return otherwise if value is None else float(value)

    given = params.temperature
    temperature = (own("temperature", 1.0) if samples else 0.0) if given is None else given
    penalty = params.repetition_penalty
    return RowSampling(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=own("top_p", 1.0) if params.top_p is None else params.top_p,
        top_k=int(own("top_k", 0)) if params.top_k is None else params.top_k,
        min_p=own("min_p", 0.0) if params.min_p is None else params.min_p,
        repetition_penalty=(defaults.repetition_penalty or 1.0) if penalty is None else penalty,
    )


# --- Chance --------------------------------------------------------------------------------------

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def row_seed(request: EngineRequest, run_seed: int, answer: int = 0) -> int:
    """The seed of a request's answer, counted from 0, in [0, 2**64).

    By the request's own seed, else by the run's seed and the request's id.
    """
    seed = request.sampling.seed
    if seed is None:
        seed = _hashed(f"{run_seed}\0{request.custom_id}")
    if answer:
        seed = _hashed(f"{seed}\0{answer}")
    return seed % 2**64  # OpenAI's seeds are any 64-bit integers


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def chances(seeds: Iterable[int], positions: Iterable[int]) -> NDArray[np.float64]:
    """For each seed, the number in [0, 1) that draws its answer's token at that position, from 0.

    SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators"), of
    which a number at any place can be had without those before it. Each seed has its own start.
    """
    start = _mixed(np.fromiter(seeds, np.uint64))
    numbers = _mixed(start + (np.fromiter(positions, np.uint64) + np.uint64(1)) * _GAMMA)
    # 52 bits: times any sum, the result is below that sum in 64-bit floats.
    return (numbers >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX[0]
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX[1]
    return numbers ^ (numbers >> np.uint64(31))


# --- The draw ------------------------------------------------------------------------------------


def draw(
    scores: torch.Tensor, rows: Sequence[RowSampling], chances: NDArray[np.float64]
) -> torch.Tensor:
    """A token id for each row [rows] of `scores` [rows, vocab], by its own chance.

    Temperature, then top-k, top-p among what that leaves, then min-p, which is relative to the
    likeliest token (transformers' order). With top-p a token stays while the ones before it have
    not reached it, so the first always does. Tokens that tie with the last that stays do so too.
    """
    settings = _settings(scores, rows, chances)
    weights = torch.softmax(scores.float() / settings.temperature, dim=-1)
    likeliest = weights.amax(-1, keepdim=True)
    if any(row.top_k for row in rows):
        most = min(max(row.top_k for row in rows), scores.shape[-1])
        best = torch.topk(weights, most, dim=-1).values
        edge = best.gather(1, settings.top_k.long().clamp(max=most) - 1)
        weights.masked_fill_((weights < edge) & (settings.top_k <= most), 0.0)
    if any(row.top_p < 1 for row in rows):
        weights.masked_fill_(weights <= _top_p_edge(weights, settings.top_p), 0.0)
    if any(row.min_p for row in rows):
        weights.masked_fill_(weights < likeliest * settings.min_p.float(), 0.0)
    return pick(weights, settings.chance[:, 0])


def _top_p_edge(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """What weights [rows, vocab] are above of tokens that stay, [rows, 1], found by halving.

    To sort a vocabulary takes ten times as long.
    """
    wanted = weights.sum(-1, keepdim=True) * top_p
    # Of the logarithms: the edge is found to the last digits of any weight.
    low, high = torch.full_like(wanted, math.log(1e-38)), torch.zeros_like(wanted)
    above = torch.empty_like(weights)  # made once: to come by memory takes longer than to use it
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        torch.gt(weights, torch.exp(middle).float(), out=above)
        is_low = above.mul_(weights).sum(-1, keepdim=True) >= wanted
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return torch.where(top_p < 1, torch.exp(low).float(), -1.0)


def draw_from_best(
    scores: torch.Tensor,
    rows: Sequence[RowSampling],
    chances: NDArray[np.float64],
    candidates: int = CANDIDATES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `draw`, of rows that all have a top-k or a top-p, looking only at the best tokens.

    The other tensor, bools [rows], says for which rows the best `candidates` (or twice the largest
    top-k) were enough to know what stays. What is drawn for the others means nothing.
    """
    settings = _settings(scores, rows, chances)
    count = min(max([candidates, *(2 * row.top_k for row in rows)]), scores.shape[-1])
    best, ids = torch.topk(scores.float(), count)  # the largest first
    best = best / settings.temperature
    by_k, is_k = best.gather(1, settings.top_k.long().clamp(max=count) - 1), settings.top_k <= count
    edge = torch.where(is_k, by_k, -torch.inf)
    sums = torch.logsumexp(best.masked_fill(best < edge, -torch.inf), dim=-1, keepdim=True)
    if not all(row.top_k for row in rows):
        whole = torch.logsumexp(scores.float() / settings.temperature, dim=-1, keepdim=True)
        sums = torch.where(is_k, sums, whole)
    probabilities = torch.exp((best - sums).double())
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    by_p = best.gather(1, (before < settings.top_p).sum(-1, keepdim=True).clamp(min=1) - 1)
    edge = torch.maximum(edge, torch.where(settings.top_p < 1, by_p, -torch.inf))
    edge = torch.maximum(edge, best[:, :1] + torch.log(settings.min_p).float())
    # By id, for what lies next to each other by size may change places with the last digit.
    ids, order = ids.sort(dim=-1)
    weights = torch.where(best < edge, 0.0, torch.exp(best - best[:, :1])).gather(1, order)
    drawn = ids.gather(1, pick(weights, settings.chance[:, 0])[:, None])[:, 0]
    last = best[:, -1]
    more_may_stay = (last >= edge[:, 0]) & (last > -torch.inf)
    return drawn, ~more_may_stay if count < scores.shape[-1] else torch.ones_like(more_may_stay)


class _Settings(NamedTuple):
    """What rows are drawn with, each [rows, 1]; top_k is the whole vocabulary where it is off."""

    chance: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


def _settings(
    scores: torch.Tensor, rows: Sequence[RowSampling], chances: NDArray[np.float64]
) -> _Settings:
    numbers = [
        (chance, row.temperature, row.top_k or scores.shape[-1], row.top_p, row.min_p)
        for row, chance in zip(rows, chances.tolist(), strict=True)
    ]
    table = on_device(np.array(numbers), scores.device)
    chance, temperature, *limits = (table[:, i : i + 1] for i in range(5))
    return _Settings(chance, temperature.float(), *limits)


def on_device(numbers: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy on `device`, of which nothing waits for what the device is at work on."""
    return torch.from_numpy(numbers).to(device, non_blocking=True)


def pick(weights: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Of `weights` [rows, width], the index [rows] where a chance in [0, 1) of their sum falls.

    Never one without weight, where there is any. In two steps, the block and then the index in it:
    for a vocabulary this is far less work than its sums one by one, and as exact.
    """
    rows, width = weights.shape
    even = width // BLOCK * BLOCK
    sums = weights[:, :even].reshape(rows, width // BLOCK, BLOCK).sum(-1)
    if even < width:
        sums = torch.cat([sums, weights[:, even:].sum(-1, keepdim=True)], dim=1)
    block, within = _inverse(sums.double(), chances[:, None])
    place = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, place.clamp(max=width - 1)).double()
    index, _ = _inverse(inside.masked_fill(place >= width, 0.0), within)
    return (block * BLOCK + index)[:, 0]


def _inverse(weights: torch.Tensor, chances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where chances [rows, 1] fall, and how far into that weight, in [0, 1)."""
    ends = torch.cumsum(weights, dim=-1)
    target = chances * ends[:, -1:]
    index = torch.searchsorted(ends, target, right=True).clamp(max=weights.shape[1] - 1)
    # A parallel sum's last digits need not rise, which could lead to one without weight.
    index = torch.where(weights.gather(1, index) > 0, index, weights.argmax(-1, keepdim=True))
    own = weights.gather(1, index)
    within = (target - (ends.gather(1, index) - own)) / own
    return index, within.clamp(0, 1 - 2**-52)
