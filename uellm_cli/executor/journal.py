"""The journal: one checksummed line for each result, the only truth that a resume goes by.

The file is only ever appended to. Beside results it holds two kinds of notes: that certain answers
are to be made again (`Redo`), and that certain ones no longer count (`Void`): see docs/adr/0006.

A record that was cut off by a crash while writing is dropped and cut away; a damaged one is passed
over and its request is asked again. Both are counted, so that a run can say so.
"""

from __future__ import annotations

import fcntl
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from uellm_cli.atomic import sync_directory
from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.executor.disk import Disk
from uellm_cli.executor.durability import Durability
from uellm_cli.executor.index import Index, ResultReader, read_index
from uellm_cli.executor.records import Record, Redo, Void, encode_line


class Journal:
    """An open journal, locked against a second run; use as a context manager.

    `index` says what stands, and what a crash or the disk has cost.
    """

    def __init__(self, file: FileIO, index: Index) -> None:
        self._file = file
        self._disk = Disk(file)
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
            if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                # Another run came to nothing and took its journal along before the lock was ours.
                raise BlockingIOError
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
        self._disk.keep(durability)

    def append(self, record: Record) -> bool:
        """Writes a result, which a killed process does not lose from here on.

        False where an earlier one goes on standing for its request. JournalError when the disk
        refuses; what stood before is safe.
        """
        return self.index.take_result(record, offset=self._write(encode_line(record)))

    def note(self, content: Redo | Void) -> None:
        """Writes a note and puts it on the disk."""
        self._write(encode_line(content))
        self._disk.sync()
        self.index.take_note(content)

    def commit(self) -> None:
        """Ends a batch, after which the disk has it if the schedule says so."""
        self._disk.end_batch()

    def _write(self, line: bytes) -> int:
        """Where the line stands."""
        offset = self.index.size
        self._disk.write(line, at=offset)
        self.index.size += len(line)
        return offset

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
        except JournalError:
            # Where something else has gone wrong already, that is what is told.
            if error is None:
                raise
        finally:
            self._file.close()
