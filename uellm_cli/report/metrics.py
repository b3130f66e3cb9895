"""The figures over all requests of a run: a pure function of their latency rows.

Names and definitions are those of `vllm bench serve` (vllm/benchmarks/serve.py,
`calculate_metrics`): tokens, latencies and throughputs are of answered requests only, and a
percentile is numpy's, linear between the two nearest values. Where there is nothing to compute a
figure from it is None, never NaN.

Inter-token latencies (ITL) are of all tokens of all answers, where the engine tells them; TPOT is
one figure a request.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from uellm_cli.report.goodput import GoodputTargets, is_good
from uellm_cli.report.rows import LatencyRow
from uellm_cli.types import Blame, FinishReason

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
    itl: LatencySummary | None
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
class PredictionReport:
    """Predicted against actual output lengths, over answered requests with a prediction.

    `p50_error_tokens` is the median of |p50 - actual|; `p90_coverage` the share of answers no
    longer than their p90, 0.9 if calibrated. Both, `median_tokens` and `cut` are of the `requests`
    with one answer, and None without any: what is predicted is one answer's length, and the sum of
    n answers stays within n times their p90 far more often. The `several` requests with more
    answers are in the totals alone: `made_tokens` is what all answers came to, where
    `predicted_tokens_p50` and `predicted_tokens_p90` were predicted.

    Of the `cut` answers (finish reason "length") it is only known that they are at least as long as
    they are. One is covered where its p90 reached its cap, and its error is what the p50 lacked of
    the cap: none, where that was reached.
    """

    requests: int
    several: int
    cut: int
    median_tokens: float | None
    p50_error_tokens: float | None
    p90_coverage: float | None
    made_tokens: int
    predicted_tokens_p50: float
    predicted_tokens_p90: float


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
    predictions: PredictionReport | None


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
    rows: Iterable[LatencyRow], duration_s: float, goodput: GoodputTargets | None = None
) -> RunReport:
    """The report of a run of `duration_s` seconds; `goodput` replaces the requests' own targets.

    Rows are taken one by one and not kept: of a million requests only their latencies are.
    """
    tally = _Tally(goodput)
    for row in rows:
        tally.add(row)
    return tally.report(duration_s)


class _Spread:
    """Latencies in seconds, as numbers of eight bytes each, or of `typecode`."""

    def __init__(self, typecode: str = "d") -> None:
        self._known: array[float] = array(typecode)

    def add(self, latency_s: float | None) -> None:
        if latency_s is not None:
            self._known.append(latency_s)

    def add_all(self, latencies_s: Iterable[float]) -> None:
        self._known.extend(latencies_s)

    def summary(self) -> LatencySummary | None:
        import numpy as np

        if not self._known:
            return None
        p50, p90, p99 = np.percentile(self._known, (50, 90, 99)).tolist()
        return LatencySummary(mean_s=fmean(self._known), median_s=p50, p90_s=p90, p99_s=p99)


class _PredictionTally:
    def __init__(self) -> None:
        # Of single answers; the totals are of all.
        self._tokens = array("q")
        self._errors = array("d")
        self._cut = self._covered = self._several = self._made_tokens = 0
        self._p50_tokens = self._p90_tokens = 0.0

    def add(self, row: LatencyRow) -> None:
        p50, p90 = row.predicted_tokens_p50, row.predicted_tokens_p90
        if p50 is None or p90 is None:
            return
        self._made_tokens += row.output_tokens
        self._p50_tokens += p50
        self._p90_tokens += p90
        if row.answers > 1:
            self._several += 1
            return
        is_cut = row.finish_reason is FinishReason.LENGTH
        lacking = row.output_tokens - p50
        self._tokens.append(row.output_tokens)
        self._errors.append(max(lacking, 0.0) if is_cut else abs(lacking))
        self._cut += is_cut
        self._covered += row.output_tokens <= p90

    def add_all(self, other: _PredictionTally) -> None:
        self._tokens.extend(other._tokens)
        self._errors.extend(other._errors)
        self._several += other._several
        self._made_tokens += other._made_tokens
        self._cut += other._cut
        self._covered += other._covered
        self._p50_tokens += other._p50_tokens
        self._p90_tokens += other._p90_tokens

    def report(self) -> PredictionReport | None:
        judged = len(self._tokens)
        if not judged and not self._several:
            return None
        return PredictionReport(
            requests=judged,
            several=self._several,
            cut=self._cut,
            median_tokens=median(self._tokens) if judged else None,
            p50_error_tokens=median(self._errors) if judged else None,
            p90_coverage=self._covered / judged if judged else None,
            made_tokens=self._made_tokens,
            predicted_tokens_p50=self._p50_tokens,
            predicted_tokens_p90=self._p90_tokens,
        )


class _ClassTally:
    def __init__(self) -> None:
        self.requests = self.completed = self.late = self.promised = self.met = 0
        self.predictions = _PredictionTally()
        self._e2e = _Spread()
        self._tightest_s, self._loosest_s = math.inf, -math.inf

    def add(self, row: LatencyRow) -> None:
        self.requests += 1
        if row.error is None:
            self.completed += 1
            self.late += row.late_s is not None
            self.predictions.add(row)
        if row.met is not None:
            self.promised += 1
            self.met += row.met
        if row.deadline_s is not None:
            self._tightest_s = min(self._tightest_s, row.deadline_s)
            self._loosest_s = max(self._loosest_s, row.deadline_s)
        self._e2e.add(row.e2e_s)

    def report(self, name: str) -> ClassReport:
        return ClassReport(
            name=name,
            requests=self.requests,
            completed=self.completed,
            late=self.late,
            slo=Attainment(self.promised, self.met),
            e2e=self._e2e.summary(),
            tightest_deadline_s=self._tightest_s if math.isfinite(self._tightest_s) else None,
            loosest_deadline_s=self._loosest_s if math.isfinite(self._loosest_s) else None,
            predictions=self.predictions.report(),
        )


class _Tally:
    """Everything that is counted over the rows."""

    def __init__(self, goodput: GoodputTargets | None) -> None:
        self._goodput = goodput
        self._good = self._input_tokens = self._output_tokens = 0
        self._failures: Counter[str] = Counter()
        self._blame: Counter[Blame] = Counter()
        self._queue, self._ttft, self._tpot, self._e2e = (_Spread() for _ in range(4))
        self._itl = _Spread("f")  # one for each token
        self._classes: dict[str, _ClassTally] = defaultdict(_ClassTally)
        self._worst: list[LatencyRow] = []

    def add(self, row: LatencyRow) -> None:
        self._classes[row.slo_class].add(row)
        if row.met is False:
            self._blame[row.blame] += 1
            self._worst = sorted([*self._worst, row], key=_by_lateness)[:WORST_MISSES]
        if self._goodput is not None:
            self._good += is_good(row, self._goodput)
        if row.error is not None:
            self._failures[row.error] += 1
            return
        self._input_tokens += row.prompt_tokens
        self._output_tokens += row.output_tokens
        self._queue.add(row.queue_s)
        self._ttft.add(row.ttft_s)
        self._tpot.add(row.tpot_s)
        self._itl.add_all(row.itl_s)
        self._e2e.add(row.e2e_s)

    def report(self, duration_s: float) -> RunReport:
        classes = self._classes.values()
        predictions = _PredictionTally()
        for entry in classes:
            predictions.add_all(entry.predictions)
        slo = Attainment(sum(c.promised for c in classes), sum(c.met for c in classes))
        return RunReport(
            totals=self._totals(duration_s, slo),
            latencies=Latencies(
                queue=self._queue.summary(),
                ttft=self._ttft.summary(),
                tpot=self._tpot.summary(),
                itl=self._itl.summary(),
                e2e=self._e2e.summary(),
            ),
            slo=slo,
            classes=tuple(self._classes[name].report(name) for name in sorted(self._classes)),
            blame=self._blame,
            predictions=predictions.report(),
            worst_misses=tuple(self._worst),
        )

    def _totals(self, duration_s: float, slo: Attainment) -> Totals:
        requests = sum(entry.requests for entry in self._classes.values())
        completed = sum(entry.completed for entry in self._classes.values())
        good = self._good if self._goodput is not None else slo.met if slo.promised else None
        return Totals(
            requests=requests,
            completed=completed,
            failures=self._failures,
            duration_s=duration_s,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            request_throughput=_rate(completed, duration_s),
            output_throughput=_rate(self._output_tokens, duration_s),
            total_token_throughput=_rate(self._input_tokens + self._output_tokens, duration_s),
            request_goodput=_rate(good, duration_s),
        )


def _rate(count: int | None, duration_s: float) -> float | None:
    if count is None or duration_s <= 0:
        return None
    rate = count / duration_s
    return rate if math.isfinite(rate) else None  # of a run that took no time to speak of


def _by_lateness(row: LatencyRow) -> tuple[float, str]:
    """A sort key: the latest answers first, then broken promises without a lateness, each by id.

    Missing answers come last because they are already counted by error code and have a file of
    their own; what is hard to find is the answer that was late.
    """
    return -(row.late_s or 0.0), row.custom_id
