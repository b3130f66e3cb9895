"""A profile for people, in 80 columns: lengths, what they take, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from uellm_cli.cli.output import amount, duration
from uellm_cli.pipeline import Profiled
from uellm_cli.profiler.resources import BatchMemory, Resources
from uellm_cli.profiler.trust import Trust
from uellm_cli.report.console import visible
from uellm_cli.types import ProfiledRequest

HEAVIEST = 10
SHOWN_INVALID = 5


def heaviest(requests: Sequence[ProfiledRequest]) -> list[ProfiledRequest]:
    return sorted(requests, key=lambda r: (-r.kv_bytes, r.custom_id))[:HEAVIEST]


def headline(profiled: Profiled) -> list[str]:
    invalid = profiled.invalid
    lines = [
        f"{len(profiled.requests):,} requests for {profiled.model.name}, {len(invalid):,} invalid"
    ]
    lines += [
        f"invalid: {bad.source}: {bad.field}: {bad.reason}" for bad in invalid[:SHOWN_INVALID]
    ]
    return lines


def facts(profiled: Profiled, resources: Resources, stands_on: Trust) -> Table:
    """Tokens, memory, time and trust, a paragraph each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, sentences in (
        ("Prompts", _prompts(profiled, resources)),
        ("Answers", _answers(resources)),
        ("KV cache", _cache(profiled, resources)),
        ("Time", _time(resources)),
        ("Trust", trust_words(stands_on)),
    ):
        grid.add_row(name, Text(visible(sentences)))
    return grid


def memory_table(memory: Sequence[BatchMemory], origin: str) -> Table:
    """What batches of several sizes take; the overhead of a device is shown where it has one."""
    has_overhead = any(batch.overhead_bytes for batch in memory)
    table = _table("requests at a time")
    table.title = Text(f"Memory, and whether {visible(origin)} has it")
    for name in ("weights", "KV at p90", "activations", *(("overhead",) if has_overhead else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in all", justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for batch in memory:
        sizes = [batch.weight_bytes, batch.kv_bytes, batch.activation_bytes]
        sizes += [batch.overhead_bytes] if has_overhead else []
        table.add_row(
            f"{batch.rows:,}",
            *(amount(size) for size in (*sizes, batch.total_bytes)),
            Text("yes", "green") if batch.fits else Text("no", "red"),
        )
    return table


def heaviest_table(requests: Sequence[ProfiledRequest]) -> Table:
    shown = heaviest(requests)
    table = _table("request")
    table.title = "The heaviest" if len(shown) == 1 else f"The {len(shown)} heaviest"
    for name in ("prompt", "p50", "p90", "cap", "KV at p90"):
        table.add_column(name, justify="right", no_wrap=True)
    for request in shown:
        table.add_row(
            Text(visible(request.custom_id), no_wrap=True, overflow="ellipsis"),
            f"{request.prompt_tokens:,}",
            f"{request.output.p50:,.0f}",
            f"{request.output.p90:,.0f}",
            f"{request.max_tokens:,}",
            amount(request.kv_bytes),
        )
    return table


# --- Sentences -----------------------------------------------------------------------------------


def _prompts(profiled: Profiled, resources: Resources) -> str:
    tokens = resources.tokens
    return (
        f"{tokens.prompt:,} tokens ({profiled.profile.token_source}), the longest "
        f"{tokens.longest_prompt:,}"
    )


def _answers(resources: Resources) -> str:
    tokens = resources.tokens
    return (
        f"{tokens.output_expected:,.0f} tokens expected; {tokens.output_p05:,.0f} to "
        f"{tokens.output_p95:,.0f} if all are at their p05 or all at their p95"
    )


def _cache(profiled: Profiled, resources: Resources) -> str:
    size = sum(request.kv_bytes for request in profiled.requests)
    return f"{amount(size)} for all of them at their p90 ({resources.kv_source})"


def _time(resources: Resources) -> str:
    time = resources.time
    if time is None:
        return f"not known, since the model has no room on {resources.origin}: {resources.problem}"
    return (
        f"at least {duration(time.together_s)} with {time.rows} at a time, "
        f"{duration(time.one_by_one_s)} one by one (step times on {resources.origin}: "
        f"{time.source}; loading is not in it)"
    )


def trust_words(stands_on: Trust) -> str:
    told = f"lengths by {stands_on.source}"
    if stands_on.rows is not None:
        whose = f" of {stands_on.model}" if stands_on.model is not None else ""
        cut = f", {stands_on.censored:,} of them cut" if stands_on.censored else ""
        told += f", learnt from and calibrated on {stands_on.rows:,} answers{whose}{cut}"
        told += f" ({stands_on.learnt_from})" if stands_on.learnt_from is not None else ""
    elif stands_on.learnt_from is not None:
        told += f", from {stands_on.learnt_from}"
    if stands_on.is_adapted and stands_on.rows is None:
        return f"{told}, taken as they are."
    if stands_on.is_adapted:
        return f"{told}. About 90 % of answers should be within their p90."
    return (
        f"{told}. Not adapted to this model: no coverage is promised without a pilot "
        "(uellm run --pilot 2%)."
    )


def _table(subject: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.title_justify, table.title_style = "left", "bold"
    table.add_column(subject)
    return table
