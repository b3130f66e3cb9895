"""How a run begins or goes on: its settings, and the record of versions, machine and inputs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil

import uellm_cli
from uellm_cli.config import Resume, Settings
from uellm_cli.errors import OutputError, RequestFileError, RunDirectoryError, UsageError
from uellm_cli.executor.run_directory import PIPED, RUN, read_run_info
from uellm_cli.models.fingerprint import model_fingerprint
from uellm_cli.requests import expand_paths, file_sha256
from uellm_cli.types import Origin, RunInfo

# The request file that means standard input.
STDIN_NAME = "-"
# What can change an answer or a figure.
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "numpy",
    "pyarrow",
    "lightgbm",
)


def new_run(
    settings: Settings,
    model: str,
    simulated: bool,
    directory: Path,
    command: Sequence[str],
    started: datetime,
) -> tuple[Settings, RunInfo]:
    """The settings and the record of a run that begins now.

    `model` is the folder or Hub id that is loaded. What comes through a pipe is kept in the run's
    directory, so that the run can be resumed.
    """
    kept = replace(settings, requests=_without_pipes(settings.requests, directory))
    settings = _located(kept, directory)
    _refuse_unprintable(directory, expand_paths(settings.requests))
    identity = f"{started.isoformat()}\0{os.getpid()}\0{platform.node()}"
    return settings, RunInfo(
        run_id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        command=redacted(command),
        started=started,
        model=model,
        model_fingerprint=model_fingerprint(model),
        bundled_model=settings.model is None,
        engine=settings.engine.name,
        scheduler=settings.scheduler.name,
        seed=settings.seed,
        versions=installed_versions(),
        machine=_machine(),
        inputs=_hashes(kept, directory),
        settings=msgspec.to_builtins(kept),
        simulated=simulated,
    )


def resumed_run(
    requests: Sequence[str], resume: Resume, directory: Path
) -> tuple[Settings, RunInfo]:
    """The settings and the record of a run that goes on; `requests` are the files named now.

    Raises RunDirectoryError when other request files are named than at first, or when the model or
    a file that its decisions stand on has changed, unless `resume` allows that.
    """
    info = read_run_info(directory)
    try:
        kept = msgspec.convert(info.settings, Settings)
    except msgspec.ValidationError as error:
        raise RunDirectoryError(f"{directory / RUN}: {error}") from None
    if tuple(requests) not in ((), kept.requests):
        raise RunDirectoryError(
            f"{directory} is a run of {', '.join(kept.requests)}; leave the files out to resume it"
        )
    kept = replace(kept, **resume.changes)
    now, fingerprint = _hashes(kept, directory), model_fingerprint(info.model)
    changed = sorted(
        name for name in now.keys() | info.inputs.keys() if now.get(name) != info.inputs.get(name)
    )
    if fingerprint != info.model_fingerprint:
        changed.append(f"the model {info.model}")
    if changed and not resume.changed_only:
        raise RunDirectoryError(
            f"{directory} cannot be resumed: {', '.join(changed)} changed since the run began; "
            "with --changed-only what is new or different is answered, and the other answers stand"
        )
    return _located(kept, directory), replace(
        info,
        inputs=now,
        model_fingerprint=fingerprint,
        settings=msgspec.to_builtins(kept),
        interrupted=False,
    )


def _without_pipes(requests: Sequence[str], directory: Path) -> tuple[str, ...]:
    """Request files, with standard input and other pipes, which can be read only once, kept.

    Their copies go by bare names: a run's directory may be moved.
    """
    named, kept = [], 0
    for name in requests:
        is_pipe = name == STDIN_NAME or Path(name).is_fifo()
        if is_pipe:
            kept += 1
            copy = PIPED if kept == 1 else f"{PIPED}-{kept}"
            _keep_pipe(name, directory / copy)
            name = copy
        named.append(name)
    return tuple(named)


def _keep_pipe(name: str, path: Path) -> None:
    try:
        with ExitStack() as files:
            is_stdin = name == STDIN_NAME
            if is_stdin and sys.stdin is None:
                raise RequestFileError("-: standard input is closed")
            source = sys.stdin.buffer if is_stdin else files.enter_context(Path(name).open("rb"))
            shutil.copyfileobj(source, files.enter_context(path.open("wb")))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _located(settings: Settings, directory: Path) -> Settings:
    """Settings with copies of pipes where they are; a run's directory may have been moved."""
    requests = (
        str(directory / name) if name.startswith(PIPED) and (directory / name).exists() else name
        for name in settings.requests
    )
    return replace(settings, requests=tuple(requests))


def origin_of(settings: Settings, model: str) -> Origin:
    """What a plan for these settings stands on, by files as they are now.

    Raises UsageError for requests that can be read only once: no later run could be compared.
    """
    for name in settings.requests:
        if name == STDIN_NAME or Path(name).is_fifo():
            raise UsageError(f"{name} is gone when it is read: a plan of it cannot be run later")
    # A plan does not stand on a plan.
    inputs = _hashes(replace(settings, plan=None), Path())
    told = {
        "engine": " ".join([settings.engine.name, *_pairs(settings.engine.options)]),
        "max_tokens": str(settings.max_tokens),
        "truncate_prompt": str(settings.truncate_prompt),
    }
    return Origin(inputs, model_fingerprint(model), told)


def _pairs(options: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(options.items())]


def _hashes(settings: Settings, directory: Path) -> dict[str, str]:
    """What the run's decisions stand on, by file as it is named in `settings`."""
    hashes: dict[str, str] = {}
    for name in settings.requests:
        (located,) = _located(replace(settings, requests=(name,)), directory).requests
        for path in expand_paths([located]):
            hashes[name if located != name else path] = file_sha256(Path(path))
    others = (
        path for path in (settings.slo_file, settings.topology, settings.plan) if path is not None
    )
    return hashes | {path: file_sha256(Path(path)) for path in others}


def _refuse_unprintable(directory: Path, paths: Sequence[str]) -> None:
    """A path that is not UTF-8 could not be written into run.json, and so not be resumed."""
    for path in (str(directory), *paths):
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise UsageError(f"{shown}: the name is not UTF-8; rename it to run it") from None


_SECRET_NAME = re.compile(
    r"(api[-_]?key|token|secret|passw|credential|authorization)", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"(?<![\w-])(hf_|sk-|ghp_|xox[abp]-)[\w-]{8,}")
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_HIDDEN = "***"


def redacted(command: Sequence[str]) -> tuple[str, ...]:
    """A command line without what looks like a secret, for a file that people pass on."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-")
        if hide_next and not is_option:
            shown.append(_HIDDEN)
        elif equals and _names_a_secret(name):
            shown.append(f"{name}={_HIDDEN}")
        else:
            shown.append(_USER_IN_URL.sub(_HIDDEN, _SECRET_VALUE.sub(_HIDDEN, word)))
        hide_next = is_option and not equals and _names_a_secret(name)
    return tuple(shown)


def _names_a_secret(name: str) -> bool:
    # --max-tokens is a number of them.
    return bool(_SECRET_NAME.search(name)) and not name.endswith("tokens")


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
