"""What makes a request the same request: its id, and the hash of what it asks."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import msgspec
from msgspec.structs import replace

from uellm_cli.errors import RequestFileError
from uellm_cli.requests.lines import NO_ID
from uellm_cli.types import InvalidRequest, Request, SourceLine

_HASH_CHARS = 12


def request_hash(request: Request) -> str:
    """SHA-256 (hex) over what determines an answer: endpoint, text and sampling.

    Id, SLO, arrival, metadata and place in a file are left out, so an answer stays valid when they
    change.
    """
    content = (
        request.endpoint,
        request.messages,
        request.prompt,
        request.sampling,
    )
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces; RequestFileError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = error.strerror if isinstance(error, OSError) else None
        raise RequestFileError(f"{path}: {reason or error}") from None


class Ids:
    """Sees to it that no two rows share a `custom_id`, over all files of a run.

    A request without one is named after its content: `line-` and 12 digits of its hash, with `-2`,
    `-3`, … for repeats, so the same files give the same names again. Of two rows with one id the
    first stands, be it valid or not. Memory: every id, with its place.
    """

    def __init__(self) -> None:
        self._places: dict[str, SourceLine] = {}
        self._repeats: Counter[str] = Counter()

    def settle(self, row: Request | InvalidRequest) -> Request | InvalidRequest:
        """The row with an id of its own, or what is wrong with the one it has."""
        custom_id = row.custom_id
        if custom_id is None:
            return row
        if custom_id == NO_ID and isinstance(row, Request):
            custom_id = self._new_id(row)
            row = replace(row, custom_id=custom_id)
        first = self._places.setdefault(custom_id, row.source)
        if first is row.source:
            return row
        # Left without an id: it is the first row's, whose answer this must not be taken for.
        if isinstance(row, InvalidRequest):
            return replace(row, custom_id=None)
        reason = f"{custom_id!r} is already the id of {first}"
        return InvalidRequest(row.source, "custom_id", reason)

    def _new_id(self, request: Request) -> str:
        stem = f"line-{request_hash(request)[:_HASH_CHARS]}"
        while True:
            self._repeats[stem] += 1
            count = self._repeats[stem]
            name = stem if count == 1 else f"{stem}-{count}"
            if name not in self._places:
                return name
