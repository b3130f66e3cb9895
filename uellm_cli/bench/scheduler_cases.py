"""What schedulers are compared on: requests of known length, promises, and predictions of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from uellm_cli.columns import LEVELS, Floats, Ints, RequestColumns
from uellm_cli.errors import UsageError
from uellm_cli.scheduler.bounds import makespan_bound_s
from uellm_cli.types import Conditions

# No answer is longer; production traces have few that are.
CAP = 4096
# Characters a token, where a prompt is given as text: about what English takes.
CHARACTERS_A_TOKEN = 4
# How much of an answer's length a predictor sees, as the correlation of normal variables behind
# rank and guess. 0.7 is a Kendall tau of 0.49, which the embedded predictor reaches on real
# answers (benchmarks/results/predictors.txt).
SEEN = 0.7


class Prediction(StrEnum):
    """What is known of lengths: nothing but their distribution, about half, or all."""

    CONSTANT = "constant"
    PREDICTED = "predicted"
    ORACLE = "oracle"


class Order(StrEnum):
    """Which requests come first in the file: any, or those that are due last."""

    SHUFFLED = "shuffled"
    ADVERSARIAL = "adversarial"


@dataclass(frozen=True, slots=True)
class WorkSet:
    """Prompts and answers to draw requests from, in tokens [pool]."""

    name: str
    prompt_tokens: Ints
    output_tokens: Ints


@dataclass(frozen=True, slots=True)
class Case:
    """One question to all schedulers; `output_tokens` is what they do not know."""

    work: str
    tightness: float
    prediction: Prediction
    order: Order
    seed: int
    columns: RequestColumns
    output_tokens: Ints


def synthetic_sets(pool: int = 5000, seed: int = 0) -> list[WorkSet]:
    """Answers of nearly one length, and answers with a heavy tail; lognormal both."""
    generator = np.random.default_rng(seed)

    def drawn(median: float, sigma: float) -> Ints:
        return _capped(np.exp(generator.normal(np.log(median), sigma, pool)))

    return [
        WorkSet("light tail", drawn(120, 0.6), drawn(200, 0.35)),
        WorkSet("heavy tail", drawn(120, 0.6), drawn(100, 1.2)),
    ]


def stored_sets(folder: Path) -> list[WorkSet]:
    """Traces and answers of others: `traces/*.parquet` and `lengths/*.jsonl` in a folder.

    Raises UsageError where it has neither.
    """
    found = [work for path in sorted(folder.glob("traces/*.parquet")) for work in _traces(path)]
    found += [_answers(path) for path in sorted(folder.glob("lengths/*.jsonl"))]
    if not found:
        raise UsageError(f"{folder}: has no traces/*.parquet and no lengths/*.jsonl")
    return found


def _traces(path: Path) -> list[WorkSet]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["trace", "in_tokens", "out_tokens"])
    names = np.array(table["trace"].to_pylist())
    prompts, answers = (table[name].to_numpy() for name in ("in_tokens", "out_tokens"))
    return [
        WorkSet(name, _capped(prompts[names == name]), _capped(answers[names == name]))
        for name in dict.fromkeys(names.tolist())
    ]


def _answers(path: Path) -> WorkSet:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = np.array([row["response_tokens_qwen2"] for row in rows])
    prompts = np.array([len(row["prompt"]) / CHARACTERS_A_TOKEN for row in rows])
    return WorkSet(path.stem, _capped(prompts), _capped(answers))


def _capped(tokens: Floats | Ints) -> Ints:
    return np.clip(np.rint(tokens), 1, CAP).astype(np.int64)


def case_of(
    work: WorkSet,
    requests: int,
    tightness: float,
    prediction: Prediction,
    order: Order,
    seed: int,
    conditions: Conditions,
    token_bytes: float,
) -> Case:
    """`requests` of a set, promised `tightness` times what the work takes at least."""
    generator = np.random.default_rng([seed, len(work.name)])
    rows = generator.choice(len(work.output_tokens), requests, len(work.output_tokens) < requests)
    prompts, answers = work.prompt_tokens[rows], work.output_tokens[rows]
    quantiles = _PREDICTIONS[prediction](generator, answers, work.output_tokens)
    never = np.full(requests, np.inf)
    columns = RequestColumns(
        custom_ids=np.array([f"r{i}" for i in range(requests)], dtype=np.object_),
        prompt_tokens=prompts,
        quantiles=np.clip(quantiles, 1.0, CAP),
        max_tokens=np.full(requests, CAP),
        kv_token_bytes=np.full(requests, token_bytes),
        rounds=np.ones(requests, dtype=np.int64),
        arrival_s=np.zeros(requests),
        finish_by_s=never,
        first_token_by_s=never,
        tpot_s=never,
        weight=np.ones(requests),
        slo_class=np.zeros(requests, dtype=np.int64),
        class_names=("all",),
    )
    least_s = makespan_bound_s(columns, answers, conditions) - conditions.start_s
    due_s = conditions.start_s + tightness * least_s * promised_shares(generator, requests)
    if order is Order.SHUFFLED:
        due_s = generator.permutation(due_s)
    dated = replace(columns, finish_by_s=due_s)
    return Case(work.name, tightness, prediction, order, seed, dated, answers)


def promised_shares(generator: np.random.Generator, requests: int) -> Floats:
    """Deadlines as UELLM's repository makes them (dataset/deal.py), as parts of the latest.

    Five groups of equal size, each uniform: 220-250, 180-220, 150-180, 100-120 and 90-100 s, in
    that order in the file, so that those who come first are due last.
    """
    groups = ((220, 250), (180, 220), (150, 180), (100, 120), (90, 100))
    group = np.arange(requests) * len(groups) // requests
    lows, highs = np.array(groups, dtype=np.float64).T
    return np.asarray(generator.uniform(lows[group], highs[group]) / 250.0)


# --- Predictions ---------------------------------------------------------------------------------


def _constant(_: np.random.Generator, answers: Ints, pool: Ints) -> Floats:
    return np.tile(np.quantile(pool, LEVELS), (len(answers), 1))


def _oracle(_: np.random.Generator, answers: Ints, _pool: Ints) -> Floats:
    return np.tile(answers[:, None].astype(np.float64), (1, len(LEVELS)))


def _predicted(generator: np.random.Generator, answers: Ints, pool: Ints) -> Floats:
    """A guess from a part of the truth, with the quantiles that it is right in.

    With the normal score z of an answer's rank, a guess is g = r·z + √(1-r²)·e; given g, z is
    normal around r·g with variance 1 - r².
    """
    ordered = np.sort(pool)
    below = np.searchsorted(ordered, answers, side="left")
    above = np.searchsorted(ordered, answers, side="right")
    rank = (below + generator.random(len(answers)) * (above - below) + 0.5) / (len(ordered) + 1)
    own = np.sqrt(1 - SEEN**2)
    guess = SEEN * ndtri(rank) + own * generator.standard_normal(len(answers))
    levels = ndtr(SEEN * guess[:, None] + own * ndtri(LEVELS)[None, :])
    return np.asarray(np.quantile(ordered, levels))


_PREDICTIONS: Mapping[Prediction, Callable[[np.random.Generator, Ints, Ints], Floats]] = {
    Prediction.CONSTANT: _constant,
    Prediction.PREDICTED: _predicted,
    Prediction.ORACLE: _oracle,
}
