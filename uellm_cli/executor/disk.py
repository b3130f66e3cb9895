"""A file that is only appended to, written at once and put on the disk by a schedule."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from threading import Event, Thread

from uellm_cli.errors import JournalError
from uellm_cli.executor.durability import EACH_BATCH, Durability


class Disk:
    """Hands everything to the system as it comes; what a killed process has written stays.

    `JournalError` says that the disk refuses, be it a write or a sync; what was there before is
    safe.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._durability = EACH_BATCH
        self._unsynced = False
        self._syncer: _Syncer | None = None

    def keep(self, durability: Durability) -> None:
        self._durability = durability
        if durability.every_s is not None:
            self._syncer = _Syncer(self._file.fileno(), durability.every_s)

    def write(self, content: bytes, at: int) -> None:
        """Writes the whole of `content` at the end, `at`, or leaves the file as it was."""
        try:
            written = self._file.write(content)
            while written < len(content):
                written += self._file.write(content[written:])
        except OSError as error:
            # What was written of it would only be cut off again by the next session.
            with suppress(OSError):
                self._file.truncate(at)
            raise _unwritable(error) from error
        self._unsynced = True
        if self._durability.each_result:
            self.sync()
        elif self._syncer is not None:
            self._syncer.want()

    def end_batch(self) -> None:
        """Everything written so far makes a batch."""
        if self._syncer is not None:
            self._syncer.check()
        elif self._unsynced:
            self.sync()

    def sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(error) from error
        self._unsynced = False

    def close(self) -> None:
        """Puts the rest on the disk."""
        if self._syncer is not None:
            self._syncer.end()
        if self._unsynced:
            self.sync()


class _Syncer:
    """A thread that syncs a file so long after each first write that it is told of."""

    def __init__(self, descriptor: int, after_s: float) -> None:
        self._descriptor = descriptor
        self._after_s = after_s
        self._wanted = Event()
        self._ending = Event()
        self._error: OSError | None = None
        self._thread = Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def want(self) -> None:
        # Setting takes a lock, a million times; a sync that is still to begin is enough.
        if not self._wanted.is_set():
            self._wanted.set()

    def check(self) -> None:
        if self._error is not None:
            raise _unwritable(self._error) from self._error

    def end(self) -> None:
        self._ending.set()
        self._wanted.set()
        self._thread.join()
        self.check()

    def _run(self) -> None:
        while self._wanted.wait() and not self._ending.wait(self._after_s):
            # First: what is written from here on may miss this sync, and wants another.
            self._wanted.clear()
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._error = error
                return


def _unwritable(error: OSError) -> JournalError:
    return JournalError(
        f"the journal cannot be written: {error.strerror}; what was answered before is safe, and "
        "--resume goes on from there"
    )
