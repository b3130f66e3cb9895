"""Bytes of request files: opened once, told apart, unpacked, and cut into lines, in bounded memory.

Everything here reads a file from its start to its end, so pipes are as good as files. Damage in the
middle is a `DamageError`, which leaves standing what was read before it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import sys
import zlib
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO, cast

from uellm_cli.errors import RequestFileError
from uellm_cli.requests.arrays import array_elements
from uellm_cli.requests.decoding import BOM
from uellm_cli.requests.wording import DamageError, LineError, printable, too_long

STDIN = "-"

_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_READ_BYTES = 256 * 1024
# Arrow's decompressor throws away all of a read in which it fails: little is lost by small ones.
_ZSTANDARD_READ_BYTES = 8 * 1024
# As many blank bytes may come before what tells a JSON array from lines.
_MAX_BLANK_BYTES = 64 * 1024
_LINES_ENDINGS = (".jsonl", ".ndjson")
_MAX_REASON_CHARS = 300


class Format(Enum):
    TEXT = auto()
    GZIP = auto()
    ZSTANDARD = auto()
    PARQUET = auto()


_BY_ENDING = {
    ".gz": Format.GZIP,
    ".zst": Format.ZSTANDARD,
    ".parquet": Format.PARQUET,
}
_BY_FIRST_BYTES = {
    b"\x1f\x8b": Format.GZIP,
    b"\x28\xb5\x2f\xfd": Format.ZSTANDARD,
    b"PAR1": Format.PARQUET,
}


def shown(path: str) -> str:
    """A path as text that can be written as UTF-8, whatever bytes the file's name has."""
    return os.fsencode(path).decode(errors="backslashreplace")


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """What opening and reading raise, as a RequestFileError that names the file."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise damaged_file(path, one_line(error)) from None
    except OSError as error:
        # Without an errno it comes from a decompressor, not from the system.
        if error.strerror is None:
            raise damaged_file(path, one_line(error)) from None
        raise RequestFileError(f"{shown(path)}: {error.strerror}") from None


def damaged_file(path: str, how: str) -> RequestFileError:
    return RequestFileError(f"{shown(path)}: the file is damaged: {how}")


def one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), _MAX_REASON_CHARS)


@contextlib.contextmanager
def opened(path: str, stdin: BinaryIO | None) -> Iterator[tuple[io.BufferedReader, Format]]:
    """The file from its first byte on, and what its ending or first bytes say that it is."""
    with contextlib.ExitStack() as stack:
        if path == STDIN:
            file = _buffered(stdin or sys.stdin.buffer)
        else:
            file = stack.enter_context(Path(path).open("rb"))
        # Not peek(): a pipe may have no more than a single byte to show.
        start = file.read(4)
        form = _format(path, start)
        if path != STDIN and file.seekable():
            file.seek(0)
        else:
            file = io.BufferedReader(_Rejoined(start, file), _READ_BYTES)
        yield file, form


class _Rejoined(io.RawIOBase):
    """A stream of which the start has been read, from its start on."""

    def __init__(self, start: bytes, rest: io.BufferedReader) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._start:
            return self._rest.readinto1(buffer)
        size = min(len(buffer), len(self._start))
        buffer[:size] = self._start[:size]
        self._start = self._start[size:]
        return size


def _buffered(file: BinaryIO) -> io.BufferedReader:
    """The stream itself, or one around it where something else stands in for standard input."""
    if isinstance(file, io.BufferedReader):
        return file
    return io.BufferedReader(cast("io.RawIOBase", file))


def _format(path: str, start: bytes) -> Format:
    _refuse_utf16(path, start)
    if by_ending := _BY_ENDING.get(Path(path).suffix.lower()):
        return by_ending
    return _by_first_bytes(start)


def _by_first_bytes(start: bytes) -> Format:
    recognised = (form for magic, form in _BY_FIRST_BYTES.items() if start.startswith(magic))
    return next(recognised, Format.TEXT)


def _refuse_utf16(path: str, start: bytes) -> None:
    if start.startswith(_UTF16_BOMS):
        raise RequestFileError(f"{shown(path)}: the file is UTF-16; save it as UTF-8")


# --- Text ----------------------------------------------------------------------------------------


def text_rows(
    path: str, file: io.BufferedReader, form: Format, max_bytes: int
) -> Iterator[tuple[int, bytes | LineError]]:
    """Each line, or each element of a JSON array, with its number from 1.

    One beyond `max_bytes` is a LineError, damage a DamageError as the last row. Lines may be blank,
    and both may have a byte order mark in front. Raises RequestFileError for what is no text.
    """
    chunks = _chunks(file, form)
    try:
        start = _start(chunks)
    except DamageError as damage:
        yield 1, damage
        return
    _refuse_utf16(path, start)
    if form is not Format.TEXT and _by_first_bytes(start) is not Format.TEXT:
        raise RequestFileError(f"{shown(path)}: is packed twice or holds a table; unpack it first")
    chunks = itertools.chain([start], chunks)
    if _content(start).startswith(b"[") and not _is_named_lines(path):
        yield from array_elements(chunks, max_bytes)
    else:
        yield from _lines(chunks, max_bytes)


def _start(chunks: Iterator[bytes]) -> bytes:
    """The first chunks, up to one that is not blank."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) > _MAX_BLANK_BYTES or (len(start) > len(BOM) and _content(start)):
            break
    return start


def _content(start: bytes) -> bytes:
    return start.removeprefix(BOM).lstrip()


def _is_named_lines(path: str) -> bool:
    name = path.lower()
    for ending in (".gz", ".zst"):
        name = name.removesuffix(ending)
    return name.endswith(_LINES_ENDINGS)


def _lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | LineError]]:
    number = 0
    # The line that the chunks so far have begun; nothing is kept of one that is too long.
    begun = bytearray()
    size = 0
    try:
        for chunk in chunks:
            lines = chunk.split(b"\n")
            rest = lines.pop()
            if lines and size:
                number += 1
                size += len(lines[0])
                begun += lines.pop(0)
                yield number, bytes(begun) if size <= max_bytes else too_long(max_bytes)
                begun.clear()
                size = 0
            for line in lines:
                number += 1
                yield number, line if len(line) <= max_bytes else too_long(max_bytes)
            size += len(rest)
            if size <= max_bytes:
                begun += rest
            else:
                begun.clear()
    except DamageError as damage:
        yield number + 1, damage
        return
    if size:
        yield number + 1, bytes(begun) if size <= max_bytes else too_long(max_bytes)


# --- Unpacking -----------------------------------------------------------------------------------


def _chunks(file: io.BufferedReader, form: Format) -> Iterator[bytes]:
    """The file's bytes, unpacked; DamageError where that cannot go on."""
    read, size = file.read1, _READ_BYTES
    if form is Format.GZIP:
        read = gzip.GzipFile(fileobj=file).read1
    elif form is Format.ZSTANDARD:
        import pyarrow

        read, size = pyarrow.CompressedInputStream(file, "zstd").read, _ZSTANDARD_READ_BYTES
    try:
        while chunk := read(size):
            yield chunk
    except (EOFError, zlib.error) as error:
        raise DamageError(one_line(error)) from None
    except OSError as error:
        # With an errno it comes from the system, not from a decompressor.
        if error.strerror is not None:
            raise
        raise DamageError(one_line(error)) from None
