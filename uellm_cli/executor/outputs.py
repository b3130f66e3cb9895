"""The files that a run derives from its journal.

While it runs, new answers are appended to `results.jsonl` and new failures to `errors.jsonl` as
they are kept. When it ends, and when it goes on after an end, they are made anew from the journal
in the order of the input, and take the place of the old ones together.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import msgspec
from msgspec.structs import replace

from uellm_cli.atomic import replacing
from uellm_cli.config import OutputFormat
from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.openai_rows import error_row, output_row
from uellm_cli.executor.records import Record
from uellm_cli.executor.result_table import result_row, result_table
from uellm_cli.executor.results import as_promised_now, not_run, refused
from uellm_cli.executor.run_directory import ERRORS, LATENCY, RESULTS, RESULTS_TABLE
from uellm_cli.report.metrics import RunReport, summarise
from uellm_cli.report.parquet import latency_table
from uellm_cli.report.rows import LatencyRow, latency_row
from uellm_cli.requests.store import RequestStore
from uellm_cli.types import InvalidRequest, ModelSpec, ProfiledRequest, Result, RunInfo


class ResultSink:
    """Takes results as they come; use as a context manager.

    `commit` hands them over: to the journal first, then to the files that people look at. A result
    that takes the place of an earlier one is only written there when the run ends, so that no
    request ever has two rows.
    """

    def __init__(self, directory: Path, info: RunInfo, journal: Journal) -> None:
        self._journal = journal
        self._pending: list[Result] = []
        try:
            self._files = [(directory / name).open("ab") for name in (RESULTS, ERRORS)]
            self._lines = _Lines(info, *self._files)
        except OSError as error:
            raise RunDirectoryError(f"{directory}: cannot be written: {error.strerror}") from None

    def add(self, record: Record) -> None:
        if record.result.custom_id not in self._journal.index.entries:
            self._pending.append(record.result)
        self._journal.append(record)

    def commit(self) -> None:
        self._journal.commit()
        try:
            for result in self._pending:
                self._lines.add(result)
            for file in self._files:
                file.flush()
        except OSError as error:
            raise JournalError(
                f"results cannot be written: {error.strerror}; the journal has them, and --resume "
                "writes them again"
            ) from error
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files:
            # A full disk has been reported by `commit` already, and the journal has every row.
            with suppress(OSError):
                file.close()


class Row(NamedTuple):
    """A line of the input and what came of it; a request that is not done is a row of no file."""

    result: Result
    is_done: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """What came of every line of a run's input, as its journal has it now.

    `requests` and `invalid` are in the order of the input, whose `files` are given in theirs.
    """

    journal: Journal
    store: RequestStore
    requests: Sequence[ProfiledRequest]
    invalid: Sequence[InvalidRequest]
    files: Sequence[str]
    model: ModelSpec

    def __iter__(self) -> Iterator[Row]:
        """A row for every line, in the order of the input."""
        return self._with_refusals(self._row(profiled) for profiled in self.requests)

    def done(self) -> Iterator[Row]:
        """As `__iter__`, without the requests that have no result yet."""
        entries = self.journal.index.entries
        return self._with_refusals(
            self._row(profiled) for profiled in self.requests if profiled.custom_id in entries
        )

    def _with_refusals(self, rows: Iterator[Row]) -> Iterator[Row]:
        if not self.invalid:
            return rows
        rank = {name: number for number, name in enumerate(self.files)}

        def place(row: Row) -> tuple[int, int]:
            source = row.result.source
            return (rank.get(source.file, 0), source.line) if source else (0, 0)

        refusals = (Row(refused(invalid), True) for invalid in self.invalid)
        # Lines that the model refuses come after those that are no requests, whatever their place.
        return heapq.merge(sorted(refusals, key=place), rows, key=place)

    def _row(self, profiled: ProfiledRequest) -> Row:
        source = self.store.source(profiled.custom_id)
        entry = self.journal.index.entries.get(profiled.custom_id)
        if entry is None:
            return Row(replace(not_run(profiled, self.model), source=source), False)
        return Row(as_promised_now(self.journal.reader.result(entry), profiled, source), True)


def write_rows(directory: Path, rows: Rows, info: RunInfo) -> None:
    """Writes `results.jsonl` and `errors.jsonl`; OutputError, and the old ones, if that fails."""
    with replacing(directory / RESULTS, directory / ERRORS) as files:
        lines = _Lines(info, *files)
        for row in rows.done():
            lines.add(row.result)


def write_all(directory: Path, rows: Iterable[Row], info: RunInfo, form: OutputFormat) -> RunReport:
    """As `write_rows`, with the tables beside them; returns the figures over all rows."""
    names = [RESULTS, ERRORS, LATENCY]
    if form is OutputFormat.PARQUET:
        names.append(RESULTS_TABLE)
    with replacing(*(directory / name for name in names)) as files, ExitStack() as tables:
        lines = _Lines(info, *files[:2])
        latencies = tables.enter_context(latency_table(files[2]))
        answers = [tables.enter_context(result_table(file)) for file in files[3:]]

        def latency_rows() -> Iterator[LatencyRow]:
            for row in rows:
                if row.is_done:
                    lines.add(row.result)
                for table in answers:
                    table.add(result_row(row.result))
                latency = latency_row(row.result)
                latencies.add(latency)
                yield latency

        return summarise(latency_rows(), info.duration_s or 0.0)


class _Lines:
    """OpenAI's lines, to the file that they belong in."""

    def __init__(self, info: RunInfo, results: BinaryIO, errors: BinaryIO) -> None:
        self._info = info
        self._results = results
        self._errors = errors

    def add(self, result: Result) -> None:
        if result.failure is None:
            self._results.write(msgspec.json.encode(output_row(result, self._info)) + b"\n")
        else:
            self._errors.write(msgspec.json.encode(error_row(result, self._info)) + b"\n")
