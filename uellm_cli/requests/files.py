"""Request files, row by row in bounded memory: text (JSON lines, a JSON array), packed or not, and
Parquet.

What a file is follows its ending, and where that says nothing, its first bytes. What is wrong with
a file as a whole is a RequestFileError; what is wrong with a row is an InvalidRequest.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from uellm_cli.errors import RequestFileError
from uellm_cli.requests.decoding import BOM
from uellm_cli.requests.ids import Ids
from uellm_cli.requests.lines import parse_carefully, parse_row, quick_request
from uellm_cli.requests.streams import (
    STDIN,
    Format,
    damaged_file,
    named_errors,
    opened,
    shown,
    text_rows,
)
from uellm_cli.requests.tables import table_rows
from uellm_cli.requests.wording import DamageError, LineError, invalid
from uellm_cli.types import InvalidRequest, Request, SourceLine

# The longest line, element of an array or cell of a table that is read.
MAX_LINE_BYTES = 16 * 1024 * 1024


def read_requests(
    paths: Sequence[str],
    *,
    started: datetime,
    limit: int | None = None,
    stdin: BinaryIO | None = None,
    note: Callable[[str], None] | None = None,
) -> Iterator[Request | InvalidRequest]:
    """The rows of several files, at most `limit` in all, each valid or with what is wrong with it.

    `paths` are files, globs, and `-` for standard input (`stdin`, the process's own by default).
    `started` is the run's start, which clock times in requests are relative to. `note` is told what
    the user should know beside the rows. Raises RequestFileError, naming the file, where one is
    missing, empty, cannot be read, or is damaged from its start: as soon as the first row is asked
    for if that shows from outside, else when reading gets there. Damage further on is an invalid
    row. Memory: the ids, and what one read of a file takes.
    """
    ids = Ids()
    left = limit
    for path in expand_paths(paths):
        if left == 0:
            return
        rows = 0
        for row in _rows(path, started, stdin, note or _ignore):
            rows += 1
            yield ids.settle(row)
            if left is not None:
                left -= 1
                if left == 0:
                    return
        if not rows:
            raise RequestFileError(f"{shown(path)}: the file holds no requests")


def expand_paths(paths: Sequence[str]) -> list[str]:
    """The files that paths and globs name, in order; RequestFileError if one names none."""
    expanded: list[str] = []
    for path in paths:
        with named_errors(path):
            expanded += _expanded(path)
    if not expanded:
        raise RequestFileError("no request files are given")
    _refuse_repeats(expanded)
    return expanded


def _expanded(path: str) -> list[str]:
    if Path(path).is_dir():
        name = shown(path)
        raise RequestFileError(f"{name}: is a directory; give its files, as in '{name}/*.jsonl'")
    # First as it is: a file's own name may hold a glob's characters.
    if path == STDIN or Path(path).exists():
        return [path]
    if Path(path).is_symlink():
        raise RequestFileError(f"{shown(path)}: is a link to a file that is not there")
    if not glob.has_magic(path):
        raise RequestFileError(f"{shown(path)}: there is no such file")
    # Path.glob() takes no absolute patterns.
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    matches = [match for match in found if Path(match).is_file()]
    if not matches:
        raise RequestFileError(f"{shown(path)}: no file matches")
    return matches


def _refuse_repeats(paths: Sequence[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        same = path if path == STDIN else str(Path(path).resolve())
        if same in seen:
            raise RequestFileError(f"{shown(path)}: is given twice")
        seen.add(same)


# --- Rows ----------------------------------------------------------------------------------------


def _rows(
    path: str, started: datetime, stdin: BinaryIO | None, note: Callable[[str], None]
) -> Iterator[Request | InvalidRequest]:
    """The rows of one file, blank lines left out."""
    name = shown(path)
    with named_errors(path), opened(path, stdin) as (file, form):
        if form is Format.PARQUET:
            for number, row in table_rows(path, file, MAX_LINE_BYTES, note):
                source = SourceLine(name, number)
                if isinstance(row, LineError):
                    yield invalid(source, row)
                else:
                    yield parse_row(row, source, started)
            return
        any_read = False
        for number, line in text_rows(path, file, form, MAX_LINE_BYTES):
            if not line:
                continue
            source = SourceLine(name, number)
            if isinstance(line, bytes):
                # Neither blank lines nor byte order marks, which joined files have inside, are
                # taken by the fast way; so the usual line is not searched for them.
                request = quick_request(line, source, started)
                if request is not None:
                    yield request
                elif content := line.removeprefix(BOM).strip():
                    yield parse_carefully(content, source, started)
                else:
                    continue
            elif isinstance(line, DamageError) and not any_read:
                raise damaged_file(path, line.how)
            else:
                yield invalid(source, line)
            any_read = True


def _ignore(_: str) -> None:
    pass
