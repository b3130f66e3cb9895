"""`uellm bench`: what this machine makes of uellm, and of others."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import Output
from uellm_cli.types import Batching

if TYPE_CHECKING:
    from rich.table import Table

    from uellm_cli.bench.agreement import Check
    from uellm_cli.bench.engine import Contest, EngineReport
    from uellm_cli.bench.summary import Row

bench = typer.Typer(
    name="bench", help="Measure engines and schedulers on this machine.", no_args_is_help=True
)
NOTHING = "-"
# An idle engine that keeps this much of a processor busy disturbs the others' figures.
BUSY_CPUS = 0.05


@bench.command("engine")
def engine(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="small (14 M), medium (174 M), large (494 M), 1b, 8b: random weights; or bundled. "
            "May be given several times; small if left out.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, bfloat16 or float16; may be given several times; float32 if left out.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:longest-first]",
            help="Engines and peers to measure, with requests as they come or the longest answers "
            "first; all that are installed, as they come, if left out. inflight:torch is uellm's "
            "own without its compiled kernels.",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            help="Folder of peers, each with its worker and environment; a checkout's own "
            "benchmarks/peers if left out.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each engine.")] = 5,
    check: Annotated[
        int,
        typer.Option(
            min=0,
            help="Compare the answers to so many requests with plain transformers'; 0: to none.",
        ),
    ] = 16,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of each engine; all cores if left out.", show_default=False
        ),
    ] = None,
    max_sequences: Annotated[
        int | None,
        typer.Option(
            min=1, help="The most sequences at a time; left out, the model's.", show_default=False
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="So many requests; left out, the model's.", show_default=False),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(
            help="Take lengths from this trace (CSV or Parquet, as Azure's LLM inference trace).",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cache: Annotated[
        Path | None,
        typer.Option(help="Where made models are kept; left out, ~/.cache.", show_default=False),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which a round or a load has failed.")
    ] = 1800.0,
    seed: options.Seed = 0,
    json: options.Json = False,  # noqa: ARG001 - the line is written with or without it
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """The same work through every engine installed, in turns; a table, then one JSON line.

    Example: uellm bench engine --model small --dtype float32 --dtype bfloat16
    """
    import msgspec

    from uellm_cli.bench.engine import EngineBench, bench_engines
    from uellm_cli.bench.entrants import default_peers
    from uellm_cli.executor.run_info import redacted

    show = Output(quiet=quiet)
    asked = EngineBench(
        models=tuple(dict.fromkeys(model or ["small"])),
        dtypes=tuple(dict.fromkeys(dtype or ["float32"])),
        threads=threads or len(os.sched_getaffinity(0)),
        engines=tuple(engine or ()),
        peers=peers or default_peers(),
        rounds=rounds,
        check=check,
        max_sequences=max_sequences,
        requests=requests,
        lengths=lengths,
        seed=seed,
        device=device,
        cache=cache,
        timeout_s=timeout,
    )
    report = bench_engines(asked, redacted(sys.argv), show.line)
    for contest in report.contests:
        show.say("", *conditions(report, contest), contest_table(contest), *remarks(contest))
    typer.echo(msgspec.json.encode(report))


@bench.command("schedulers")
def schedulers(
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder with traces/*.parquet and lengths/*.jsonl, beside the synthetic sets.",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="Only these; all if left out.", show_default=False),
    ] = None,
    batching: Annotated[
        list[Batching] | None,
        typer.Option(help="Only one way of batching; both if left out.", show_default=False),
    ] = None,
    tightness: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            help="The latest deadline, in multiples of what the work takes at least; 0.5, 1, 1.5 "
            "and 2 if left out.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=5, help="Requests of a case.")] = 200,
    seeds: Annotated[int, typer.Option(min=2, help="Draws of each case.")] = 10,
    rows: Annotated[int, typer.Option(min=1, help="The most rows at a time.")] = 10,
    kv_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that the KV cache has room for.")
    ] = 100_000,
    json: options.Json = False,  # noqa: ARG001 - the line is written with or without it
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Every scheduler on the same requests, promises and predictions; tables, then one JSON line.

    Example: uellm bench schedulers --requests 50 --seeds 2 --tightness 1 --batching inflight
    """
    import msgspec

    from uellm_cli.bench.scheduler_cases import Order, Prediction, stored_sets, synthetic_sets
    from uellm_cli.bench.schedulers import SchedulerBench, report_of, run_cases
    from uellm_cli.cli.bench_view import contest_lines, standings_table
    from uellm_cli.clock import SystemClock
    from uellm_cli.executor.run_info import redacted
    from uellm_cli.scheduler import SCHEDULERS

    show = Output(quiet=quiet)
    for name in scheduler or ():
        SCHEDULERS.variant(name)
    asked = SchedulerBench(
        sets=[*synthetic_sets(), *(stored_sets(data) if data is not None else ())],
        schedulers=scheduler or SCHEDULERS.names(),
        batchings=batching or list(Batching),
        tightness=tightness or [0.5, 1.0, 1.5, 2.0],
        predictions=list(Prediction),
        orders=list(Order),
        requests=requests,
        seeds=seeds,
        rows=rows,
        kv_tokens=kv_tokens,
    )
    found = list(run_cases(asked, SystemClock(), show.line))
    report = report_of(asked, found, redacted(sys.argv))
    for each in asked.batchings:
        show.say("", standings_table(report, each), *contest_lines(report, each))
    typer.echo(msgspec.json.encode(report))


