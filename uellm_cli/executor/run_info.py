"""How a run begins or goes on: its settings, and the record of versions, machine and inputs."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil

import uellm_cli
from uellm_cli.config import Settings
from uellm_cli.errors import OutputError, RunDirectoryError
from uellm_cli.executor.run_directory import RUN, STDIN, read_run_info
from uellm_cli.requests import expand_paths, file_sha256
from uellm_cli.types import RunInfo

# The request file that means standard input.
STDIN_NAME = "-"
# What can change an answer or a figure.
RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "pyarrow")


def new_run(
    settings: Settings,
    model: str,
    simulated: bool,
    directory: Path,
    command: Sequence[str],
    started: datetime,
) -> tuple[Settings, RunInfo]:
    """The settings and the record of a run that begins now.

    `model` is the folder or Hub id that is loaded. Standard input is kept in the run's directory,
    so that the run can be resumed.
    """
    if STDIN_NAME in settings.requests:
        spooled = directory / STDIN
        try:
            with spooled.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise OutputError(f"{spooled}: cannot be written: {error.strerror}") from error
        named = (str(spooled) if name == STDIN_NAME else name for name in settings.requests)
        settings = replace(settings, requests=tuple(named))
    identity = f"{started.isoformat()}\0{os.getpid()}\0{platform.node()}"
    return settings, RunInfo(
        run_id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        command=tuple(command),
        started=started,
        model=model,
        bundled_model=settings.model is None,
        engine=settings.engine.name,
        scheduler=settings.scheduler.name,
        seed=settings.seed,
        versions=installed_versions(),
        machine=_machine(),
        inputs=_hashes(settings),
        settings=msgspec.to_builtins(settings),
        simulated=simulated,
    )


def resumed_run(settings: Settings, directory: Path) -> tuple[Settings, RunInfo]:
    """The settings and the record that a run began with.

    Raises RunDirectoryError when other request files are named now, or when one of the files that
    its decisions stand on has changed.
    """
    info = replace(read_run_info(directory), interrupted=False)
    try:
        first = msgspec.convert(info.settings, Settings)
    except msgspec.ValidationError as error:
        raise RunDirectoryError(f"{directory / RUN}: {error}") from None
    if settings.requests not in ((), first.requests):
        raise RunDirectoryError(
            f"{directory} is a run of {', '.join(first.requests)}; leave the files out to resume it"
        )
    now = _hashes(first)
    changed = sorted(
        name for name in now.keys() | info.inputs.keys() if now.get(name) != info.inputs.get(name)
    )
    if changed:
        raise RunDirectoryError(
            f"{directory} cannot be resumed: {', '.join(changed)} changed since the run began"
        )
    return first, info


def _hashes(settings: Settings) -> dict[str, str]:
    """What the run's decisions stand on, by file."""
    others = [path for path in (settings.slo_file, settings.topology) if path is not None]
    return {path: file_sha256(Path(path)) for path in (*expand_paths(settings.requests), *others)}


def installed_versions() -> dict[str, str]:
    found = {"uellm": uellm_cli.__version__, "python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, str | int]:
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }
