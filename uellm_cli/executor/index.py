"""What stands at the end of a journal: one entry a request, however often it was answered."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import msgspec

from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.executor.records import (
    Outcome,
    Record,
    RecordHead,
    Redo,
    Void,
    body_of,
    outcome_of,
)
from uellm_cli.types import Result


class Entry(msgspec.Struct, gc=False):
    """What stands for a request; `redo` is set while it is to be answered again."""

    offset: int
    key: str
    outcome: Outcome
    output_tokens: int
    redo: Redo | None = None


@dataclass(slots=True)
class Index:
    """What stands at the end of a journal, by `custom_id`.

    `size` is the length of the whole lines in bytes, `torn_bytes` what was cut off behind them,
    `damaged` the number of lines between them that cannot be read. `latest_s` is when the last
    answer was handed back, in seconds from the run's start.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 0
    torn_bytes: int = 0
    damaged: int = 0
    latest_s: float = 0.0
    last_redo: Redo | None = None

    def take_result(self, record: RecordHead | Record, offset: int) -> bool:
        """Brings the index up to date with a result whose line is at `offset`; if it stands."""
        result = record.result
        if result.timing is not None and result.timing.finished_s > self.latest_s:
            self.latest_s = result.timing.finished_s
        new = Entry(offset, record.key, outcome_of(result), result.output_tokens)
        standing = self.entries.get(result.custom_id)
        if standing is None or _replaces(new, standing):
            self.entries[result.custom_id] = new
            return True
        standing.redo = None
        return False

    def take_note(self, note: Redo | Void) -> None:
        """Brings the index up to date with a note."""
        if isinstance(note, Void):
            for custom_id in note.custom_ids:
                self.entries.pop(custom_id, None)
            return
        self.last_redo = note
        for entry in self.entries.values():
            if entry.outcome.value in note.which:
                entry.redo = note

    def pending_redo(self) -> bool:
        """Whether a redo has begun that is not at its end."""
        return any(entry.redo is not None for entry in self.entries.values())


def _replaces(new: Entry, standing: Entry) -> bool:
    """The newest answer stands; but a failure is none, and a cut one takes nothing away."""
    if not standing.outcome.is_answer:
        return True
    if new.outcome is Outcome.TRUNCATED:
        return new.output_tokens >= standing.output_tokens
    return new.outcome.is_answer


def read_index(path: Path) -> Index:
    """What a journal says; RunDirectoryError when there is none to read."""
    index = Index()
    decoder = msgspec.json.Decoder(RecordHead | Redo | Void)
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    index.torn_bytes = len(line)
                    break
                content = _checked(line, decoder)
                if content is None:
                    index.damaged += 1
                elif isinstance(content, RecordHead):
                    index.take_result(content, index.size)
                else:
                    index.take_note(content)
                index.size += len(line)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from None
    return index


def _checked(
    line: bytes, decoder: msgspec.json.Decoder[RecordHead | Redo | Void]
) -> RecordHead | Redo | Void | None:
    """A line's content, None when it is not as it was written."""
    body = body_of(line)
    if body is None:
        return None
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        return None


class ResultReader:
    """Reads single results of a journal by where they are."""

    # Most records are shorter; a longer one is read again, longer.
    _GUESS_BYTES = 2048

    def __init__(self, file: BinaryIO | FileIO) -> None:
        self._descriptor = file.fileno()
        self._decoder = msgspec.json.Decoder(Record)

    def result(self, entry: Entry) -> Result:
        """The result of an index entry; JournalError when it cannot be read any more."""
        size = self._GUESS_BYTES
        while True:
            block = os.pread(self._descriptor, size, entry.offset)
            end = block.find(b"\n")
            if end >= 0 or len(block) < size:
                break
            size *= 8
        body = body_of(memoryview(block)[: end + 1])
        if body is None:
            raise JournalError(
                f"the journal's record at byte {entry.offset} has changed while it was in use"
            )
        return self._decoder.decode(body).result
