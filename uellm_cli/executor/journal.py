"""The journal: one checksummed line for each result, the only truth that a resume goes by.

A line is the CRC-32 of its JSON in eight hex digits, a space, the JSON, a newline. The file is only
ever appended to. What follows the last whole record is the trace of a crash while writing and is
cut off at the next start; a broken record with whole ones behind it is damage and is refused.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import crc32

import msgspec

from uellm_cli.atomic import sync_directory
from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.types import Result


@dataclass(frozen=True, slots=True)
class Record:
    """A result, and the hash of the request (text, sampling) that it answers."""

    request_hash: str
    result: Result


def encode_record(record: Record) -> bytes:
    body = msgspec.json.encode(record)
    return b"%08x %s\n" % (crc32(body), body)


def read_records(path: Path) -> tuple[list[Record], int]:
    """All whole records of a journal, and how many bytes they take.

    Raises RunDirectoryError when there is no journal, JournalError when a broken record is not the
    last one.
    """
    records: list[Record] = []
    size = 0
    decoder = msgspec.json.Decoder(Record)
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, start=1):
            record = _decode(line, decoder)
            if record is None:
                if file.read(1):
                    raise JournalError(
                        f"{path}:{number}: the journal is damaged here, with records behind it; "
                        "restore it from a copy, or run anew in another directory"
                    )
                break
            records.append(record)
            size += len(line)
    return records, size


def _decode(line: bytes, decoder: msgspec.json.Decoder[Record]) -> Record | None:
    checksum, _, body = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32(body):
        return None
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        return None


class Journal:
    """An open journal, locked against a second run; use as a context manager."""

    def __init__(self, file: FileIO, records: Sequence[Record]) -> None:
        self._file = file
        self._pending: list[bytes] = []
        self.records = tuple(records)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens or creates `path`, dropping a torn last record.

        Raises RunDirectoryError when another run holds it, JournalError when it is damaged.
        """
        try:
            # Unbuffered: after a failed write nothing is left that a later close would write.
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            records, size = read_records(path)
            file.truncate(size)
            sync_directory(path.parent)
        except BlockingIOError:
            file.close()
            raise RunDirectoryError(
                f"{path.parent}: another uellm run is at work in this directory"
            ) from None
        except OSError as error:
            file.close()
            raise RunDirectoryError(f"{path}: cannot be locked: {error.strerror}") from None
        except BaseException:
            file.close()
            raise
        return cls(file, records)

    def append(self, record: Record) -> None:
        """Takes a record; it is durable after the next `commit`."""
        self._pending.append(encode_record(record))

    def commit(self) -> None:
        """Puts everything appended on the disk; JournalError when the disk refuses."""
        if not self._pending:
            return
        rest = memoryview(b"".join(self._pending))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JournalError(
                f"the journal cannot be written: {error.strerror}; what was answered before is "
                "safe, and --resume goes on from there"
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
        self._file.close()
