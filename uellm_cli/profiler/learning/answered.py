"""A row with a request and its answer: which part of it is which.

A row is a request in any of its forms, and has beside it an answer's text or its length in tokens;
or it is a conversation with the answer in it, as its last assistant turn. Names that say nothing
about the request's text or its answer's length are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from uellm_cli.requests.decoding import decoded
from uellm_cli.requests.fields import ID_FIELDS, MAX_OUTPUT_TOKENS, TEXT_FIELDS
from uellm_cli.requests.lines import parse_row
from uellm_cli.requests.sharegpt import ROLES
from uellm_cli.requests.wording import LineError, kind, shortened
from uellm_cli.types import InvalidRequest, Request, SourceLine

# Where answers are looked for unless a name is given; lengths go before texts.
TOKENS_FIELDS = ("output_tokens", "response_tokens", "completion_tokens", "answer_tokens")
ANSWER_FIELDS = ("response", "completion", "answer", "output")
CENSORED_FIELD = "censored"
FINISH_FIELDS = ("finish_reason", "stop_reason")
# What OpenAI and Anthropic call it.
CUT_REASONS = ("length", "max_tokens")
WHOLE_REASONS = ("stop", "end_turn", "stop_sequence")

_CAPS = ("max_tokens", "max_completion_tokens")
# With these it is not the model that decides how long its answer is.
_FORCED = ("ignore_eos", "min_tokens")
_BODY = (*TEXT_FIELDS, *_CAPS, *_FORCED, "system", "metadata")
_REQUEST = (*ID_FIELDS, *_BODY, "method", "url")
# Of a conversation's turn, who speaks and what is said.
_TURN_FIELDS = {"messages": ("role", "content"), "conversations": ("from", "value")}
# Deadlines are not read, so that no time matters.
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)

Record = dict[str, Any]
Named = tuple[str, str | int]


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of what a row has beside its request, dotted where they are within an object.

    Left out, the usual ones are tried. Answers of `censored_from` tokens and more are censored.
    """

    answer: str | None = None
    tokens: str | None = None
    censored: str | None = None
    task: str | None = None
    censored_from: int | None = None

    def columns(self) -> set[str]:
        """What a table may call the columns that are needed of it."""
        given = (self.answer, self.tokens, self.censored, self.task)
        named = {part for name in given if name for part in (name, name.partition(".")[0])}
        usual = (*TOKENS_FIELDS, *ANSWER_FIELDS, CENSORED_FIELD, *FINISH_FIELDS)
        return {*_REQUEST, *usual, *named}


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A request and its answer, as a text or as a number of tokens, and under which name it was.

    `censored` is what the row itself says of that; None where it says nothing.
    """

    request: Request
    answer: str | int
    name: str
    censored: bool | None = None
    task: str = ""


def answered(record: Record, source: SourceLine, fields: Fields) -> Answered:
    """Raises LineError where the row is no request, or has no answer that teaches anything."""
    beside = _answer_beside(record, fields)
    given, said = _without_answer(record, is_needed=beside is None)
    if (found := beside or said) is None:
        raise LineError("line", "has no answer, neither as a text nor as a number of tokens")
    name, answer = found
    if isinstance(answer, str) and not answer.strip():
        raise LineError(name, "is empty: there is no answer")
    request = parse_row(given, source, _ANY_TIME)
    if isinstance(request, InvalidRequest):
        raise LineError(request.field, request.reason)
    if not request.sampling.is_length_free:
        name = "ignore_eos" if request.sampling.ignore_eos else "min_tokens"
        raise LineError(name, "is set: how long the answer is was not the model's to choose")
    task = None if fields.task is None else _looked_up(record, fields.task)
    censored = _is_censored(record, fields)
    return Answered(request, answer, name, censored, "" if task is None else str(task))


# --- Answers -------------------------------------------------------------------------------------


def _answer_beside(record: Record, fields: Fields) -> Named | None:
    """The answer that stands beside the request, and under which name."""
    if fields.tokens is not None:
        return fields.tokens, _tokens(fields.tokens, _looked_up(record, fields.tokens))
    if fields.answer is not None:
        return fields.answer, _text(fields.answer, _looked_up(record, fields.answer))
    for name in TOKENS_FIELDS:
        if record.get(name) is not None:
            return name, _tokens(name, record[name])
    for name in ANSWER_FIELDS:
        if record.get(name) is not None:
            return name, _text(name, record[name])
    return None


def _tokens(name: str, value: object) -> int:
    if value is None:
        raise LineError(name, "is missing")
    try:
        tokens = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        tokens = math.nan
    if isinstance(value, bool) or not tokens.is_integer():
        raise LineError(name, f"{shortened(value)} is no number of tokens")
    if not 1 <= tokens <= MAX_OUTPUT_TOKENS:
        raise LineError(name, f"must be from 1 to {MAX_OUTPUT_TOKENS}, not {tokens:.0f}")
    return int(tokens)


def _text(name: str, value: object) -> str:
    if value is None:
        raise LineError(name, "is missing")
    if not isinstance(value, str):
        raise LineError(name, f"must be text, not {kind(value)}")
    return value


def _is_censored(record: Record, fields: Fields) -> bool | None:
    if fields.censored is not None:
        return _flag(fields.censored, _looked_up(record, fields.censored))
    reasons = [record.get(name) for name in FINISH_FIELDS]
    if any(reason in CUT_REASONS for reason in reasons):
        return True
    try:
        said = _flag(CENSORED_FIELD, record.get(CENSORED_FIELD))
    except LineError:
        said = None  # a name that means something else here
    is_whole = any(reason in WHOLE_REASONS for reason in reasons)
    return False if said is None and is_whole else said


def _flag(name: str, value: object) -> bool | None:
    if value in (None, True, False):  # also 0 and 1
        return None if value is None else bool(value)
    raise LineError(name, f"must be true or false, not {shortened(value)}")


def _looked_up(record: Mapping[str, Any], name: str) -> Any:
    """What stands under a name, or under a dotted one within objects; None where nothing does."""
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first)
    return _looked_up(inner, rest) if dot and isinstance(inner, Mapping) else None


# --- Requests ------------------------------------------------------------------------------------


def _without_answer(record: Record, is_needed: bool) -> tuple[Record, Named | None]:
    """What of the record is the request, and the answer that its conversation holds.

    A conversation that ends with the assistant's turn has its answer there. In one that does not,
    the last that there is, if one `is_needed`.
    """
    given = {name: record[name] for name in _REQUEST if record.get(name) is not None}
    if "body" not in given:
        # Then they are no part of a batch line: many rows say where a text is from.
        given = {name: value for name, value in given.items() if name not in ("method", "url")}
    at = given
    if "body" in given:
        body = _object(given["body"], "body")
        at = given["body"] = {name: body[name] for name in _BODY if body.get(name) is not None}
    if "metadata" in at:
        at["metadata"] = _plain_metadata(at["metadata"])
    said = None
    for name in _TURN_FIELDS:
        if name in at:
            at[name], said = _cut(_list(at[name], name), name, is_needed)
    return given, said


def _cut(turns: list[Any], name: str, is_needed: bool) -> tuple[list[Any], Named | None]:
    speaker, words = _TURN_FIELDS[name]
    own = [i for i, turn in enumerate(turns) if _is_assistant(turn, speaker)]
    if not own or not (is_needed or own[-1] == len(turns) - 1):
        return turns, None
    answer = turns[own[-1]].get(words)
    if isinstance(answer, list):
        answer = "".join(str(part.get("text") or "") for part in answer if isinstance(part, dict))
    place = f"{name}[{own[-1]}].{words}"
    return turns[: own[-1]], (name, _text(place, answer))


def _is_assistant(turn: object, speaker: str) -> bool:
    who = turn.get(speaker) if isinstance(turn, dict) else None
    return isinstance(who, str) and ROLES.get(who) == "assistant"


def _plain_metadata(value: object) -> dict[str, Any]:
    """Those of a row's metadata that a request may have."""
    metadata = _object(value, "metadata")
    return {
        name: each
        for name, each in metadata.items()
        if isinstance(each, str | bool)
        or (isinstance(each, int | float) and -(2.0**63) <= each < 2.0**63)
    }


def _object(value: object, name: str) -> dict[str, Any]:
    value = _from_text(value)
    if not isinstance(value, dict):
        raise LineError(name, f"must be an object, not {kind(value)}")
    return value


def _list(value: object, name: str) -> list[Any]:
    value = _from_text(value)
    if not isinstance(value, list):
        raise LineError(name, f"must be a list, not {kind(value)}")
    return value


def _from_text(value: object) -> object:
    """Tables may hold their objects and lists as JSON in text."""
    return decoded(value.encode()) if isinstance(value, str) else value
