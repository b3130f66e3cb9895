"""`uellm run`: answer everything, keep every answer, report on every promise."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import Output
from uellm_cli.clock import SystemClock
from uellm_cli.config import OnLate, OutputFormat, Redoable, Resume, Settings
from uellm_cli.errors import ExitCode, UsageError
from uellm_cli.profiler.pilot import AUTOMATIC

if TYPE_CHECKING:
    from uellm_cli.pipeline import RunOutcome


# What belongs to one command and not to the run.
COMMAND_FLAGS = frozenset(
    {"requests", "output", "resume", "redo", "changed_only", "fail_on_slo_miss"}
    | {"json", "quiet", "verbose"}
)
# Settings that a resumed run may be given anew: no answer depends on them.
CHANGEABLE = frozenset({"durability", "on_late", "output_format"})


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
    engine: options.Engine = options.ENGINE,
    engine_option: options.EngineOptions = None,
    topology: options.TopologyFile = None,
    algorithm: options.Algorithm = options.ALGORITHM,
    algorithm_option: options.AlgorithmOptions = None,
    max_tokens: options.MaxTokens = None,
    max_batch: options.MaxBatch = None,
    limit: options.Limit = None,
    strict: options.Strict = False,
    truncate_prompt: options.TruncatePrompt = False,
    trust_remote_code: options.TrustRemoteCode = False,
    on_late: Annotated[
        OnLate, typer.Option(help="What to do with a request whose deadline is past: it runs last.")
    ] = OnLate.RUN,
    pilot: Annotated[
        str,
        typer.Option(
            metavar="2%|NUMBER|auto|off",
            help="Requests answered first, to learn how long this model's answers are; the rest "
            "is planned anew. auto: where the file is large enough to pay for it.",
        ),
    ] = AUTOMATIC,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Follow this plan of `uellm plan -o` as it is, instead of making one.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Time the engine's steps for up to 20 s first, if they are not known and the run "
            "is long."
        ),
    ] = True,
    durability: Annotated[
        str,
        typer.Option(
            metavar="result|batch|5s",
            help="When results are put on the disk: after each, each batch, or every so often.",
        ),
    ] = "batch",
    output_format: Annotated[
        OutputFormat, typer.Option(help="parquet: results.parquet beside the JSON lines.")
    ] = OutputFormat.JSONL,
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
    redo: Annotated[
        list[Redoable] | None,
        typer.Option(
            "--redo",
            help="With --resume: answer again what failed, expired or was cut at its cap "
            "(--max-tokens raises that). May be repeated.",
            show_default=False,
        ),
    ] = None,
    changed_only: Annotated[
        bool,
        typer.Option(
            "--changed-only",
            help="With --resume: inputs may have changed; only what is new or different is run.",
        ),
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
    going_on = _resumed(context, redo, changed_only, max_tokens) if resume else None
    if going_on is None and (redo or changed_only):
        raise UsageError("--redo and --changed-only go with --resume")
    if resume and output is None:
        raise UsageError("--resume needs -o with the directory of the run to go on with")
    if plan is not None and going_on is None:
        _refuse_beside_a_plan(context)
    # The promises count from here: what loads after this is part of the run.
    clock = SystemClock()
    started = clock.wall()
    from uellm_cli.hardware.processors import prepare

    prepare(os.environ)  # before torch is loaded, which reads it
    from uellm_cli import pipeline
    from uellm_cli.cli.progress import RunView
    from uellm_cli.cli.signals import stopping
    from uellm_cli.executor.run_directory import RUN
    from uellm_cli.executor.stop import Stop

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
        truncate_prompt=truncate_prompt,
        trust_remote_code=trust_remote_code,
        on_late=on_late,
        pilot=pilot,
        plan=plan,
        calibrate=calibrate,
        durability=durability,
        output_format=output_format,
        seed=seed,
    )
    show = Output(json, quiet)
    directory = output or default_directory(started)
    stop = Stop()
    try:
        with RunView(show) as view, stopping(stop, view.on_stop):
            outcome = pipeline.run(settings, directory, going_on, started, clock, stop, view)
    except KeyboardInterrupt:
        kept = (directory / RUN).exists()
        show.say(_how_to_go_on(directory) if kept else "Stopped before there was anything to keep.")
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    _show(outcome, directory, show)
    raise typer.Exit(int(outcome.exit_code(fail_on_slo_miss)))


def _refuse_beside_a_plan(context: typer.Context) -> None:
    """UsageError for a flag that says how to plan: the plan has been made."""
    for name in ("scheduler", "variant", "scheduler_option", "pilot", "max_batch"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} and --plan contradict each other: the plan has decided that")


def _resumed(
    context: typer.Context,
    redo: list[Redoable] | None,
    changed_only: bool,
    max_tokens: int | None,
) -> Resume:
    """How the run goes on; UsageError for flags that would make another run of it."""
    given = {
        name
        for name in context.params.keys() - COMMAND_FLAGS
        if (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    }
    allowed = CHANGEABLE | ({"max_tokens"} if redo else set())
    for name in sorted(given - allowed):
        hint = " (only with --redo)" if name == "max_tokens" else ""
        raise UsageError(
            f"--{name.replace('_', '-')} cannot be given with --resume{hint}: a run goes on as it "
            "began; start another one for other settings"
        )
    changes = {name: context.params[name] for name in given & CHANGEABLE}
    return Resume(tuple(redo or ()), max_tokens, changed_only, changes)


def default_directory(started: datetime) -> Path:
    return Path("runs") / started.strftime("%Y%m%d-%H%M%S")


def _how_to_go_on(directory: Path) -> str:
    return f"Interrupted. Go on with: uellm run --resume -o {directory}"


def _show(outcome: RunOutcome, directory: Path, show: Output) -> None:
    from uellm_cli.report.console import render
    from uellm_cli.report.json_report import report_document

    if not show.quiet:
        render(outcome.report, outcome.info, show.console)
    if outcome.info.interrupted:
        show.say(_how_to_go_on(directory))
    else:
        show.say(f"Answers: {directory}/results.jsonl. Next: uellm report {directory}")
    show.document({"run_dir": str(directory), **report_document(outcome.report)})
