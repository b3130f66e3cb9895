"""What is wrong with a line, in plain words that are safe to print and never long."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from functools import lru_cache

from uellm_cli.documents import suggestion
from uellm_cli.types import InvalidRequest, SourceLine

MAX_FIELD_CHARS = 200
MAX_REASON_CHARS = 500
# Names longer than this are nobody's slip of the pen, and comparing them takes quadratic time.
_MAX_COMPARED_CHARS = 64
# `max_new_tokens` is as close to `max_tokens`; `prompt_id` is less close to `prompt`.
_CLOSE = 0.82


class LineError(Exception):
    """Why a line is no request: the path of a field, `line` for the whole of it, and a reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class DamageError(LineError):
    """What is left of a file cannot be read, and how that shows."""

    def __init__(self, how: str) -> None:
        super().__init__("line", f"the file is damaged from here on: {how}")
        self.how = how


def too_long(max_bytes: int) -> LineError:
    return LineError("line", f"is longer than {max_bytes // 2**20} MiB")


def invalid(source: SourceLine, refusal: LineError, custom_id: str | None = None) -> InvalidRequest:
    """The refusal as a row: one line of printable text each for field and reason."""
    field = printable(refusal.field, MAX_FIELD_CHARS) or '""'
    return InvalidRequest(source, field, printable(refusal.reason, MAX_REASON_CHARS), custom_id)


def printable(text: str, limit: int) -> str:
    """At most `limit` characters of `text` and an ellipsis, what cannot be shown as an escape."""
    if len(text) > limit:
        text = text[:limit] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def kind(value: object) -> str:
    """What a value of a decoded line is, with its article."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a value")


def shortened(value: object, limit: int = 60) -> str:
    """The start of a value as JSON."""
    if isinstance(value, str):
        value = value[: limit + 1]
    text = json.dumps(value, ensure_ascii=False, default=repr, skipkeys=True)
    return text if len(text) <= limit else text[:limit] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?` where a known name is at all like `name`, else nothing."""
    return suggestion(name, known) if len(name) <= _MAX_COMPARED_CHARS else ""


# A file's rows have the same few names, over and over.
@lru_cache(maxsize=1024)
def slip_of(name: str, known: frozenset[str]) -> str | None:
    """The known name that `name`, which is none of them, is surely meant to be."""
    if len(name) > _MAX_COMPARED_CHARS:
        return None
    close = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=_CLOSE)
    return close[0] if close else None


# --- msgspec's errors ----------------------------------------------------------------------------

_MSGSPEC_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def refusal_of(message: str) -> LineError:
    """`Expected `int`, got `str` - at `$.max_tokens`` as a field and a reason."""
    # From the right: an unknown field's name comes before its place and may hold anything.
    text, _, place = message.rpartition(" - at `")
    if not text:
        text, place = message, ""
    path = re.search(r"\$\.?([^`]*)", place)
    field = (path[1] if path else "") or "line"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        return LineError(f"{field}.{unknown[1]}", "is not supported")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return LineError(f"{field}.{missing[1]}", "is missing")
    reason = re.sub(r"`([\w| ]+)`", _in_words, text)
    return LineError(field, reason[:1].lower() + reason[1:])


def _in_words(quoted: re.Match[str]) -> str:
    names = [name for name in quoted[1].split(" | ") if name != "null"]
    return " or ".join(_MSGSPEC_TYPES.get(name, name) for name in names) or "null"
