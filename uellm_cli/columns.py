"""Profiled requests as arrays: what a million of them are planned and simulated with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from uellm_cli.types import (
    QUANTILE_LEVELS,
    Batch,
    Budget,
    LengthEstimate,
    ProfiledRequest,
    Schedule,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEVELS = np.array(QUANTILE_LEVELS)
MEDIAN = QUANTILE_LEVELS.index(0.5)
P90 = QUANTILE_LEVELS.index(0.9)
# What each quantile counts for in a mean: straight between quantiles, flat beyond them.
_HALVES = np.diff(LEVELS) / 2
MEAN_WEIGHTS = np.append(_HALVES, 1 - LEVELS[-1]) + np.append(LEVELS[0], _HALVES)


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """[requests] each, in the order of the requests; what nobody promised is infinitely late.

    `quantiles` is [requests, QUANTILE_LEVELS] in tokens of one answer, of which `rounds` are made.
    `finish_by_s` and `first_token_by_s` count from the run's start. `kv_token_bytes` is what a
    token takes in the KV cache: where layers keep a window or a state, at the 0.9 quantile of the
    request's length. `slo_class` indexes `class_names`.
    """

    custom_ids: NDArray[np.object_]
    prompt_tokens: Ints
    quantiles: Floats
    max_tokens: Ints
    kv_token_bytes: Floats
    rounds: Ints
    arrival_s: Floats
    finish_by_s: Floats
    first_token_by_s: Floats
    tpot_s: Floats
    weight: Floats
    slo_class: Ints
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def p50(self) -> Floats:
        return self.quantiles[:, MEDIAN]

    @property
    def p90(self) -> Floats:
        return self.quantiles[:, P90]

    @property
    def mean(self) -> Floats:
        return np.asarray(self.quantiles @ MEAN_WEIGHTS)

    @property
    def kv_bytes(self) -> Floats:
        """What one answer at its 0.9 quantile takes with its prompt."""
        return self.kv_token_bytes * (self.prompt_tokens + self.p90)

    @property
    def due_s(self) -> Floats:
        """When the first thing is due: the first token, or all."""
        return np.minimum(self.finish_by_s, self.first_token_by_s)

    @property
    def is_promised(self) -> Bools:
        return np.isfinite(np.minimum(self.due_s, self.tpot_s))

    def at_level(self, level: float) -> Floats:
        """[requests], the quantile at `level`, straight between the stored ones."""
        return self.drawn(np.full(len(self), level))

    def drawn(self, levels: Floats) -> Floats:
        """[requests], each request's quantile at a level of its own."""
        place = np.clip(np.searchsorted(LEVELS, levels), 1, len(LEVELS) - 1)
        share = (levels - LEVELS[place - 1]) / (LEVELS[place] - LEVELS[place - 1])
        rows = np.arange(len(self))
        below, above = self.quantiles[rows, place - 1], self.quantiles[rows, place]
        return np.asarray(below + np.clip(share, 0.0, 1.0) * (above - below))

    def estimate(self, row: int) -> LengthEstimate:
        return LengthEstimate(tuple(self.quantiles[row].tolist()), "")

    def take(self, rows: Ints) -> RequestColumns:
        """The requests at `rows`, in that order."""
        taken = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "class_names"}
        return RequestColumns(
            **{name: column[rows] for name, column in taken.items()}, class_names=self.class_names
        )


def columns_of(requests: Sequence[ProfiledRequest]) -> RequestColumns:
    """What planning knows of requests, by column."""
    classes: dict[str, int] = {}
    slo_class = [classes.setdefault(request.slo.name, len(classes)) for request in requests]
    quantiles = _quantiles(requests)
    prompt_tokens = _ints(request.prompt_tokens for request in requests)
    kv_bytes = _floats(request.kv_bytes for request in requests)
    arrival_s = _floats(request.arrival_s for request in requests)
    return RequestColumns(
        custom_ids=np.array([request.custom_id for request in requests], dtype=np.object_),
        prompt_tokens=prompt_tokens,
        quantiles=quantiles,
        max_tokens=_ints(request.max_tokens for request in requests),
        kv_token_bytes=kv_bytes / (prompt_tokens + quantiles[:, P90]),
        rounds=_ints(request.rounds for request in requests),
        arrival_s=arrival_s,
        finish_by_s=_floats(_or_never(request.finish_by_s) for request in requests),
        first_token_by_s=arrival_s + _floats(_or_never(request.slo.ttft_s) for request in requests),
        tpot_s=_floats(_or_never(request.slo.tpot_s) for request in requests),
        weight=_floats(request.slo.weight for request in requests),
        slo_class=np.array(slo_class, dtype=np.int64),
        class_names=tuple(classes),
    )


def _quantiles(requests: Sequence[ProfiledRequest]) -> Floats:
    values = _floats(tokens for request in requests for tokens in request.output.tokens)
    return values.reshape(len(requests), len(QUANTILE_LEVELS))


def _floats(values: Iterator[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _ints(values: Iterator[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Requests in the order in which they run, by their rows in `RequestColumns`.

    Batch b is `order[starts[b]:starts[b + 1]]`, the last one goes to the end; in flight a batch is
    no more than what the engine takes at a time. `oversized` requests can never fit the budget.
    `budget` is the one it is made for, where that is less than what there was: fewer rows at a time
    or smaller steps. `tuning_s` is what finding that out would have taken on the machine.
    """

    order: Ints
    starts: Ints
    oversized: Ints
    budget: Budget | None = None
    tuning_s: float = 0.0

    @property
    def sizes(self) -> Ints:
        return np.diff(np.append(self.starts, len(self.order)))

    @property
    def batch_of(self) -> Ints:
        """[ordered requests], each one's batch."""
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    def of_rows(self, rows: Ints) -> Arrangement:
        """The same arrangement of requests that are `rows` of a larger table."""
        return replace(self, order=rows[self.order], oversized=rows[self.oversized])

    def named(self, algorithm: str, custom_ids: NDArray[np.object_]) -> Schedule:
        names = custom_ids[self.order].tolist()
        bounds = [*self.starts.tolist(), len(names)]
        batches = (
            Batch(number, tuple(names[start:end]))
            for number, (start, end) in enumerate(pairwise(bounds))
        )
        return Schedule(algorithm, tuple(batches), tuple(custom_ids[self.oversized].tolist()))


def one_after_another(parts: Sequence[Arrangement]) -> Arrangement:
    """All batches of the first arrangement, then those of the next; the tightest of their budgets.

    Raises ValueError without any.
    """
    before = np.cumsum([0, *(len(part.order) for part in parts)])
    return Arrangement(
        np.concatenate([part.order for part in parts]),
        np.concatenate([part.starts + first for part, first in zip(parts, before, strict=False)]),
        np.concatenate([part.oversized for part in parts]),
        _tightest([part.budget for part in parts if part.budget is not None]),
        sum(part.tuning_s for part in parts),
    )


def _tightest(budgets: Sequence[Budget]) -> Budget | None:
    if not budgets:
        return None
    return Budget(
        min(budget.kv_bytes for budget in budgets),
        min(budget.max_sequences for budget in budgets),
        min(budget.prefill_tokens for budget in budgets),
    )
