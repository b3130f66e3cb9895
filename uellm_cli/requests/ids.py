"""Ids: one for each request, none for two."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from uellm_cli.requests.keys import content_of
from uellm_cli.requests.lines import NO_ID
from uellm_cli.requests.wording import LineError, invalid, shortened
from uellm_cli.types import InvalidRequest, Request, SourceLine

_HASH_BYTES = 6
# Room for the line beside the file's number in one int.
_LINE_BITS = 48


class Ids:
    """Sees to it that no two rows share a `custom_id`, over all files of a run.

    A request without one is named after its content: `line-` and 12 digits of its hash, with `-2`,
    `-3`, … for repeats, so the same files give the same names again. Of two rows with one id the
    first stands, be it valid or not. Memory: every id, and an int for its place.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._files: list[str] = []
        self._repeats: dict[str, int] = {}

    def settle(self, row: Request | InvalidRequest) -> Request | InvalidRequest:
        """The row with an id of its own, or what is wrong with the one it has."""
        custom_id = row.custom_id
        if custom_id is None:
            return row
        if custom_id == NO_ID and isinstance(row, Request):
            custom_id = self._new_id(row)
            row = replace(row, custom_id=custom_id)
        place = self._place(row.source)
        first = self._places.setdefault(custom_id, place)
        if first == place:
            return row
        # Left without an id: it is the first row's, whose answer this must not be taken for.
        if isinstance(row, InvalidRequest):
            return replace(row, custom_id=None)
        file, line = self._files[first >> _LINE_BITS], first & ((1 << _LINE_BITS) - 1)
        reason = f"{shortened(custom_id)} is already the id of {SourceLine(file, line)}"
        return invalid(row.source, LineError("custom_id", reason))

    def _place(self, source: SourceLine) -> int:
        if not self._files or self._files[-1] != source.file:
            self._files.append(source.file)
        return (len(self._files) - 1) << _LINE_BITS | source.line

    def _new_id(self, request: Request) -> str:
        digest = hashlib.blake2b(content_of(request), digest_size=_HASH_BYTES).hexdigest()
        name = stem = f"line-{digest}"
        while name in self._places:
            count = self._repeats[stem] = self._repeats.get(stem, 1) + 1
            name = f"{stem}-{count}"
        return name
