"""The files that a run derives from its journal.

While it runs, new answers are appended to `results.jsonl` and new failures to `errors.jsonl` as
they are kept. When it ends, and when it goes on after an end, they are made anew from the journal
in the order of the input, and take the place of the old ones together.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
from msgspec.structs import replace

from uellm_cli.atomic import replacing
from uellm_cli.config import OutputFormat
from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.openai_rows import OpenAIRows
from uellm_cli.executor.records import Record
from uellm_cli.executor.result_table import result_row, result_table
from uellm_cli.executor.results import as_promised_now, is_not_run, not_run, refused
from uellm_cli.executor.run_directory import ERRORS, LATENCY, RESULTS, RESULTS_TABLE
from uellm_cli.report.metrics import RunReport, summarise
from uellm_cli.report.parquet import latency_table
from uellm_cli.report.rows import LatencyRow, latency_row
from uellm_cli.requests.store import RequestStore
from uellm_cli.types import InvalidRequest, ModelSpec, ProfiledRequest, Result, RunInfo


class ResultSink:
    """Takes results as they come; use as a context manager.

    They go to the journal at once, and with `commit` to the files that people look at. A result
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

    def add(self, record: Record) -> bool:
        """Keeps a result; false where an earlier one goes on standing for its request."""
        is_first = record.result.custom_id not in self._journal.index.entries
        stands = self._journal.append(record)
        if is_first:
            self._pending.append(record.result)
        return stands

    def commit(self) -> None:
        """Ends a batch of results; JournalError when the disk refuses."""
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

    def __iter__(self) -> Iterator[Result]:
        """A result for every line, in the order of the input.

        A request that has none yet is `not_run`, which is no row of any file of answers or errors.
        """
        return self._with_refusals(self._results(with_not_run=True))

    def done(self) -> Iterator[Result]:
        """As `__iter__`, without the requests that have no result yet."""
        return self._with_refusals(self._results(with_not_run=False))

    def _with_refusals(self, results: Iterator[Result]) -> Iterator[Result]:
        if not self.invalid:
            return results
        rank = {name: number for number, name in enumerate(self.files)}

        def place(result: Result) -> tuple[int, int]:
            source = result.source
            return (rank.get(source.file, 0), source.line) if source else (0, 0)

        # What the model refuses was found after what is no request, whatever their places.
        refusals = sorted(map(refused, self.invalid), key=place)
        return heapq.merge(refusals, results, key=place)

    def _results(self, with_not_run: bool) -> Iterator[Result]:
        entries, read = self.journal.index.entries, self.journal.reader.result
        for profiled in self.requests:
            entry = entries.get(profiled.custom_id)
            if entry is not None:
                source = self.store.source(profiled.custom_id)
                yield as_promised_now(read(entry), profiled, source)
            elif with_not_run:
                source = self.store.source(profiled.custom_id)
                yield replace(not_run(profiled, self.model), source=source)


def write_rows(directory: Path, rows: Rows, info: RunInfo) -> None:
    """Writes `results.jsonl` and `errors.jsonl`; OutputError, and the old ones, if that fails."""
    with replacing(directory / RESULTS, directory / ERRORS) as files:
        lines = _Lines(info, *files)
        for result in rows.done():
            lines.add(result)


def write_all(directory: Path, rows: Rows, info: RunInfo, form: OutputFormat) -> RunReport:
    """As `write_rows`, with the tables beside them; returns the figures over all rows."""
    names = [RESULTS, ERRORS, LATENCY]
    if form is OutputFormat.PARQUET:
        names.append(RESULTS_TABLE)
    with replacing(*(directory / name for name in names)) as files, ExitStack() as tables:
        lines = _Lines(info, *files[:2])
        latencies = tables.enter_context(latency_table(files[2]))
        answers = [tables.enter_context(result_table(file)) for file in files[3:]]

        def latency_rows() -> Iterator[LatencyRow]:
            for result in rows:
                if not is_not_run(result):
                    lines.add(result)
                for table in answers:
                    table.add(result_row(result))
                latency = latency_row(result)
                latencies.add(latency)
                yield latency

        figures = summarise(latency_rows(), info.duration_s or 0.0)
    if form is not OutputFormat.PARQUET:
        # An earlier session's would tell of answers that no longer stand.
        (directory / RESULTS_TABLE).unlink(missing_ok=True)
    return figures


class _Lines:
    """OpenAI's lines, to the file that they belong in."""

    def __init__(self, info: RunInfo, results: BinaryIO, errors: BinaryIO) -> None:
        self._row = OpenAIRows(info).row
        self._encoder = msgspec.json.Encoder()
        self._results = results
        self._errors = errors

    def add(self, result: Result) -> None:
        file = self._results if result.failure is None else self._errors
        file.write(self._encoder.encode_lines((self._row(result),)))
