"""The commands together, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

from uellm_cli.cli.bench import bench
from uellm_cli.cli.output import error_line
from uellm_cli.cli.plan import plan
from uellm_cli.cli.plan_deploy import plan_deploy
from uellm_cli.cli.predictor import predictor
from uellm_cli.cli.profile import profile
from uellm_cli.cli.report import report
from uellm_cli.cli.run import run
from uellm_cli.cli.topology import topology
from uellm_cli.cli.version import version
from uellm_cli.errors import ExitCode, UellmError

app = typer.Typer(
    name="uellm",
    help="Offline batch inference for language models, with deadlines.",
    epilog="Start with: uellm run sample_data/requests.jsonl --slo-file sample_data/slo.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (profile, plan, plan_deploy, run, report, topology, version):
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(predictor)
app.add_typer(bench)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code; errors raised on purpose are one line on stderr.

    Wrong flags, Ctrl-C and a closed pipe are typer's, with codes 2, 130 and 1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(arguments)
    except UellmError as error:
        _fail(str(error), error.exit_code, "--verbose" in arguments)
    except Exception as error:
        _fail(
            f"unexpected {type(error).__name__}: {error} (this is a defect in uellm; "
            "--verbose shows where)",
            ExitCode.FATAL,
            "--verbose" in arguments,
        )


def _fail(message: str, code: ExitCode, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    error_line(message)
    sys.exit(code)
