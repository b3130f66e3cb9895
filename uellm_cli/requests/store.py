"""What requests ask, kept on the disk: planning holds ids and sizes, and text is fetched when run.

A million requests of 400 bytes are a file of about 400 MB without a name, which is gone with the
process however it ends, and a few bytes each in memory.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path
from typing import Any

import msgspec

from uellm_cli.errors import OutputError
from uellm_cli.requests.keys import KEY_BYTES, answer_key, content_of, model_salt
from uellm_cli.types import Endpoint, Message, Request, SamplingParams, SourceLine

# Text collected before it is written.
_WRITE_BYTES = 1 << 20


class RequestStore:
    """Requests by their `custom_id`; `model` is the fingerprint of the model that answers them.

    `folder` is where the text is kept, so that it is the volume that the user has chosen.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder
        self._salt = model_salt(model)
        try:
            # Open as long as the store is.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from None
        self._waiting = bytearray()
        self._written = 0
        self._positions: dict[str, int] = {}
        # Where each record ends: it begins where the one before it ends. And where its text ends:
        # what is left of it is its metadata.
        self._ends = array("Q", [0])
        self._text_ends = array("Q")
        self._keys = bytearray()
        self._files: dict[str, int] = {}
        self._file_names: list[str] = []
        self._file_of = array("I")
        self._lines = array("Q")
        self._decode = msgspec.msgpack.Decoder(
            tuple[Endpoint, tuple[Message, ...], str, SamplingParams]
        ).decode
        self._decode_metadata = msgspec.msgpack.Decoder(dict[str, Any]).decode

    def add(self, asked: Request, given: Request | None = None) -> None:
        """Keeps a request; `given` is what the model gets where that differs from what was asked.

        Raises OutputError when the disk is full.
        """
        content = content_of(asked)
        self._keys += answer_key(content, self._salt)
        self._waiting += content if given is None else content_of(given)
        self._text_ends.append(self._written + len(self._waiting))
        if asked.metadata:
            self._waiting += msgspec.msgpack.encode(asked.metadata)
        self._positions[asked.custom_id] = len(self._lines)
        self._ends.append(self._written + len(self._waiting))
        self._file_of.append(self._file_number(asked.source.file))
        self._lines.append(asked.source.line)
        if len(self._waiting) >= _WRITE_BYTES:
            self._flush()

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._positions

    def request(self, custom_id: str) -> Request:
        """The request as the model gets it, without its promise and arrival."""
        if self._waiting:
            self._flush()
        position = self._positions[custom_id]
        start, end = self._ends[position], self._ends[position + 1]
        record = os.pread(self._file.fileno(), end - start, start)
        text_bytes = self._text_ends[position] - start
        endpoint, messages, prompt, sampling = self._decode(record[:text_bytes])
        metadata = record[text_bytes:]
        return Request(
            custom_id=custom_id,
            endpoint=endpoint,
            messages=messages,
            prompt=prompt,
            sampling=sampling,
            metadata=self._decode_metadata(metadata) if metadata else {},
            source=self.source(custom_id),
        )

    def key(self, custom_id: str) -> str:
        """The hash of what was asked and of the model: an answer with this key is its answer."""
        start = self._positions[custom_id] * KEY_BYTES
        return self._keys[start : start + KEY_BYTES].hex()

    def source(self, custom_id: str) -> SourceLine:
        position = self._positions[custom_id]
        return SourceLine(self._file_names[self._file_of[position]], self._lines[position])

    def _file_number(self, name: str) -> int:
        number = self._files.setdefault(name, len(self._files))
        if number == len(self._file_names):
            self._file_names.append(name)
        return number

    def _flush(self) -> None:
        rest = memoryview(bytes(self._waiting))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._unwritable(error) from error
        self._written += len(self._waiting)
        self._waiting.clear()

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self._folder}: requests cannot be kept there: {error.strerror}")
