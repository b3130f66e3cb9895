"""Rows of Parquet files, a few at a time, of the columns that a request may have."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from uellm_cli.errors import RequestFileError
from uellm_cli.requests.fields import (
    BATCH_FIELDS,
    BODY_FIELDS,
    HARMLESS_FIELDS,
    ID_FIELDS,
    TEXT_FIELDS,
    UNSUPPORTED_FIELDS,
)
from uellm_cli.requests.sharegpt import MEDIA_FIELDS
from uellm_cli.requests.streams import damaged_file, one_line, shown
from uellm_cli.requests.wording import DamageError, LineError, printable, slip_of, too_long

MAX_ROWS_AT_A_TIME = 1024
# What a batch of rows may take, by what the file says of itself.
_BATCH_BYTES = 16 * 1024 * 1024
# More than this is a lie of a damaged file.
_MAX_ROWS = 10**9
_MAX_NAMED_COLUMNS = 10
_MAX_NAME_CHARS = 40

# Those that have a meaning, which a misspelt name may have been meant to have.
_MEANT = frozenset((*BODY_FIELDS, *ID_FIELDS, *BATCH_FIELDS, *TEXT_FIELDS))

Row = dict[str, Any]
Note = Callable[[str], None]


def table_rows(
    path: str, file: io.BufferedReader, max_bytes: int, note: Note
) -> Iterator[tuple[int, Row | LineError]]:
    """Each row with its number from 1; a LineError where it cannot be read.

    `note` is told which columns are not read. Raises RequestFileError for a table that is no file
    of requests, and for one of which nothing can be read.
    """
    table, columns = _opened(path, file, note)
    number = 0
    any_read = False
    # Rows that could not be read: told of as soon as any other can.
    lost: list[tuple[range, DamageError]] = []
    for i in range(table.num_row_groups):
        end = number + table.metadata.row_group(i).num_rows
        try:
            for batch in _batches(table, i, columns):
                yield from _told(lost)
                any_read = True
                for row in _rows(batch, max_bytes):
                    number += 1
                    yield number, row
            if number < end:
                raise DamageError("rows are missing")
        except DamageError as damage:
            lost.append((range(number + 1, end + 1), damage))
            number = end
    if lost and not any_read:
        raise damaged_file(path, lost[0][1].how)
    yield from _told(lost)


def _told(lost: list[tuple[range, DamageError]]) -> Iterator[tuple[int, LineError]]:
    for numbers, damage in lost:
        refusal = LineError("line", f"cannot be read: the file is damaged here: {damage.how}")
        for number in numbers:
            yield number, refusal
    lost.clear()


# --- Columns -------------------------------------------------------------------------------------


def _opened(path: str, file: io.BufferedReader, note: Note) -> tuple[Any, list[str]]:
    from pyarrow import parquet

    if not file.seekable():
        raise RequestFileError(
            f"{shown(path)}: Parquet cannot be read from standard input or a pipe; give a file"
        )
    try:
        # Without the small buffers a whole row group would be held, not a page of each column.
        table = parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=1 << 16, page_checksum_verification=True
        )
        names: list[str] = table.schema_arrow.names
        rows = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    except _read_errors() as error:
        raise damaged_file(path, one_line(error)) from None
    if any(count < 0 for count in rows) or sum(rows) > _MAX_ROWS:
        raise damaged_file(path, f"it claims to have {sum(rows)} rows")
    return table, _columns(path, names, note)


def _columns(path: str, names: Sequence[str], note: Note) -> list[str]:
    """Those to read. Raises RequestFileError where there is no text, or a name is a slip."""
    meant, known = _MEANT, _MEANT | UNSUPPORTED_FIELDS.keys()
    if "body" not in names:
        # Then they are no part of a batch line: many tables say where a text is from.
        meant, known = meant - {"method", "url"}, known - {"method", "url"}
    if "conversations" in names:
        known |= {"system", *MEDIA_FIELDS}
    others = [name for name in names if name not in known and name not in HARMLESS_FIELDS]
    for name in others:
        if close := slip_of(name, meant):
            reason = f"the column {_named(name)} is unknown; did you mean {close!r}?"
            raise RequestFileError(f"{shown(path)}: {reason}")
    columns = [name for name in names if name in known]
    if not known.intersection(TEXT_FIELDS).intersection(columns):
        raise RequestFileError(
            f"{shown(path)}: no column is called {', '.join(TEXT_FIELDS[:-1])} or "
            f"{TEXT_FIELDS[-1]}; there are: {_listed(names) or 'none'}"
        )
    for name in columns:
        if columns.count(name) > 1:
            raise RequestFileError(f"{shown(path)}: the column {name!r} is there twice")
    if others:
        note(f"{shown(path)}: columns that are not read: {_listed(others)}")
    return columns


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(_named(name) for name in names[:_MAX_NAMED_COLUMNS])
    more = len(names) - _MAX_NAMED_COLUMNS
    return f"{listed} and {more} more" if more > 0 else listed


def _named(name: str) -> str:
    return repr(printable(name, _MAX_NAME_CHARS))


# --- Rows ----------------------------------------------------------------------------------------


def _batches(table: Any, group: int, columns: list[str]) -> Iterator[Any]:
    """A row group's rows, a few at a time; raises DamageError where they cannot be read."""
    try:
        rows = _rows_at_a_time(table.metadata.row_group(group), columns)
        for batch in table.iter_batches(
            rows, row_groups=[group], columns=columns, use_threads=False
        ):
            # To Parquet, `prompt` also names a column called `prompt.x`.
            yield batch.select(columns)
    except _read_errors() as error:
        raise DamageError(one_line(error)) from None


def _rows_at_a_time(group: Any, columns: list[str]) -> int:
    chunks = (group.column(i) for i in range(group.num_columns))
    read = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    size = sum(int(chunk.total_uncompressed_size) for chunk in read)
    return max(1, min(MAX_ROWS_AT_A_TIME, _BATCH_BYTES * int(group.num_rows) // max(size, 1)))


def _rows(batch: Any, max_bytes: int) -> Iterator[Row | LineError]:
    rows: list[Row] | None = None
    if _size(batch) <= max_bytes:
        try:
            rows = batch.to_pylist(maps_as_pydicts="strict")
        except _read_errors():
            rows = None
    if rows is not None:
        yield from rows
        return
    # One of them is too long, or holds what Python cannot: each by itself, then.
    for i in range(batch.num_rows):
        yield _row(batch.slice(i, 1), max_bytes)


def _row(batch: Any, max_bytes: int) -> Row | LineError:
    row: Row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            cell = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
            if _size(cell) > max_bytes:
                return LineError(name, too_long(max_bytes).reason)
            row[name] = cell[0].as_py(maps_as_pydicts="strict")
        except _read_errors() as error:
            return LineError(name, f"cannot be read: {one_line(error)}")
    return row


def _size(data: Any) -> int:
    """Bytes of a batch or a column, of what a slice shows where its type can tell."""
    try:
        return int(data.nbytes)
    except _read_errors():
        return int(data.get_total_buffer_size())


def _read_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    # What Arrow raises, and what its values raise on their way to Python.
    return (
        pyarrow.ArrowException,
        OSError,
        ValueError,
        OverflowError,
        KeyError,
        TypeError,
        NotImplementedError,
    )
