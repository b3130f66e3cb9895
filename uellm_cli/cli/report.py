"""`uellm report`: a run's figures again, from its directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import Output


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run.")],
    goodput: Annotated[
        str | None,
        typer.Option(
            metavar="ttft:200,tpot:50,e2el:5000",
            help="Count requests that keep all of these, in milliseconds.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Latencies, kept and broken promises, and why they broke.

    Example: uellm report runs/first
    """
    from uellm_cli import pipeline
    from uellm_cli.report.console import render
    from uellm_cli.report.goodput import parse_goodput
    from uellm_cli.report.json_report import report_document

    targets = None if goodput is None else parse_goodput(goodput)
    info, figures = pipeline.report(run_dir, targets)
    show = Output(json, quiet)
    if info.duration_s is None:
        show.say("This run was cut off; these are the answers in its journal, and no others.")
    elif info.interrupted:
        show.say(f"Stopped before its end. Go on with: uellm run --resume -o {run_dir}")
    if not quiet:
        render(figures, info, show.console)
    show.document(report_document(figures))
