"""`uellm run`: answer everything, keep every answer, report on every promise."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import Output
from uellm_cli.clock import SystemClock
from uellm_cli.config import Settings
from uellm_cli.errors import UsageError

if TYPE_CHECKING:
    from types import FrameType

    from uellm_cli.pipeline import RunOutcome


# What a resumed run may be given anew: the rest is as it began.
RESUME_FLAGS = frozenset(
    {"requests", "output", "resume", "fail_on_slo_miss", "json", "quiet", "verbose"}
)


def run(
    context: typer.Context,
    requests: options.OptionalRequestFiles = None,
    slo_file: options.SloFile = None,
    model: options.Model = None,
    predictor: options.Predictor = options.PREDICTOR,
    predictor_option: options.PredictorOptions = None,
    scheduler: options.Scheduler = options.SCHEDULER,
    variant: options.Variant = None,
    scheduler_option: options.SchedulerOptions = None,
    engine: Annotated[str, typer.Option(help="What computes the answers.")] = options.ENGINE,
    engine_option: Annotated[
        list[str] | None, typer.Option("--engine-option", metavar="KEY=VALUE", show_default=False)
    ] = None,
    topology: options.TopologyFile = None,
    algorithm: options.Algorithm = options.ALGORITHM,
    algorithm_option: options.AlgorithmOptions = None,
    max_tokens: options.MaxTokens = None,
    max_batch: options.MaxBatch = options.MAX_BATCH,
    limit: options.Limit = None,
    strict: options.Strict = False,
    seed: options.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The run's directory; else runs/TIME.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the directory of -o.")
    ] = False,
    fail_on_slo_miss: Annotated[
        bool, typer.Option("--fail-on-slo-miss", help="Exit with 4 if a promise was broken.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Profile, schedule, place and answer the requests; each answer is kept as its batch ends.

    Example: uellm run sample_data/requests.jsonl --slo-file sample_data/slo.yaml -o runs/first
    """
    if resume and output is None:
        raise UsageError("--resume needs -o with the directory of the run to go on with")
    if resume:
        _refuse_other_settings(context)
    # The promises count from here: what loads after this is part of the run.
    clock = SystemClock()
    started = clock.wall()
    signal.signal(signal.SIGTERM, _interrupt)
    # Read when torch is loaded. Waiting OpenMP threads spin, by default for so long that beside
    # another busy process a step takes a hundred times as long (docs/LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    from uellm_cli import pipeline
    from uellm_cli.cli.progress import RunView

    settings = Settings(
        predictor=options.choice(predictor, predictor_option),
        scheduler=options.choice(scheduler, scheduler_option, variant=variant),
        placement=options.choice(algorithm, algorithm_option),
        engine=options.choice(engine, engine_option),
        requests=tuple(requests or ()),
        slo_file=slo_file,
        model=model,
        topology=topology,
        max_tokens=max_tokens,
        max_batch=max_batch,
        limit=limit,
        strict=strict,
        seed=seed,
    )
    show = Output(json, quiet)
    directory = output or default_directory(started)
    with RunView(show) as view:
        outcome = pipeline.run(settings, directory, resume, started, clock, view)
    _show(outcome, directory, show)
    raise typer.Exit(int(outcome.exit_code(fail_on_slo_miss)))


def _refuse_other_settings(context: typer.Context) -> None:
    for name in context.params.keys() - RESUME_FLAGS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--{name.replace('_', '-')} cannot be given with --resume: a run goes on as it "
                "began; start another one for other settings"
            )


def default_directory(started: datetime) -> Path:
    return Path("runs") / started.strftime("%Y%m%d-%H%M%S")


def _show(outcome: RunOutcome, directory: Path, show: Output) -> None:
    from uellm_cli.report.console import render
    from uellm_cli.report.json_report import report_document

    if not show.quiet:
        render(outcome.report, outcome.info, show.console)
    if outcome.info.interrupted:
        show.say(f"Interrupted. Go on with: uellm run --resume -o {directory}")
    else:
        show.say(f"Answers: {directory}/results.jsonl. Next: uellm report {directory}")
    show.document({"run_dir": str(directory), **report_document(outcome.report)})


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
