"""A run's directory: which file holds what, and how each is written.

`journal` is the truth, and `outputs` derives the other files from it. They are replaced whole, so
that a reader never sees half of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from uellm_cli.errors import RunDirectoryError, UnusableInputError
from uellm_cli.executor.journal import Journal
from uellm_cli.types import RunInfo

JOURNAL = "journal"
RUN = "run.json"
PLAN = "plan.json"
RESULTS = "results.jsonl"
ERRORS = "errors.jsonl"
RESULTS_TABLE = "results.parquet"
LATENCY = "latency.parquet"
REPORT = "report.json"
# A folder: the predictor that was adapted to the pilot's answers.
PREDICTOR = "predictor"
# Requests that came through a pipe, kept so that the run can be resumed; further ones are numbered.
PIPED = "requests-piped"
FILES = (JOURNAL, RUN, PLAN, RESULTS, ERRORS, RESULTS_TABLE, LATENCY, REPORT, PIPED)
FOLDERS = (PREDICTOR,)


@contextmanager
def opened(directory: Path, resume: bool) -> Iterator[Journal]:
    """The journal of `directory`, for one run at a time.

    A new run that comes to nothing, because its input is unusable or it is stopped before it knows
    what to do, leaves nothing behind. Raises RunDirectoryError when the directory holds a run
    and `resume` is not asked for, when it holds none and it is, when another run is at work in it,
    or when it cannot be written.
    """
    _refuse_unless_ready(directory, resume)
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"{directory}: cannot be made: {error.strerror}") from None
    with Journal.open(directory / JOURNAL) as journal:
        if not resume:
            # Once more, with the lock held: another run may have begun and ended in between.
            _refuse_unless_ready(directory, resume)
        try:
            yield journal
        except (UnusableInputError, KeyboardInterrupt) as error:
            # A run that knew what to do when it was stopped can be resumed.
            stopped = isinstance(error, KeyboardInterrupt) and (directory / RUN).exists()
            if not resume and not stopped and _is_empty(directory / JOURNAL):
                _discard(directory, missing)
            raise


def _refuse_unless_ready(directory: Path, resume: bool) -> None:
    found = [name for name in (*FILES, *FOLDERS) if (directory / name).exists()]
    found += sorted(path.name for path in directory.glob(f"{PIPED}-*"))
    if all(n.startswith((JOURNAL, PIPED)) for n in found) and _is_empty(directory / JOURNAL):
        found = []  # what a run leaves that was killed before it knew what to do
    if not resume and found:
        hint = "add --resume to go on with it, or choose" if RUN in found else "choose"
        raise RunDirectoryError(
            f"{directory} holds files of a run already ({', '.join(found)}); {hint} another "
            "directory with -o"
        )
    if resume and not {RUN, JOURNAL} <= set(found):
        raise RunDirectoryError(
            f"{directory} holds no run that could be resumed: {RUN} and {JOURNAL} must be there"
        )


def _is_empty(path: Path) -> bool:
    return path.exists() and path.stat().st_size == 0


def _discard(directory: Path, made: Sequence[Path]) -> None:
    """Removes a new run's files and the directories that were `made` for them, innermost first."""
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    for piped in directory.glob(f"{PIPED}-*"):
        piped.unlink()
    for path in made:
        # Another run may have found a place in it.
        with suppress(OSError):
            path.rmdir()


def read_run_info(directory: Path) -> RunInfo:
    """What `run.json` says; RunDirectoryError when it is missing or not what uellm wrote."""
    path = directory / RUN
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(f"{directory} is no run directory: it has no {RUN}") from None
    except OSError as error:
        raise RunDirectoryError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise RunDirectoryError(f"{path}: not a run's description: {error}") from None
