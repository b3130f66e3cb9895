"""JSON text as Python's values, with the reason in plain words where it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from uellm_cli.requests.wording import LineError

BOM = b"\xef\xbb\xbf"

# What a line may nest; an explicit limit, for Python's own depends on who calls.
MAX_DEPTH = 128
TOO_DEEP = "is nested too deeply"


def decoded(text: bytes) -> Any:
    """The value that `text` is, with the last of several equal keys; raises LineError."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise LineError("line", TOO_DEEP) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise LineError("line", _why_not_json(text, str(error))) from None


def _why_not_json(text: bytes, error: str) -> str:
    try:
        text.decode()
    except UnicodeDecodeError as undecodable:
        return f"is not UTF-8 at byte {undecodable.start}"
    try:
        # Python's own decoder takes two things that are no JSON.
        json.loads(text, parse_constant=_refuse_constant)
    except _NotANumberError:
        return "is not valid JSON: NaN and Infinity are no numbers there"
    except (ValueError, RecursionError):
        pass
    else:
        if re.search("surrogate|truncated", error) and re.search(rb"\\u[dD][89a-fA-F]", text):
            return "is not valid JSON: it holds half of a surrogate pair"
    reason = error.removeprefix("JSON is malformed: ").partition(" - at ")[0]
    return f"is not valid JSON: {reason.lower()}"


class _NotANumberError(Exception):
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _NotANumberError(name)


def without_nulls(value: Any, depth: int = 0) -> Any:
    """The value without the keys that are null; raises LineError beyond `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        raise LineError("line", TOO_DEEP)
    if isinstance(value, Mapping):
        return {k: without_nulls(part, depth + 1) for k, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part, depth + 1) for part in value]
    return value
