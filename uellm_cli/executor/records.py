"""The lines of a journal: a result each, or a note about results before it.

A line is the CRC-32 of its JSON in eight hex digits, a space, the JSON, a newline.
"""

from __future__ import annotations

from enum import StrEnum
from zlib import crc32

import msgspec

from uellm_cli.config import Redoable
from uellm_cli.types import EXPIRED, FinishReason, Result

_CHECKSUM_CHARS = 8


class Outcome(StrEnum):
    """How a request ended; those that can be made again are called as in `Redoable`."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def is_answer(self) -> bool:
        return self in (Outcome.ANSWERED, Outcome.TRUNCATED)


class Record(msgspec.Struct, frozen=True, gc=False, tag="result"):
    """A result, and the key of the request and model that it comes from."""

    key: str
    result: Result


class Redo(msgspec.Struct, frozen=True, tag="redo"):
    """Results of these kinds so far are to be made again, with at least `max_tokens` to say.

    An earlier answer stands until there is a newer one.
    """

    which: tuple[Redoable, ...]
    max_tokens: int | None = None


class Void(msgspec.Struct, frozen=True, tag="void"):
    """Results of these requests so far count no more: the requests have changed or are gone."""

    custom_ids: tuple[str, ...]


# The parts of a result that an index needs: decoding the rest of a million answers takes seconds.
class FailureHead(msgspec.Struct, gc=False):
    code: str


class TimingHead(msgspec.Struct, gc=False):
    finished_s: float


class ResultHead(msgspec.Struct, gc=False):
    custom_id: str
    output_tokens: int
    failure: FailureHead | None = None
    finish_reason: FinishReason | None = None
    timing: TimingHead | None = None


class RecordHead(msgspec.Struct, gc=False, tag="result"):
    key: str
    result: ResultHead


def encode_line(content: Record | Redo | Void) -> bytes:
    body = msgspec.json.encode(content)
    return b"%08x %s\n" % (crc32(body), body)


def outcome_of(result: ResultHead | Result) -> Outcome:
    if result.failure is not None:
        return Outcome.EXPIRED if result.failure.code == EXPIRED else Outcome.FAILED
    cut = result.finish_reason is FinishReason.LENGTH
    return Outcome.TRUNCATED if cut else Outcome.ANSWERED


def body_of(line: bytes | memoryview) -> memoryview | None:
    """The JSON of a line with its newline, None when it is not as it was written."""
    line = memoryview(line)
    body = line[_CHECKSUM_CHARS + 1 : -1]
    return body if line[: _CHECKSUM_CHARS + 1] == b"%08x " % crc32(body) else None
