"""Every scheduler on the same requests, promises, predictions and machine, many times over.

All get the same caps, budget and step times, and none knows the lengths that it is judged by,
unless its predictions are the truth. Outcomes are simulated; only useful tokens count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import t as student

from uellm_cli.bench.machine import describe_machine
from uellm_cli.bench.scheduler_cases import Case, Order, Prediction, WorkSet, case_of
from uellm_cli.clock import Clock
from uellm_cli.columns import Arrangement
from uellm_cli.errors import UsageError
from uellm_cli.scheduler import DEFAULT_SCHEDULER, SCHEDULERS
from uellm_cli.scheduler.bounds import late_bound, makespan_bound_s
from uellm_cli.timing.outcomes import Outcomes, breaks_promise
from uellm_cli.timing.simulator import simulate
from uellm_cli.types import Batching, Budget, Conditions, Source, StepTimes

# A machine of which a step takes 20 ms for one row and 50 ms for 64 with 300 tokens each: about a
# model of 8 billion parameters on one fast GPU.
STEP = StepTimes(0.02, 0.000_04, 0.000_3, 0.000_000_5, Source.ASSUMED)
TOKEN_BYTES = 131_072.0
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class SchedulerBench:
    """What is compared; `kv_tokens` is the memory for keys and values, in tokens."""

    sets: Sequence[WorkSet]
    schedulers: Sequence[str]
    batchings: Sequence[Batching]
    tightness: Sequence[float]
    predictions: Sequence[Prediction]
    orders: Sequence[Order]
    requests: int
    seeds: int
    rows: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One scheduler in one case; shares are of requests, seconds of simulated time.

    `effective_rows` is how many rows make a token in a step, on average. `over_bound` is the
    makespan over its lower bound, `late_bound` the least share of late requests.
    """

    scheduler: str
    batching: Batching
    work: str
    tightness: float
    prediction: Prediction
    order: Order
    seed: int
    late: float
    late_bound: float
    tardiness_s: float
    makespan_s: float
    over_bound: float
    tokens_per_s: float
    effective_rows: float
    preemptions: int
    tuning_s: float
    planning_s: float


@dataclass(frozen=True, slots=True)
class Mean:
    """Over seeds, with the half width of its 95 % confidence interval."""

    mean: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A scheduler over all seeds of one set, batching, prediction, order and tightness."""

    scheduler: str
    batching: Batching
    work: str
    tightness: float
    prediction: Prediction
    order: Order
    late: Mean
    late_bound: Mean
    tardiness_s: Mean
    over_bound: Mean
    tokens_per_s: Mean
    effective_rows: Mean
    preemptions: Mean


def run_cases(
    asked: SchedulerBench, clock: Clock, told: Callable[[str], None]
) -> Iterator[Measured]:
    """Every scheduler in every case, one case after the other."""
    for batching, work in product(asked.batchings, asked.sets):
        told(f"{work.name}, {batching}")
        conditions = conditions_of(asked, batching)
        for tightness, prediction, order, seed in product(
            asked.tightness, asked.predictions, asked.orders, range(asked.seeds)
        ):
            case = case_of(
                work,
                asked.requests,
                tightness,
                prediction,
                order,
                seed,
                conditions,
                TOKEN_BYTES,
            )
            for name in asked.schedulers:
                yield measured(name, case, conditions, clock)


def conditions_of(asked: SchedulerBench, batching: Batching) -> Conditions:
    budget = Budget(int(asked.kv_tokens * TOKEN_BYTES), asked.rows, prefill_tokens=8192)
    # Predictions here are right on average: what they are off is chance.
    return Conditions(budget, STEP, batching, length_correlation=0.0)


def measured(name: str, case: Case, conditions: Conditions, clock: Clock) -> Measured:
    """What comes of one scheduler's arrangement when answers have their true lengths."""
    columns, lengths = case.columns, case.output_tokens
    began_s = clock.now_s()
    arranged = SCHEDULERS.build(name).arrange(columns, conditions)
    planning_s = clock.now_s() - began_s
    if not len(arranged.order):
        raise UsageError("no request has room in the KV cache; give it more --kv-tokens")
    outcomes = simulate(columns, arranged, lengths, conditions)
    late = breaks_promise(columns, outcomes, lengths)
    over_s = np.maximum(outcomes.finished_s - columns.finish_by_s, 0.0)
    busy_s = outcomes.makespan_s - conditions.start_s
    ran = np.sort(arranged.order)
    bound_s = makespan_bound_s(columns.take(ran), lengths[ran], conditions) - conditions.start_s
    return Measured(
        scheduler=name,
        batching=conditions.batching,
        work=case.work,
        tightness=case.tightness,
        prediction=case.prediction,
        order=case.order,
        seed=case.seed,
        late=float(late.mean()),
        late_bound=late_bound(columns, lengths, conditions) / len(columns),
        tardiness_s=float(over_s[np.isfinite(over_s)].mean()),
        makespan_s=outcomes.makespan_s,
        over_bound=busy_s / bound_s,
        tokens_per_s=float(lengths[arranged.order].sum()) / busy_s,
        effective_rows=_effective_rows(case, arranged, outcomes, conditions),
        preemptions=outcomes.preemptions,
        tuning_s=arranged.tuning_s,
        planning_s=planning_s,
    )


