"""Flags that several commands share, and their translation into `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uellm_cli.config import Choice
from uellm_cli.deployer import DEFAULT_PLACEMENT
from uellm_cli.engines import DEFAULT_ENGINE
from uellm_cli.errors import OutputError, UsageError
from uellm_cli.profiler.lengths import DEFAULT_PREDICTOR
from uellm_cli.scheduler import DEFAULT_SCHEDULER

RequestFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="REQUESTS...",
        help="Files or globs (JSONL, JSON arrays, Parquet; .gz, .zst), or - for stdin.",
        show_default=False,
    ),
]
OptionalRequestFiles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REQUESTS]...",
        help="Files or globs (JSONL, JSON arrays, Parquet; .gz, .zst), or -; may be left out.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder; a config.json where only planning is asked for. "
        "Left out: the small bundled model.",
        show_default=False,
    ),
]
SloFile = Annotated[
    str | None,
    typer.Option(help="Promises by class (YAML, TOML or JSON).", show_default=False),
]


def options_of(kind: str, told: str) -> Any:
    """A flag `--{kind}-option KEY=VALUE`, which may be given several times."""
    return typer.Option(f"--{kind}-option", metavar="KEY=VALUE", help=told, show_default=False)


Predictor = Annotated[str, typer.Option(help="How output lengths are predicted.")]
PredictorOptions = Annotated[
    list[str] | None, options_of("predictor", "Set an option of the predictor.")
]
Scheduler = Annotated[str, typer.Option(help="How requests are ordered and batched.")]
Variant = Annotated[
    str | None,
    typer.Option(
        metavar="code|paper",
        help="For odbs, slo-dbs and slo-odbs: as UELLM's published code does it, or its paper.",
        show_default=False,
    ),
]
SchedulerOptions = Annotated[
    list[str] | None, options_of("scheduler", "Set an option of the scheduler.")
]
Engine = Annotated[str, typer.Option(help="What computes the answers.")]
EngineOptions = Annotated[
    list[str] | None,
    options_of("engine", "Set an option of the engine, as dtype=bfloat16; the README has them."),
]
TopologyFile = Annotated[
    str | None,
    typer.Option(
        "--topology", help="Plan for this machine file, not for this machine.", show_default=False
    ),
]
Algorithm = Annotated[str, typer.Option("--algorithm", help="How layers are placed on devices.")]
AlgorithmOptions = Annotated[
    list[str] | None, options_of("algorithm", "Set an option of the algorithm.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Output cap of requests that set none; else what the context leaves.",
        show_default=False,
    ),
]
MaxBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The most requests that run at a time. Left out: ten, as in the paper, in static "
        "batches, and in flight up to 64 of those that fit the devices.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Take only so many requests.", show_default=False)
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse to start if any line is invalid.")]
TruncatePrompt = Annotated[
    bool,
    typer.Option(
        "--truncate-prompt",
        help="Cut the start of prompts that leave no room for an answer, instead of refusing them.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with the model. Off for a reason."
    ),
]
Seed = Annotated[int, typer.Option(help="For everything that is drawn at random.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show where an error came from.")]
OutputFile = Annotated[
    Path | None, typer.Option("-o", "--output", help="Write it to this file.", show_default=False)
]

PREDICTOR, SCHEDULER = DEFAULT_PREDICTOR, DEFAULT_SCHEDULER
ENGINE, ALGORITHM = DEFAULT_ENGINE, DEFAULT_PLACEMENT


def choice(name: str, pairs: list[str] | None, **more: str | None) -> Choice:
    """A variant with its KEY=VALUE options; `more` are options that have a flag of their own."""
    options = {key: value for key, value in more.items() if value is not None}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is no option of {name!r}; write it as KEY=VALUE")
        options[key.replace("-", "_")] = value
    return Choice(name, options)


def refuse_overwriting(output: Path | None, requests: list[str] | None) -> None:
    """UsageError where `output` is one of the request files: what was asked would be gone."""
    from uellm_cli.requests import expand_paths

    if output is None or not output.exists():
        return
    for path in expand_paths(requests or []):
        if Path(path).exists() and output.samefile(path):
            raise UsageError(f"-o {output} is one of the request files; choose another name")


def write_text(path: Path, content: str) -> None:
    """Writes a small file that the user asked for; OutputError when it cannot be written."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
