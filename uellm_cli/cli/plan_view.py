"""A plan for people, in 80 columns: the verdict, by class and in time, and what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from uellm_cli.cli.output import amount, duration
from uellm_cli.report.console import visible
from uellm_cli.types import Cause, LateRequest, Remedy, RemedyKind, Spread, Verdict

if TYPE_CHECKING:
    from uellm_cli.planning import Compared
    from uellm_cli.profiler.trust import Trust
    from uellm_cli.types import Plan, ProfiledRequest

SHOWN_BATCHES = 8
TIMELINE_COLUMNS = 44
# Figures over scenarios that differ by less are told as one.
ALIKE = 0.02


# --- Sentences -----------------------------------------------------------------------------------


def verdict_sentence(planned: Plan) -> str:
    """The prediction in one sentence, with what it stands on."""
    verdict = planned.verdict
    total = sum(entry.requests for entry in verdict.classes)
    basis = f"{verdict.step_source} step times, {verdict.scenarios} draws of the lengths"
    end = f"done after {seconds_range(verdict.makespan_s)}"
    if verdict.late.is_nobody:
        return f"All {total:,} would be in time, {end} ({basis})."
    return f"{count_range(verdict.late)} of {total:,} would be late, {end} ({basis})."


def count_range(count: Spread) -> str:
    """Such as "37 (20-51)": the mean, and what is in the middle of the scenarios."""
    mean, low, high = (f"{value:,.0f}" for value in (count.mean, count.low, count.high))
    return mean if low == high == mean else f"{mean} ({low}-{high})"


def seconds_range(seconds: Spread) -> str:
    if seconds.high - seconds.low <= ALIKE * seconds.mean:
        return duration(seconds.mean)
    return f"{duration(seconds.mean)} ({duration(seconds.low)} to {duration(seconds.high)})"


def late_sentence(late: LateRequest) -> str:
    """Who is late first, and why."""
    who = f"{visible(late.custom_id)} ({visible(late.slo_class)})"
    due = "" if late.due_s is None else f", due after {duration(late.due_s)},"
    if late.cause is Cause.NO_ROOM:
        return f"First late: {who}{due} has no room in memory even alone."
    if late.cause is Cause.ALONE:
        return (
            f"First late: {who}{due} would take until {duration(late.alone_s)} with the machine to "
            "itself."
        )
    what = {
        Cause.BEGIN: "would have its first token too late",
        Cause.PACE: "would get its tokens too slowly",
    }.get(late.cause, f"would be done after {duration(late.end_s or 0.0)}")
    return (
        f"First late: {who}{due} {what}, in {late.share:.0%} of the draws; it would begin after "
        f"{duration(late.begin_s or 0.0)}."
    )


def no_room_sentence(oversized: Sequence[str]) -> str:
    many = "1 request has" if len(oversized) == 1 else f"{len(oversized):,} requests have"
    return (
        f"{many} no room in memory even alone ({visible(oversized[0])} among them) and will be an "
        "error row"
    )


def remedies_sentence(remedies: Sequence[Remedy]) -> str:
    told = {
        RemedyKind.TIME: lambda r: f"{duration(r.amount)} more for every deadline",
        RemedyKind.DEVICES: lambda r: f"{r.amount:.0f} copies of the model on devices like these",
        RemedyKind.CAP: lambda r: f"answers of at most {r.amount:,.0f} tokens",
        RemedyKind.CLASS: lambda r: (
            f"the {r.amount:,.0f} requests of class {visible(r.slo_class or '')} at another time"
        ),
    }
    if not remedies:
        return "No single change of time, devices, caps or classes would do."
    return f"Any of these would do: {'; '.join(told[r.kind](r) for r in remedies)}."


def lengths_note(stands_on: Trust) -> list[str]:
    """What has to be said of predicted lengths, if anything."""
    if stands_on.is_adapted:
        return []
    return [
        f"Lengths are by {stands_on.source}, which has not seen this model's answers: no coverage "
        "is promised"
    ]


def facts(planned: Plan) -> str:
    """Model, machine and order in one line."""
    devices = ", ".join(dict.fromkeys(planned.placement.device_ids))
    return (
        f"{planned.model.name} on {devices}: {amount(planned.model.weight_bytes)} of weights, "
        f"{amount(planned.budget.kv_bytes)} for KV; {len(planned.schedule.batches)} batches by "
        f"{planned.schedule.algorithm}"
    )


# --- Tables --------------------------------------------------------------------------------------


def classes_table(verdict: Verdict) -> Table:
    table = _table("class")
    table.title = "Predicted by class"
    for name in ("requests", "promised", "late", "in time", "done after"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in verdict.classes:
        nobody = entry.late.is_nobody
        kept = 1 - entry.late.mean / entry.promised if entry.promised else 1.0
        table.add_row(
            Text(visible(entry.name)),
            f"{entry.requests:,}",
            f"{entry.promised:,}",
            Text(count_range(entry.late), "green" if nobody else "red"),
            f"{100 * kept:.3g} %" if entry.promised else "-",
            duration(entry.end_s),
        )
    return table


def timeline(verdict: Verdict) -> Table:
    """When each class runs, from its first begin to its last end, once the engine can begin."""
    begin_s = min(entry.begin_s for entry in verdict.classes)
    end_s = max([verdict.makespan_s.mean, *(entry.end_s for entry in verdict.classes)])
    column_s = max(end_s - begin_s, 1e-9) / TIMELINE_COLUMNS
    table = _table("class")
    table.title = "When they would run"
    table.add_column(Text(f"{duration(begin_s)} to {duration(end_s)}"), no_wrap=True)
    for entry in verdict.classes:
        first = min(round((entry.begin_s - begin_s) / column_s), TIMELINE_COLUMNS - 1)
        last = max(first + 1, round((entry.end_s - begin_s) / column_s))
        style = "green" if entry.late.is_nobody else "red"
        bar = Text.assemble((" " * first, ""), ("█" * (last - first), style))
        bar.append("·" * (TIMELINE_COLUMNS - last), "dim")
        table.add_row(Text(visible(entry.name)), bar)
    return table


def batches_table(planned: Plan, requests: Mapping[str, ProfiledRequest]) -> Table:
    batches = planned.schedule.batches
    shown = batches[:SHOWN_BATCHES]
    table = _table("batch")
    table.title = f"First {len(shown)} of {len(batches)} batches"
    for name in ("requests", "longest prompt", "longest p50", "earliest deadline"):
        table.add_column(name, justify="right")
    for batch in shown:
        members = [requests[custom_id] for custom_id in batch.custom_ids]
        due = [m.finish_by_s for m in members if m.finish_by_s is not None]
        table.add_row(
            str(batch.batch_id),
            str(len(members)),
            f"{max(member.prompt_tokens for member in members):,}",
            f"{max(member.output.p50 for member in members):,.0f}",
            duration(min(due)) if due else "-",
        )
    return table


def comparison_table(found: Sequence[Compared]) -> Table:
    """Every scheduler's outcome, the best first."""
    table = _table("scheduler")
    for name in ("late", "10-90 %", "done after", "10-90 %", "decided in"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found:
        late, makespan = each.verdict.late, each.verdict.makespan_s
        table.add_row(
            Text(each.scheduler),
            Text(f"{late.mean:,.1f}", "green" if late.is_nobody else "red"),
            f"{late.low:,.0f}-{late.high:,.0f}",
            duration(makespan.mean),
            f"{duration(makespan.low)}-{duration(makespan.high)}",
            duration(each.planning_s),
        )
    return table


def advice(found: Sequence[Compared]) -> str:
    """Which scheduler to take, and why."""
    best, worst = found[0], found[-1]
    alike = [
        each.scheduler
        for each in found
        if round(each.verdict.late.mean) == round(best.verdict.late.mean)
        and each.verdict.makespan_s.mean <= (1 + ALIKE) * best.verdict.makespan_s.mean
    ]
    if len(alike) == len(found):
        return "Any of them will do: the order changes neither who is late nor when it is done."
    why = (
        f"{count_range(best.verdict.late)} late, done after "
        f"{duration(best.verdict.makespan_s.mean)}; the last in the table has "
        f"{count_range(worst.verdict.late)}, {duration(worst.verdict.makespan_s.mean)}"
    )
    others = [name for name in alike if name != best.scheduler]
    as_good = f" As good: {', '.join(others)}." if others else ""
    return f"Take {best.scheduler}: {why}.{as_good}"


def _table(subject: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.title_justify, table.title_style = "left", "bold"
    table.add_column(subject, overflow="fold")
    return table
