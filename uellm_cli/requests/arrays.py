"""The elements of a JSON array as bytes, found in bounded memory.

Only what tells where an element ends is looked at: strings, brackets and commas. Whether an element
is valid JSON is for its reader to say, as it is for a line; so one that is not, or that is longer
than anyone can hold, costs no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from uellm_cli.requests.decoding import BOM
from uellm_cli.requests.wording import DamageError, LineError, too_long


def _skipping(other: bytes, levels: int) -> bytes:
    """A pattern for all that consists of `other` bytes, strings, and brackets with such in them.

    It never goes back on what it has taken, so its time is linear in that.
    """
    group = rb'"[^"]*+"'
    if levels:
        group += rb"|[\[{]" + _skipping(rb'[^"{}\[\]]', levels - 1) + rb"[\]}]"
    return other + rb"*+(?:(?:" + group + rb")" + other + rb"*+)*+"


# Usual elements are skipped whole; what is nested deeper, or cut by a chunk's end, is entered
# bracket by bracket. Among the array's own elements commas tell them apart.
_LEVELS = 4
_TO_BRACKET = re.compile(_skipping(rb'[^"{}\[\]]', _LEVELS))
_TO_COMMA = re.compile(_skipping(rb'[^"{}\[\],]', _LEVELS))

_OPENED = re.compile(rb"[\[{]++")
_QUOTE, _COMMA, _END = b'",]'


def array_elements(
    chunks: Iterator[bytes], max_bytes: int
) -> Iterator[tuple[int, bytes | LineError]]:
    """Each element of the array that `chunks` begin with, with its number from 1.

    One beyond `max_bytes` is a LineError; so is what follows the array's end, a missing end, and
    damage of the file, as one more row after the last.
    """
    scanner = _Scanner(max_bytes)
    try:
        for chunk in chunks:
            yield from scanner.feed(chunk)
            if scanner.is_over:
                return
    except DamageError as damage:
        yield scanner.number + 1, damage
        return
    yield from scanner.finish()


class _Scanner:
    """Where in the array the chunks so far have led to."""

    def __init__(self, max_bytes: int) -> None:
        self.number = 0
        # Something has been found after the array's end.
        self.is_over = False
        self._max_bytes = max_bytes
        # The element that has begun; nothing is kept of one that is too long.
        self._begun = bytearray()
        self._size = 0
        self._depth = 0
        self._has_begun = False
        self._has_ended = False
        self._in_string = False
        # A backslash at the last chunk's end, of which this chunk's first byte is a part.
        self._escape = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | LineError]]:
        chunk = self._escape + chunk
        backslashes = len(chunk) - len(chunk.rstrip(b"\\"))
        self._escape = chunk[len(chunk) - backslashes % 2 :]
        chunk = chunk[: len(chunk) - len(self._escape)]
        # With the escapes out of sight every quote begins or ends a string. All stays in its place.
        plain = chunk.replace(rb"\\", b"__").replace(rb"\"", b"__")
        start = 0
        if not self._has_begun:
            start = chunk.index(b"[") + 1
            self._has_begun = True
        position = start
        while not self._has_ended and position < len(plain):
            if self._in_string:
                position = plain.find(_QUOTE, position)
                if position < 0:
                    break
                self._in_string = False
                position += 1
                continue
            found = (_TO_BRACKET if self._depth else _TO_COMMA).match(plain, position)
            position = found.end() if found else position
            if position == len(plain):
                break
            byte = plain[position]
            if byte == _QUOTE:
                self._in_string = True
            elif opened := _OPENED.match(plain, position):
                self._depth += len(opened[0])
                position = opened.end()
                continue
            elif self._depth:
                self._depth -= 1
            elif byte in (_COMMA, _END):
                self._keep(chunk[start:position])
                self._has_ended = byte == _END
                if element := self._element(is_last=self._has_ended):
                    yield element
                start = position + 1
            position += 1
        if not self._has_ended:
            self._keep(chunk[start:])
        elif chunk[start:].strip():
            self.is_over = True
            yield self._rest()

    def finish(self) -> Iterator[tuple[int, bytes | LineError]]:
        """What is to be said when there are no more chunks."""
        if self._has_ended:
            if self._escape:
                yield self._rest()
            return
        is_whole = self._depth == 0 and not self._in_string
        if is_whole and (element := self._element(is_last=True)):
            yield element
        yield self.number + 1, LineError("line", "the array has no end: the file may be cut off")

    def _rest(self) -> tuple[int, LineError]:
        return self.number + 1, LineError("line", "what follows the array's end is not read")

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._max_bytes:
            self._begun += piece
        else:
            self._begun.clear()

    def _element(self, is_last: bool) -> tuple[int, bytes | LineError] | None:
        """The element that has just ended; None where an empty array has."""
        element = bytes(self._begun)
        # To a reader of lines, a byte order mark alone is a blank line.
        if not element.replace(BOM, b"").strip():
            element = b""
        is_too_long = self._size > self._max_bytes
        self._begun.clear()
        self._size = 0
        # After a comma something has to come, unless it is the file that ends there.
        if is_last and not element and not is_too_long and not (self.number and self._has_ended):
            return None
        self.number += 1
        if is_too_long:
            return self.number, too_long(self._max_bytes)
        if not element:
            return self.number, LineError("line", "is missing: nothing stands beside a comma")
        return self.number, element
