"""How the encoder's network learns: its head on the text as it is embedded, then all of it.

A head that starts from nothing would first undo what the base knows (Kumar et al. 2022). Imports
torch, and is imported only where a network is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from uellm_cli.profiler.learning.censoring import Floats
from uellm_cli.profiler.lengths.encoder_network import Network
from uellm_cli.profiler.lengths.encoder_text import Ids, Rows, batches_by_length
from uellm_cli.types import QUANTILE_LEVELS

HEAD_STEPS = 100
HEAD_LEARNING_RATE = 1e-3
HEAD_WEIGHT_DECAY = 0.1
WEIGHT_DECAY = 0.01
# The share of the steps over which the learning rate rises; it falls over the rest.
WARM_UP = 0.1
LARGEST_GRADIENT = 1.0
# Batches of like length are made of so many at random: of all rows, they would be of like task too.
SORTED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is learnt from: ids of each prompt, features [rows, FEATURES], log tokens [rows, n].

    A row has several lengths where it was cut, each as likely as the others.
    """

    ids: Ids
    features: Tensor
    log_tokens: Tensor

    @classmethod
    def on(cls, device: torch.device, ids: Ids, features: Floats, log_tokens: Floats) -> Lessons:
        tensors = [torch.from_numpy(x).to(device, torch.float32) for x in (features, log_tokens)]
        return cls(ids, *tensors)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`dtype` is what products are computed in; weights and sums are in float32."""

    epochs: int
    batch_rows: int
    learning_rate: float
    dtype: torch.dtype


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Chance that is the same for a seed, and nobody else's is touched."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fit_head(network: Network, lessons: Lessons, dtype: torch.dtype, batch_tokens: int) -> None:
    """Fits the head to all rows at once; the base stays as it is."""
    network.eval()
    rows = batches_by_length([len(ids) for ids in lessons.ids], batch_tokens)
    with torch.no_grad(), _products_in(dtype, network.device):
        parts = [network.embed([lessons.ids[row] for row in some]) for some in rows]
    back = torch.from_numpy(np.argsort(np.concatenate(rows))).to(network.device)
    embeddings = torch.cat(parts)[back]

    head = network.head.train()
    optimizer = AdamW(head.parameters(), lr=HEAD_LEARNING_RATE, weight_decay=HEAD_WEIGHT_DECAY)
    schedule = LambdaLR(optimizer, _rise_and_fall(HEAD_STEPS))
    for _ in range(HEAD_STEPS):
        loss = pinball(head(embeddings, lessons.features), lessons.log_tokens)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def fine_tune(
    network: Network, lessons: Lessons, recipe: Recipe, seed: int, note: Callable[[str], None]
) -> None:
    """Fits base and head together. The vectors of tokens stay: most are met too seldom to learn."""
    network.train()
    network.base.get_input_embeddings().requires_grad_(False)
    learnt = [weight for weight in network.base.parameters() if weight.requires_grad]
    optimizer = AdamW(
        [
            {"params": learnt, "lr": recipe.learning_rate},
            {"params": network.head.parameters(), "lr": HEAD_LEARNING_RATE},
        ],
        weight_decay=WEIGHT_DECAY,
    )
    chance = np.random.default_rng(seed)
    lengths = [len(ids) for ids in lessons.ids]
    epochs = [mixed_batches(lengths, recipe.batch_rows, chance) for _ in range(recipe.epochs)]
    schedule = LambdaLR(optimizer, _rise_and_fall(sum(map(len, epochs))))
    for number, batches in enumerate(epochs, start=1):
        losses = []
        for batch in batches:
            rows = torch.from_numpy(batch).to(network.device)
            with _products_in(recipe.dtype, network.device):
                embeddings = network.embed([lessons.ids[row] for row in batch])
            predicted = network.head(embeddings, lessons.features[rows])
            loss = pinball(predicted, lessons.log_tokens[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        note(f"epoch {number} of {recipe.epochs}: pinball loss {mean:.4f} of log tokens")


def pinball(quantiles: Tensor, log_tokens: Tensor) -> Tensor:
    """The mean over QUANTILE_LEVELS, rows and the lengths of each row (Koenker, Bassett 1978)."""
    levels = torch.tensor(QUANTILE_LEVELS, device=quantiles.device)
    over = log_tokens[:, :, None] - quantiles[:, None, :]
    return torch.maximum(levels * over, (levels - 1) * over).mean()


def mixed_batches(
    lengths: Sequence[int], batch_rows: int, chance: np.random.Generator
) -> list[Rows]:
    """Every row once, in batches of like length in no order."""
    sizes = np.asarray(lengths)
    order = chance.permutation(len(sizes))
    pool = batch_rows * SORTED_TOGETHER
    pools = [order[i : i + pool] for i in range(0, len(order), pool)]
    alike = np.concatenate([some[np.argsort(sizes[some], kind="stable")] for some in pools])
    borders = [*range(0, len(alike), batch_rows), len(alike)]
    batches = [alike[start:end] for start, end in pairwise(borders)]
    return [batches[i] for i in chance.permutation(len(batches))]


def _products_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    # float16 would need its losses scaled; what it is for has bfloat16 or learns in float32.
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


def _rise_and_fall(steps: int) -> Callable[[int], float]:
    """The share of the learning rate at each step: up from nothing, then down to nothing."""
    rise = max(1, round(WARM_UP * steps))
    return lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
