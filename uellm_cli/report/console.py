"""The summary on a terminal: a verdict first, then where the time went and which promises broke.

Identifiers, class names, error codes and names of models come from users and models. They are shown
as plain text, never as markup, and what could move the cursor or turn the line around is spelled
out. This file's own words are ASCII, so that any terminal can show them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uellm_cli.report.metrics import (
    ClassReport,
    Latencies,
    LatencySummary,
    PredictionReport,
    RunReport,
    Totals,
)
from uellm_cli.report.rows import LatencyRow
from uellm_cli.types import Blame, RunInfo

NOTHING = "-"

CAUSES = {
    Blame.NONE: "no cause recorded",
    Blame.INFEASIBLE: "could not be in time even alone",
    Blame.QUEUED: "waited for other requests",
    Blame.MISPREDICTED: "longer than predicted",
    Blame.STRAGGLER: "held up by its batch",
    Blame.PREEMPTED: "set aside to make room for others",
    Blame.OUT_OF_MEMORY: "memory ran out",
    Blame.ERROR: "failed",
    Blame.EXPIRED: "deadline passed before it was run",
    Blame.INTERRUPTED: "the run was stopped",
}


def render(report: RunReport, info: RunInfo, console: Console) -> None:
    """Prints the summary of `report` to `console`, within its width."""
    console.print(_verdict(report))
    for line in _provenance(info):
        console.print(line)
    console.print()
    console.print(_totals(report.totals))
    console.print()
    console.print(_latencies(report.latencies))
    console.print()
    if report.classes:
        console.print(_classes(report.classes))
        console.print()
    if report.worst_misses:
        console.print(_causes(report))
        console.print(_worst_misses(report.worst_misses))
        console.print()
    console.print(_predictions(report.predictions))
    judged = [entry for entry in report.classes if entry.predictions]
    if len(judged) > 1:
        console.print(_predictions_by_class(judged))


# --- Parts ---------------------------------------------------------------------------------------


def _verdict(report: RunReport) -> Text:
    """Such as "198 of 200 answered, 96 % of promises kept, 61.2 s"."""
    totals, kept = report.totals, report.slo.share
    promises = "nothing promised" if kept is None else f"{_percent(kept)} of promises kept"
    text = f"{totals.completed:,} of {totals.requests:,} answered, {promises}, "
    style = _style(kept) if totals.failed == 0 else "red"
    return Text(text + _duration(totals.duration_s), style=f"bold {style}")


def _provenance(info: RunInfo) -> list[Text]:
    model, engine, scheduler = (visible(n) for n in (info.model, info.engine, info.scheduler))
    lines = [
        Text(f"{model}, engine {engine}, scheduler {scheduler}, seed {info.seed}", style="dim")
    ]
    if info.engine == "simulated":
        lines.append(Text("Times are simulated: no model was run.", style="yellow"))
    if info.bundled_model:
        bundled = "The model is the tiny bundled one; name yours with --model."
        lines.append(Text(bundled, style="yellow"))
    return lines


def _totals(totals: Totals) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row("Requests", _outcome(totals))
    grid.add_row("Tokens", Text(f"{totals.input_tokens:,} read, {totals.output_tokens:,} written"))
    grid.add_row(
        "Throughput",
        Text(
            f"{_rate(totals.request_throughput)} requests/s, "
            f"{_rate(totals.output_throughput)} output tokens/s, "
            f"{_rate(totals.total_token_throughput)} tokens/s in all"
        ),
    )
    if totals.request_goodput is not None:
        goodput = Text(f"{_rate(totals.request_goodput)} requests/s within their targets")
        grid.add_row("Goodput", goodput)
    return grid


def _outcome(totals: Totals) -> Text:
    failures = dict(totals.failures)
    not_run = failures.pop(Blame.INTERRUPTED.value, 0)
    text = Text(f"{totals.completed:,} answered, {totals.failed - not_run:,} failed")
    if failures:
        text.append(f" ({_tally(failures.items())})")
    if not_run:
        text.append(f", {not_run:,} not run yet")
    return text


def _latencies(latencies: Latencies) -> Table:
    table = _table("latency")
    for heading in ("mean", "median", "p90", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, summary in (
        ("Queue", latencies.queue),
        ("TTFT", latencies.ttft),
        ("TPOT", latencies.tpot),
        ("ITL", latencies.itl),
        ("E2E", latencies.e2e),
    ):
        unit, cells = _summary_cells(summary)
        table.add_row(Text(f"{name}, {unit}"), *cells)
    return table


def _summary_cells(summary: LatencySummary | None) -> tuple[str, list[Text]]:
    """One unit for a row, so that its figures can be compared by their length."""
    if summary is None:
        return "s", [Text(NOTHING)] * 4
    unit, factor = ("s", 1.0) if summary.median_s >= 1 else ("ms", 1000.0)
    values = (summary.mean_s, summary.median_s, summary.p90_s, summary.p99_s)
    return unit, [Text(f"{value * factor:,.2f}") for value in values]


def _classes(classes: Iterable[ClassReport]) -> Table:
    table = _table("class")
    for heading in ("deadline", "kept", "share", "late", "failed", "E2E p50", "E2E p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in classes:
        slo = entry.slo
        table.add_row(
            _name(entry.name),
            Text(_deadline(entry)),
            Text(f"{slo.met:,}/{slo.promised:,}" if slo.promised else NOTHING),
            Text(_share(slo.share), style=_style(slo.share)),
            Text(f"{entry.late:,}"),
            Text(f"{entry.requests - entry.completed:,}"),
            Text(_duration(entry.e2e.median_s if entry.e2e else None)),
            Text(_duration(entry.e2e.p99_s if entry.e2e else None)),
        )
    return table


def _deadline(entry: ClassReport) -> str:
    tightest, loosest = _duration(entry.tightest_deadline_s), _duration(entry.loosest_deadline_s)
    return tightest if tightest == loosest else f"from {tightest}"


def _causes(report: RunReport) -> Text:
    text = Text("Broken promises: ", style="bold")
    return text.append(_tally(report.blame.items()), style="not bold")


def _worst_misses(misses: Iterable[LatencyRow]) -> Table:
    table = _table("worst misses")
    table.add_column("late by", justify="right", no_wrap=True)
    table.add_column("deadline", justify="right", no_wrap=True)
    table.add_column("why")
    for row in misses:
        table.add_row(
            _name(row.custom_id),
            Text(_duration(row.late_s)),
            Text(_duration(row.deadline_s)),
            Text(_cause(row)),
        )
    return table


def _cause(row: LatencyRow) -> str:
    cause = CAUSES[row.blame]
    return cause if row.error is None else f"{cause}: {visible(row.error)}"


def _predictions(quality: PredictionReport | None) -> Text:
    text = Text("Predictions: ", style="bold")
    if quality is None:
        return text.append("none to judge", style="not bold")
    return text.append(
        f"{_judgement(quality)}"
        f"{quality.made_tokens:,} tokens were made where {quality.predicted_tokens_p50:,.0f} (p50) "
        f"to {quality.predicted_tokens_p90:,.0f} (p90) were predicted.",
        style="not bold",
    )


def _judgement(quality: PredictionReport) -> str:
    """Of single answers; how many requests have several, and so are judged by none."""
    text = ""
    if quality.requests:
        cut = f" ({quality.cut:,} of them cut at their cap)" if quality.cut else ""
        text = (
            f"off by {_tokens(quality.p50_error_tokens)} in the median, on a median answer of "
            f"{_tokens(quality.median_tokens)} tokens; {_share(quality.p90_coverage)} of "
            f"{quality.requests:,} answers{cut} within their p90 (ideal: 90 %). "
        )
    if quality.several:
        text += f"{quality.several:,} requests with several answers each are not judged. "
    return text


def _predictions_by_class(classes: Iterable[ClassReport]) -> Table:
    table = _table("predictions")
    for heading in ("answers", "cut", "made", "at p50", "at p90", "off by", "within p90"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in classes:
        if (quality := entry.predictions) is not None:
            table.add_row(
                _name(entry.name),
                Text(f"{quality.requests:,}"),
                Text(f"{quality.cut:,}"),
                Text(f"{quality.made_tokens:,}"),
                Text(f"{quality.predicted_tokens_p50:,.0f}"),
                Text(f"{quality.predicted_tokens_p90:,.0f}"),
                Text(_tokens(quality.p50_error_tokens)),
                Text(_share(quality.p90_coverage)),
            )
    return table


# --- Words and figures ---------------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` with control, direction and other invisible characters written as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _table(subject: str) -> Table:
    """A table whose first column names things; `_name` makes its cells."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(subject)
    return table


