"""The journal: one checksummed line for each result, the only truth that a resume goes by.

The file is only ever appended to. Beside results it holds two kinds of notes: that certain answers
are to be made again (`Redo`), and that certain ones no longer count (`Void`): see docs/adr/0006.

A record that was cut off by a crash while writing is dropped and cut away; a damaged one is passed
over and its request is asked again. Both are counted, so that a run can say so.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Lock, Timer
from types import TracebackType
from typing import Self

from uellm_cli.atomic import sync_directory
from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.executor.durability import EACH_BATCH, Durability
from uellm_cli.executor.index import Index, ResultReader, read_index
from uellm_cli.executor.records import Record, Redo, Void, encode_line


class Journal:
    """An open journal, locked against a second run; use as a context manager.

    `index` says what stands, and what a crash or the disk has cost.
    """

    def __init__(self, file: FileIO, index: Index) -> None:
        self._file = file
        self._pending: list[tuple[bytes, Record]] = []
        self._disk = _Disk(file)
        self.index = index
        self.reader = ResultReader(file)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens or creates `path`, cutting off a torn last record.

        Raises RunDirectoryError when another run holds it or it cannot be used.
        """
        try:
            # Unbuffered: after a failed write nothing is left that a later close would write.
            file = path.open("ab+", buffering=0)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            index = read_index(path)
            file.truncate(index.size)
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
        return cls(file, index)

    def keep(self, durability: Durability) -> None:
        """Says when results are put on the disk; with each batch unless this is called."""
        self._disk.durability = durability

    def append(self, record: Record) -> None:
        """Takes a result; it stands after the next `commit`."""
        self._pending.append((encode_line(record), record))
        if self._disk.durability.each_result:
            self.commit()

    def note(self, content: Redo | Void) -> None:
        """Writes a note and puts it on the disk."""
        self._write()
        line = encode_line(content)
        self._disk.write(line, at=self.index.size)
        self.index.take_note(content)
        self.index.size += len(line)
        self._disk.sync()

    def commit(self) -> None:
        """Writes everything appended, and puts it on the disk as the schedule says.

        JournalError when the disk refuses; what stood before is safe.
        """
        self._write()
        self._disk.sync_when_due()

    def _write(self) -> None:
        if not self._pending:
            return
        self._disk.write(b"".join(line for line, _ in self._pending), at=self.index.size)
        for line, record in self._pending:
            self.index.take_result(record, self.index.size)
            self.index.size += len(line)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._disk.close()
        finally:
            self._file.close()


class _Disk:
    """Writing and syncing, the latter on a timer where a schedule asks for it."""

    def __init__(self, file: FileIO) -> None:
        self.durability = EACH_BATCH
        self._file = file
        self._lock = Lock()
        self._timer: Timer | None = None
        self._unsynced = False
        self._timer_error: OSError | None = None

    def write(self, content: bytes, at: int) -> None:
        """Writes the whole of `content` at the end, `at`, or leaves the file as it was."""
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            # What was written of it would only be cut off again by the next session.
            with suppress(OSError):
                self._file.truncate(at)
            raise _unwritable(error) from error
        self._unsynced = True

    def sync_when_due(self) -> None:
        if self._timer_error is not None:
            raise _unwritable(self._timer_error) from self._timer_error
        if not self._unsynced:
            return
        if self.durability.every_s is None:
            self.sync()
        elif self._timer is None:
            self._timer = Timer(self.durability.every_s, self._sync_by_timer)
            self._timer.daemon = True
            self._timer.start()

    def sync(self) -> None:
        try:
            with self._lock:
                os.fsync(self._file.fileno())
                self._unsynced = False
        except OSError as error:
            raise _unwritable(error) from error

    def close(self) -> None:
        timer = self._timer  # which the timer's own thread clears
        if timer is not None:
            timer.cancel()
            timer.join()
        if self._unsynced:
            self.sync()

    def _sync_by_timer(self) -> None:
        try:
            with self._lock:
                # First: what is written from here on wants a sync, and a timer, of its own.
                self._unsynced = False
                self._timer = None
                os.fsync(self._file.fileno())
        except OSError as error:
            self._timer_error = error


def _unwritable(error: OSError) -> JournalError:
    return JournalError(
        f"the journal cannot be written: {error.strerror}; what was answered before is safe, and "
        "--resume goes on from there"
    )