def _effective_rows(
    case: Case, arranged: Arrangement, outcomes: Outcomes, conditions: Conditions
) -> float:
    """Rows that do useful work, on average over the run."""
    order, starts = arranged.order, arranged.starts
    if conditions.batching is Batching.STATIC:
        lengths = case.output_tokens[order]
        return float(lengths.sum() / np.maximum.reduceat(lengths, starts).sum())
    return float(
        (outcomes.finished_s - outcomes.prefill_s)[order].sum()
        / (outcomes.makespan_s - conditions.start_s)
    )


def standings(found: Sequence[Measured]) -> list[Standing]:
    """Means over the seeds of each case, in the order in which they were measured."""
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for each in found:
        key = (each.batching, each.work, each.tightness, each.prediction, each.order)
        groups.setdefault((*key, each.scheduler), []).append(each)
    return [_standing(group) for group in groups.values()]


def _standing(group: Sequence[Measured]) -> Standing:
    one = group[0]
    return Standing(
        scheduler=one.scheduler,
        batching=one.batching,
        work=one.work,
        tightness=one.tightness,
        prediction=one.prediction,
        order=one.order,
        late=mean_of([each.late for each in group]),
        late_bound=mean_of([each.late_bound for each in group]),
        tardiness_s=mean_of([each.tardiness_s for each in group]),
        over_bound=mean_of([each.over_bound for each in group]),
        tokens_per_s=mean_of([each.tokens_per_s for each in group]),
        effective_rows=mean_of([each.effective_rows for each in group]),
        preemptions=mean_of([float(each.preemptions) for each in group]),
    )


def mean_of(values: Sequence[float]) -> Mean:
    """Student's interval; infinitely wide for a single value."""
    if len(values) < 2:
        return Mean(float(np.mean(values)), math.inf)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Mean(
        float(np.mean(values)), error * float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    )


@dataclass(frozen=True, slots=True)
class Contest:
    """The default scheduler against the best of all others in one kind of case.

    `difference` is in shares of late requests, seed by seed: below zero is better. `ratio` is of
    the means; None where nobody is late with the other one.
    """

    batching: Batching
    work: str
    tightness: float
    prediction: Prediction
    order: Order
    best_other: str
    ours: float
    other: float
    ratio: float | None
    difference: Mean


def contests(found: Sequence[Measured]) -> list[Contest]:
    """By late share; the best other scheduler is the one of the least mean in that kind of case."""
    kinds: dict[tuple[object, ...], dict[str, list[Measured]]] = {}
    for each in found:
        key = (each.batching, each.work, each.tightness, each.prediction, each.order)
        kinds.setdefault(key, {}).setdefault(each.scheduler, []).append(each)
    return [
        _contest(schedulers)
        for schedulers in kinds.values()
        if DEFAULT_SCHEDULER in schedulers and len(schedulers) > 1
    ]


def _contest(schedulers: dict[str, list[Measured]]) -> Contest:
    late = {name: [each.late for each in group] for name, group in schedulers.items()}
    ours = late.pop(DEFAULT_SCHEDULER)
    other = min(late, key=lambda name: float(np.mean(late[name])))
    one = schedulers[other][0]
    mean, best = float(np.mean(ours)), float(np.mean(late[other]))
    return Contest(
        batching=one.batching,
        work=one.work,
        tightness=one.tightness,
        prediction=one.prediction,
        order=one.order,
        best_other=other,
        ours=mean,
        other=best,
        ratio=mean / best if best > 0 else None,
        difference=mean_of([a - b for a, b in zip(ours, late[other], strict=True)]),
    )


@dataclass(frozen=True, slots=True)
class SchedulerReport:
    """All of it: the one JSON line of the command."""

    benchmark: str
    command: tuple[str, ...]
    machine: dict[str, str | int]
    requests: int
    seeds: int
    rows: int
    kv_tokens: int
    standings: list[Standing]
    contests: list[Contest]


def report_of(
    asked: SchedulerBench, found: Sequence[Measured], command: Sequence[str]
) -> SchedulerReport:
    return SchedulerReport(
        benchmark="schedulers",
        command=tuple(command),
        machine=describe_machine(),
        requests=asked.requests,
        seeds=asked.seeds,
        rows=asked.rows,
        kv_tokens=asked.kv_tokens,
        standings=standings(found),
        contests=contests(found),
    )