def conditions(report: EngineReport, contest: Contest) -> list[str]:
    """What the figures of a table hold for."""
    machine, rates = report.machine, contest.rates
    lengths = "forced" if contest.forced_lengths else "the model's own"
    floor = "unknown" if contest.floor_s is None else f"{contest.floor_s:.3g} s"
    return [
        f"{contest.model} {contest.dtype}, {contest.parameters / 1e6:.1f} M parameters: "
        f"{contest.requests} requests, {contest.prompt_tokens:,} prompt tokens, "
        f"{contest.output_tokens:,} output tokens ({lengths}), greedy, at most "
        f"{contest.max_sequences} at a time",
        f"{machine['processor']}, {report.threads} threads, {report.device}, {machine['date']}; "
        f"floor {floor}: {rates.bandwidth_bytes_per_s / 1e9:.1f} GB/s, "
        f"{rates.flops_per_s / 1e9:,.0f} GFLOP/s measured",
    ]


def contest_table(contest: Contest) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("engine", no_wrap=True)
    for name in ("tok/s", "median", "min-max", "x floor", "TTFT", "p99", "x ours", "same"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in contest.rows:
        table.add_row(Text(row.engine), *_figures(row))
    return table


def remarks(contest: Contest) -> list[str]:
    """What the columns are; versions, who is out and why, and who disturbed the others."""
    rows = contest.rows
    return [
        "seconds: median and least-most of the rounds, time to first token (median, p99); "
        "x ours: tokens/s over inflight's in the same order of requests",
        comparison(contest.check),
        *(f"{row.engine}: {_versions(row)}" for row in rows if row.versions),
        *(f"{row.engine} is out: {row.failure}" for row in rows if row.failure is not None),
        *(
            f"{row.engine} kept {row.idle_cpus:.2f} processors busy while others were measured"
            for row in rows
            if row.idle_cpus is not None and row.idle_cpus > BUSY_CPUS
        ),
    ]


def comparison(check: Check | None) -> str:
    if check is None or check.failure is not None:
        why = "it was not asked for" if check is None else f"transformers failed: {check.failure}"
        return f"same: answers were not compared; {why}"
    return f"same: {check.meaning}; the first {check.requests} requests of each round"


def _versions(row: Row) -> str:
    return ", ".join(f"{name} {number}" for name, number in row.versions.items())


def _figures(row: Row) -> list[str]:
    spread = NOTHING if row.least_s is None else f"{_seconds(row.least_s)}-{_seconds(row.most_s)}"
    return [
        NOTHING if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
        _seconds(row.median_s),
        spread,
        _ratio(row.times_floor),
        _seconds(row.ttft_p50_s),
        _seconds(row.ttft_p99_s),
        _ratio(row.relative),
        NOTHING if row.agreement is None else _percent(row.agreement),
    ]


def _seconds(value: float | None) -> str:
    """Three digits, so that a table stays narrow."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _percent(share: float) -> str:
    """100% only for all of it."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
