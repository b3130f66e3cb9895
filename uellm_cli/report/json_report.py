"""The report as a strict JSON document: `report.json`, and standard output with `--json`.

Top-level names are those that `vllm bench serve` saves, so that its comparison scripts read ours;
times there are in milliseconds (`_ms`), in everything that vllm does not have in seconds (`_s`).
A figure that does not exist is null.
"""

from __future__ import annotations

from dataclasses import asdict

from uellm_cli.report.metrics import ClassReport, LatencySummary, PredictionReport, RunReport
from uellm_cli.report.rows import LatencyRow

Document = dict[str, object]


def report_document(report: RunReport) -> Document:
    """The whole report in dicts, lists, strings, finite numbers, booleans and None."""
    totals = report.totals
    latencies = report.latencies
    return {
        "duration": totals.duration_s,
        "requests": totals.requests,
        "completed": totals.completed,
        "failed": totals.failed,
        "failures": dict(sorted(totals.failures.items())),
        "total_input_tokens": totals.input_tokens,
        "total_output_tokens": totals.output_tokens,
        "request_throughput": totals.request_throughput,
        "output_throughput": totals.output_throughput,
        "total_token_throughput": totals.total_token_throughput,
        "request_goodput": totals.request_goodput,
        **_milliseconds("ttft", latencies.ttft),
        **_milliseconds("tpot", latencies.tpot),
        **_milliseconds("itl", latencies.itl),
        **_milliseconds("e2el", latencies.e2e),
        **_milliseconds("queue", latencies.queue),
        "slo_requests": report.slo.promised,
        "slo_met": report.slo.met,
        "slo_attainment": report.slo.share,
        "classes": [_class_document(entry) for entry in report.classes],
        "blame": {cause.value: count for cause, count in sorted(report.blame.items())},
        "predictions": _predictions_document(report.predictions),
        "worst_misses": [_miss_document(row) for row in report.worst_misses],
    }


def _milliseconds(name: str, summary: LatencySummary | None) -> Document:
    seconds = {
        "mean": summary.mean_s if summary else None,
        "median": summary.median_s if summary else None,
        "p90": summary.p90_s if summary else None,
        "p99": summary.p99_s if summary else None,
    }
    return {
        f"{statistic}_{name}_ms": None if value is None else value * 1000
        for statistic, value in seconds.items()
    }


def _class_document(entry: ClassReport) -> Document:
    return {
        "name": entry.name,
        "requests": entry.requests,
        "completed": entry.completed,
        "late": entry.late,
        "slo_requests": entry.slo.promised,
        "slo_met": entry.slo.met,
        "slo_attainment": entry.slo.share,
        "tightest_deadline_s": entry.tightest_deadline_s,
        "loosest_deadline_s": entry.loosest_deadline_s,
        **_milliseconds("e2el", entry.e2e),
        "predictions": _predictions_document(entry.predictions),
    }


def _predictions_document(predictions: PredictionReport | None) -> Document | None:
    return asdict(predictions) if predictions else None


def _miss_document(row: LatencyRow) -> Document:
    return {
        "custom_id": row.custom_id,
        "slo_class": row.slo_class,
        "blame": row.blame.value,
        "deadline_s": row.deadline_s,
        "e2e_s": row.e2e_s,
        "late_s": row.late_s,
        "error": row.error,
    }