def _name(text: str) -> Text:
    """A cell that is cut where the table is too wide.

    The cell forbids wrapping, not its column, because rich narrows columns that may wrap before it
    touches the figures.
    """
    return Text(visible(text), no_wrap=True, overflow="ellipsis")


def _tally(counts: Iterable[tuple[str, int]]) -> str:
    """Such as "3 queued, 1 error", the most frequent first."""
    ranked = sorted(counts, key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count:,} {visible(name)}" for name, count in ranked)


def _tokens(count: float | None) -> str:
    return NOTHING if count is None else f"{count:,.0f}"


def _share(share: float | None) -> str:
    return NOTHING if share is None else _percent(share)


def _percent(share: float) -> str:
    """To a tenth, rounded down: 100 % means all, and less than a tenth is not shown as none."""
    # The small addend undoes binary fractions: 0.283 * 1000 is just below 283.
    tenths = math.floor(share * 1000 + 1e-9)
    if share > 0 and tenths == 0:
        return "under 0.1 %"
    return f"{tenths / 10:g} %"


def _style(share: float | None) -> str:
    if share is None:
        return "default"
    if share == 1:
        return "green"
    return "yellow" if share >= 0.9 else "red"


def _rate(per_second: float | None) -> str:
    if per_second is None:
        return NOTHING
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _duration(seconds: float | None) -> str:
    """In the largest unit that keeps three figures; from two minutes on, in two units."""
    if seconds is None:
        return NOTHING
    if seconds < 0:
        # A deadline at a fixed time that is past when the request arrives.
        return f"-{_duration(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 119.95:
        return f"{seconds:.3g} s" if seconds < 99.95 else f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest_s:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min"
