"""The figures over all requests of a run: a pure function of their latency rows.

Names and definitions are those of `vllm bench serve` (vllm/benchmarks/serve.py,
`calculate_metrics`): tokens, latencies and throughputs are of answered requests only, and a
percentile is numpy's, linear between the two nearest values. Where there is nothing to compute a
figure from it is None, never NaN.

There is no inter-token latency (ITL): a row keeps the moments of the first and the last token, not
of those between, and TPOT is already their mean.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from uellm_cli.report.goodput import GoodputTargets, count_good
from uellm_cli.report.rows import LatencyRow
from uellm_cli.types import Blame

WORST_MISSES = 5


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts, and rates per second of the run; `failures` counts error codes.

    `output_tokens` are useful ones: no padding, nothing of failed requests. Rates are None for a
    run of no duration. `request_goodput` counts requests that kept their own promise, or all of
    `GoodputTargets` where given; it is None if nothing was promised.
    """

    requests: int
    completed: int
    failures: Mapping[str, int]
    duration_s: float
    input_tokens: int
    output_tokens: int
    request_throughput: float | None
    output_throughput: float | None
    total_token_throughput: float | None
    request_goodput: float | None

    @property
    def failed(self) -> int:
        return self.requests - self.completed


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """How one latency is spread over the answered requests."""

    mean_s: float
    median_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """See `rows.RequestLatency` for the definitions; None if no request has the latency."""

    queue: LatencySummary | None
    ttft: LatencySummary | None
    tpot: LatencySummary | None
    e2e: LatencySummary | None


@dataclass(frozen=True, slots=True)
class Attainment:
    """Requests with a promise, and those whose promise was kept; a failure keeps none."""

    promised: int
    met: int

    @property
    def share(self) -> float | None:
        """SLO attainment within [0, 1]; None if nothing was promised."""
        return self.met / self.promised if self.promised else None


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One SLO class. `late` counts answers after their deadline.

    Deadlines of one class differ when they fall on one moment for requests that start apart.
    """

    name: str
    requests: int
    completed: int
    late: int
    slo: Attainment
    e2e: LatencySummary | None
    tightest_deadline_s: float | None
    loosest_deadline_s: float | None


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """Predicted against actual output lengths, over answered requests with a prediction.

    `p50_error_tokens` is the median of |p50 - actual|; `p90_coverage` the share of answers no
    longer than their p90, 0.9 if calibrated.
    """

    requests: int
    median_tokens: float
    p50_error_tokens: float
    p90_coverage: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """All that a report says. `blame` counts the causes of broken promises, and only of those."""

    totals: Totals
    latencies: Latencies
    slo: Attainment
    classes: tuple[ClassReport, ...]
    blame: Mapping[Blame, int]
    predictions: PredictionReport | None
    worst_misses: tuple[LatencyRow, ...]


def summarise(
    rows: Sequence[LatencyRow], duration_s: float, goodput: GoodputTargets | None = None
) -> RunReport:
    """The report of a run of `duration_s` seconds; `goodput` replaces the requests' own targets."""
    answered = [row for row in rows if row.error is None]
    return RunReport(
        totals=_totals(rows, answered, duration_s, goodput),
        latencies=_latencies(answered),
        slo=_attainment(rows),
        classes=_classes(rows),
        blame=Counter(row.blame for row in rows if row.met is False),
        predictions=_predictions(answered),
        worst_misses=_worst_misses(rows),
    )


def _totals(
    rows: Sequence[LatencyRow],
    answered: Sequence[LatencyRow],
    duration_s: float,
    goodput: GoodputTargets | None,
) -> Totals:
    input_tokens = sum(row.prompt_tokens for row in answered)
    output_tokens = sum(row.output_tokens for row in answered)
    return Totals(
        requests=len(rows),
        completed=len(answered),
        failures=Counter(row.error for row in rows if row.error is not None),
        duration_s=duration_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        request_throughput=_rate(len(answered), duration_s),
        output_throughput=_rate(output_tokens, duration_s),
        total_token_throughput=_rate(input_tokens + output_tokens, duration_s),
        request_goodput=_rate(_good_requests(rows, goodput), duration_s),
    )


def _good_requests(rows: Sequence[LatencyRow], goodput: GoodputTargets | None) -> int | None:
    if goodput is not None:
        return count_good(rows, goodput)
    slo = _attainment(rows)
    return slo.met if slo.promised else None


def _rate(count: int | None, duration_s: float) -> float | None:
    return None if count is None or duration_s <= 0 else count / duration_s


def _latencies(answered: Sequence[LatencyRow]) -> Latencies:
    return Latencies(
        queue=_spread(row.queue_s for row in answered),
        ttft=_spread(row.ttft_s for row in answered),
        tpot=_spread(row.tpot_s for row in answered),
        e2e=_spread(row.e2e_s for row in answered),
    )


def _spread(latencies_s: Iterable[float | None]) -> LatencySummary | None:
    import numpy as np

    known = [latency for latency in latencies_s if latency is not None]
    if not known:
        return None
    p50, p90, p99 = np.percentile(known, (50, 90, 99)).tolist()
    return LatencySummary(mean_s=fmean(known), median_s=p50, p90_s=p90, p99_s=p99)


def _attainment(rows: Iterable[LatencyRow]) -> Attainment:
    promises = [row.met for row in rows if row.met is not None]
    return Attainment(promised=len(promises), met=sum(promises))


def _classes(rows: Iterable[LatencyRow]) -> tuple[ClassReport, ...]:
    by_class: dict[str, list[LatencyRow]] = defaultdict(list)
    for row in rows:
        by_class[row.slo_class].append(row)
    return tuple(_class_report(name, by_class[name]) for name in sorted(by_class))


def _class_report(name: str, rows: Sequence[LatencyRow]) -> ClassReport:
    answered = [row for row in rows if row.error is None]
    deadlines_s = [row.deadline_s for row in rows if row.deadline_s is not None]
    return ClassReport(
        name=name,
        requests=len(rows),
        completed=len(answered),
        late=sum(row.late_s is not None for row in answered),
        slo=_attainment(rows),
        e2e=_spread(row.e2e_s for row in answered),
        tightest_deadline_s=min(deadlines_s, default=None),
        loosest_deadline_s=max(deadlines_s, default=None),
    )


def _predictions(answered: Iterable[LatencyRow]) -> PredictionReport | None:
    predicted = [
        (row.output_tokens, row.predicted_tokens_p50, row.predicted_tokens_p90)
        for row in answered
        if row.predicted_tokens_p50 is not None and row.predicted_tokens_p90 is not None
    ]
    if not predicted:
        return None
    return PredictionReport(
        requests=len(predicted),
        median_tokens=median(actual for actual, _, _ in predicted),
        p50_error_tokens=median(abs(p50 - actual) for actual, p50, _ in predicted),
        p90_coverage=sum(actual <= p90 for actual, _, p90 in predicted) / len(predicted),
    )


def _worst_misses(rows: Iterable[LatencyRow]) -> tuple[LatencyRow, ...]:
    """The latest answers first, then broken promises without a lateness, each by id.

    Missing answers come last because they are already counted by error code and have a file of
    their own; what is hard to find is the answer that was late.
    """
    missed = (row for row in rows if row.met is False)
    ranked = sorted(missed, key=lambda row: (-(row.late_s or 0.0), row.custom_id))
    return tuple(ranked[:WORST_MISSES])
