"""A run's directory: which file holds what, and how each is written.

`journal` is the truth. `results.jsonl` and `errors.jsonl` are its rows in OpenAI's form, appended
as batches end and written anew from the journal when a run is resumed. The other files are
replaced whole, so that a reader never sees half of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from uellm_cli.atomic import replace_file
from uellm_cli.errors import JournalError, RunDirectoryError, UnusableInputError
from uellm_cli.executor.journal import Journal, Record
from uellm_cli.executor.openai_rows import error_row, output_row
from uellm_cli.types import Result, RunInfo

JOURNAL = "journal"
RUN = "run.json"
PLAN = "plan.json"
RESULTS = "results.jsonl"
ERRORS = "errors.jsonl"
LATENCY = "latency.parquet"
REPORT = "report.json"
STDIN = "stdin.jsonl"
FILES = (JOURNAL, RUN, PLAN, RESULTS, ERRORS, LATENCY, REPORT, STDIN)


@contextmanager
def opened(directory: Path, resume: bool) -> Iterator[Journal]:
    """The journal of `directory`, for one run at a time.

    A new run that comes to nothing, because its input is unusable or it is stopped before the
    first answer, leaves nothing behind. Raises RunDirectoryError when the directory holds a run
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
        except (UnusableInputError, KeyboardInterrupt):
            if not resume and _is_empty(directory / JOURNAL):
                _discard(directory, missing)
            raise


def _refuse_unless_ready(directory: Path, resume: bool) -> None:
    found = [name for name in FILES if (directory / name).exists()]
    if found == [JOURNAL] and _is_empty(directory / JOURNAL):
        found = []  # what a run leaves that was killed before it had anything to write
    if not resume and found:
        raise RunDirectoryError(
            f"{directory} holds a run already ({', '.join(found)}); add --resume to go on with it, "
            "or choose another directory with -o"
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
    for path in made:
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


class ResultFiles:
    """The journal and the two files derived from it; use as a context manager.

    `add` takes results as they come, `commit` makes them durable: first in the journal, then in
    the derived files. `results` are the rows that are durable.
    """

    def __init__(
        self, directory: Path, info: RunInfo, journal: Journal, rows: Sequence[Result]
    ) -> None:
        self._info = info
        self._journal = journal
        self._pending: list[Result] = []
        self.results = list(rows)
        self._results = (directory / RESULTS).open("ab")
        self._errors = (directory / ERRORS).open("ab")

    @classmethod
    def open(
        cls, directory: Path, info: RunInfo, journal: Journal, refused: Iterable[Result]
    ) -> Self:
        """Brings the derived files in line with the journal; `refused` rows are errors already."""
        rows = [*refused, *(record.result for record in journal.records)]
        try:
            for name, chosen in ((RESULTS, False), (ERRORS, True)):
                lines = [_line(r, info) for r in rows if (r.failure is not None) is chosen]
                replace_file(directory / name, b"".join(lines))
            return cls(directory, info, journal, rows)
        except OSError as error:
            raise RunDirectoryError(f"{directory}: cannot be written: {error.strerror}") from None

    def add(self, record: Record) -> None:
        self._journal.append(record)
        self._pending.append(record.result)

    def commit(self) -> None:
        self._journal.commit()
        try:
            for result in self._pending:
                self._file_of(result).write(_line(result, self._info))
            self._results.flush()
            self._errors.flush()
        except OSError as error:
            raise JournalError(
                f"results cannot be written: {error.strerror}; the journal has them, and --resume "
                "writes them again"
            ) from error
        self.results += self._pending
        self._pending.clear()

    def _file_of(self, result: Result) -> BinaryIO:
        return self._results if result.failure is None else self._errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in (self._results, self._errors):
            # A full disk has been reported by `commit` already, and the journal has every row.
            with suppress(OSError):
                file.close()


def _line(result: Result, info: RunInfo) -> bytes:
    row: Mapping[str, Any]
    row = output_row(result, info) if result.failure is None else error_row(result, info)
    return msgspec.json.encode(row) + b"\n"
