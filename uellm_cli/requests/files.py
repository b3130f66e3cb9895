"""Request files, row by row in bounded memory: JSON lines (plain, gzip, Zstandard) and Parquet.

What a file is follows its ending, and where that says nothing, its first bytes. What is wrong with
a file as a whole is a RequestFileError; what is wrong with a row is an InvalidRequest.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any, BinaryIO, cast

from uellm_cli.errors import RequestFileError
from uellm_cli.requests.identity import Ids
from uellm_cli.requests.lines import parse_line, parse_row
from uellm_cli.types import InvalidRequest, Request, SourceLine

STDIN = "-"
MAX_LINE_BYTES = 16 * 1024 * 1024
PARQUET_ROWS_AT_A_TIME = 1024

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class RequestSet:
    """All rows of a run's request files, in their order; no two share a `custom_id`."""

    valid: tuple[Request, ...]
    invalid: tuple[InvalidRequest, ...]


def read_all(
    paths: Sequence[str],
    *,
    started: datetime,
    limit: int | None = None,
    stdin: BinaryIO | None = None,
) -> RequestSet:
    """As `read_requests`, all at once; RequestFileError if not one row is valid."""
    valid: list[Request] = []
    invalid: list[InvalidRequest] = []
    for row in read_requests(paths, started=started, limit=limit, stdin=stdin):
        if isinstance(row, Request):
            valid.append(row)
        else:
            invalid.append(row)
    if not valid:
        raise _nothing_valid(paths, invalid)
    return RequestSet(tuple(valid), tuple(invalid))


def read_requests(
    paths: Sequence[str],
    *,
    started: datetime,
    limit: int | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Request | InvalidRequest]:
    """The rows of several files, at most `limit` in all, each valid or with what is wrong with it.

    `paths` are files, globs, and `-` for standard input (`stdin`, the process's own by default).
    `started` is the run's start, which clock times in requests are relative to. Raises
    RequestFileError, naming the file, where one is missing, empty, damaged or cannot be read: as
    soon as the first row is asked for if that shows from outside, else when reading gets there.
    """
    ids = Ids()
    left = limit
    for path in expand_paths(paths):
        if left == 0:
            return
        rows = 0
        for row in _rows(path, started, stdin):
            rows += 1
            yield ids.settle(row)
            if left is not None:
                left -= 1
                if left == 0:
                    return
        if not rows:
            raise RequestFileError(f"{path}: the file holds no requests")


def expand_paths(paths: Sequence[str]) -> list[str]:
    """The files that paths and globs name, in order; RequestFileError if one names none."""
    expanded: list[str] = []
    for path in paths:
        with _named_errors(path):
            expanded += _expanded(path)
    if not expanded:
        raise RequestFileError("no request files are given")
    _refuse_repeats(expanded)
    return expanded


def _expanded(path: str) -> list[str]:
    if Path(path).is_dir():
        raise RequestFileError(f"{path}: is a directory; give its files, as in '{path}/*.jsonl'")
    # First as it is: a file's own name may hold a glob's characters.
    if path == STDIN or Path(path).exists():
        return [path]
    if not glob.has_magic(path):
        raise RequestFileError(f"{path}: there is no such file")
    # Path.glob() takes no absolute patterns.
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    matches = [match for match in found if Path(match).is_file()]
    if not matches:
        raise RequestFileError(f"{path}: no file matches")
    return matches


def _refuse_repeats(paths: Sequence[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        same = path if path == STDIN else str(Path(path).resolve())
        if same in seen:
            raise RequestFileError(f"{path}: is given twice")
        seen.add(same)


def _nothing_valid(paths: Sequence[str], invalid: Sequence[InvalidRequest]) -> RequestFileError:
    if not invalid:
        return RequestFileError(f"{', '.join(paths)}: no requests were read")
    first = invalid[0]
    files = ", ".join(dict.fromkeys(row.source.file for row in invalid))
    return RequestFileError(
        f"{files}: none of {len(invalid)} lines is a valid request; the first is {first.source}: "
        f"{first.field}: {first.reason}"
    )


# --- Formats -------------------------------------------------------------------------------------


class _Format(Enum):
    LINES = auto()
    GZIP = auto()
    ZSTANDARD = auto()
    PARQUET = auto()


# A line's bytes, a table row's columns, or None for a line too long to hold.
_Content = bytes | dict[str, Any] | None


_BY_ENDING = {
    ".gz": _Format.GZIP,
    ".zst": _Format.ZSTANDARD,
    ".parquet": _Format.PARQUET,
}
_BY_FIRST_BYTES = {
    b"\x1f\x8b": _Format.GZIP,
    b"\x28\xb5\x2f\xfd": _Format.ZSTANDARD,
    b"PAR1": _Format.PARQUET,
}


def _rows(
    path: str, started: datetime, stdin: BinaryIO | None
) -> Iterator[Request | InvalidRequest]:
    for number, content in _contents(path, stdin):
        source = SourceLine(path, number)
        if content is None:
            yield InvalidRequest(source, "line", f"is longer than {MAX_LINE_BYTES // 2**20} MiB")
        elif isinstance(content, bytes):
            yield parse_line(content, source, started)
        else:
            yield parse_row(content, source, started)


def _contents(path: str, stdin: BinaryIO | None) -> Iterator[tuple[int, _Content]]:
    """Each line or table row of a file that is not blank, with its number from 1."""
    with _named_errors(path), contextlib.ExitStack() as stack:
        if path == STDIN:
            file = _buffered(stdin or sys.stdin.buffer)
        else:
            file = stack.enter_context(Path(path).open("rb"))
        form = _format(path, file.peek(4))
        if form is _Format.PARQUET:
            yield from _table_rows(path)
        elif form is _Format.GZIP:
            yield from _lines(gzip.GzipFile(fileobj=file))
        elif form is _Format.ZSTANDARD:
            yield from _lines(_unzstd(file))
        else:
            yield from _lines(file)


def _format(path: str, start: bytes) -> _Format:
    if start.startswith(_UTF16_BOMS):
        raise RequestFileError(f"{path}: the file is UTF-16; save it as UTF-8")
    if by_ending := _BY_ENDING.get(Path(path).suffix.lower()):
        return by_ending
    recognised = (form for magic, form in _BY_FIRST_BYTES.items() if start.startswith(magic))
    return next(recognised, _Format.LINES)


def _buffered(file: BinaryIO) -> io.BufferedReader:
    """A stream that can peek, which one put in the place of standard input may not."""
    if isinstance(file, io.BufferedReader):
        return file
    return io.BufferedReader(cast("io.RawIOBase", file))


def _lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank; None for one beyond `MAX_LINE_BYTES`, which is skipped."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            yield number, None
        # A byte order mark may also stand inside, where files were joined.
        elif content := line.removeprefix(_BOM).strip():
            yield number, content


def _unzstd(file: io.BufferedReader) -> io.BufferedIOBase:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))


def _table_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    if path == STDIN:
        raise RequestFileError("Parquet cannot be read from standard input; give the file's name")
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=PARQUET_ROWS_AT_A_TIME):
                for row in batch.to_pylist(maps_as_pydicts="lossy"):
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise _damaged(path, error) from None


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """What reading raises as a RequestFileError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, ValueError, OverflowError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        # Without an errno it comes from a decompressor, not from the system.
        if error.strerror is None:
            raise _damaged(path, error) from None
        raise RequestFileError(f"{path}: {error.strerror}") from None


def _damaged(path: str, error: Exception) -> RequestFileError:
    return RequestFileError(f"{path}: the file is damaged: {' '.join(str(error).split())}")
