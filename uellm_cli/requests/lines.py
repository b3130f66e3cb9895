"""One line of a request file, or one row of a table, as a `Request` or as an `InvalidRequest`.

Two forms, told apart by their keys: a line of the OpenAI Batch API (`custom_id`, `method`, `url`,
`body`), and a plain line, which is such a body with its id beside it. Null means: not given. A
field that would change the answer and cannot be honoured is refused by name, never left unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from pydantic import ValidationError

from uellm_cli.documents import dotted_path, first_problem, suggestion
from uellm_cli.requests.slo import OwnPromise, own_slo
from uellm_cli.types import (
    SLO,
    Endpoint,
    InvalidRequest,
    Message,
    Request,
    SamplingParams,
    SourceLine,
)

# The id of a request whose line gives none, until `identity.Ids` has named it.
NO_ID = ""

MAX_ID_CHARS = 512
MAX_OUTPUT_TOKENS = 10_000_000
MAX_ARRIVAL_S = 10 * 365 * 86_400.0

ROLES = ("system", "user", "assistant")
# OpenAI's newer name for instructions that outrank the user's; chat templates know only "system".
_ROLE_ALIASES = {"developer": "system"}

# OpenAI fields that change no answer made here, whatever their value.
HARMLESS_FIELDS = frozenset(
    {
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)

# Fields of OpenAI and of servers like it that would change the answer, each with the values that
# ask for nothing. Other values are refused.
UNSUPPORTED_FIELDS: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": (),
    "repetition_penalty": (1, 1.0),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}

_BATCH_FIELDS = ("custom_id", "method", "url", "body")
_ID_FIELDS = ("id", "custom_id")
_WHOLE_NUMBERS = ("max_tokens", "max_completion_tokens", "top_k", "seed")
_MAX_TOKENS = Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)]
_STOP = Annotated[str, Meta(min_length=1)]


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    messages: Annotated[list[_Message], Meta(min_length=1)] | None = None
    max_tokens: _MAX_TOKENS | None = None
    max_completion_tokens: _MAX_TOKENS | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _STOP | Annotated[list[_STOP], Meta(max_length=4)] = msgspec.field(default_factory=list)
    slo: dict[str, Any] | None = None
    arrival_s: Annotated[float, Meta(ge=0, le=MAX_ARRIVAL_S)] = 0.0
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class _LineError(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def parse_line(line: bytes, source: SourceLine, started: datetime) -> Request | InvalidRequest:
    """A line of a request file; `started` is the run's start, which clock times are relative to.

    The request's `custom_id` is `NO_ID` where the line gives none.
    """
    try:
        record = _decode(line)
    except _LineError as refusal:
        return InvalidRequest(source, refusal.field, refusal.reason)
    return parse_record(record, source, started)


def parse_row(
    row: Mapping[str, Any], source: SourceLine, started: datetime
) -> Request | InvalidRequest:
    """As `parse_line`, for a row of a table; there, `body` may be JSON in text."""
    body = row.get("body")
    if not isinstance(body, str):
        return parse_record(row, source, started)
    try:
        return parse_record({**row, "body": _decode(body.encode())}, source, started)
    except _LineError as refusal:
        return InvalidRequest(source, "body", refusal.reason, _readable_id(row))


def parse_record(
    record: Mapping[str, Any], source: SourceLine, started: datetime
) -> Request | InvalidRequest:
    """As `parse_line`, for a line already decoded."""
    try:
        given = _without_nulls(record)
        if "body" in given or "url" in given or "method" in given:
            return _batch_request(given, source, started)
        return _plain_request(given, source, started)
    except _LineError as refusal:
        return InvalidRequest(source, refusal.field, refusal.reason, _readable_id(record))
    except RecursionError:
        return InvalidRequest(source, "line", _TOO_DEEP, _readable_id(record))


# --- Decoding ------------------------------------------------------------------------------------

_TOO_DEEP = "is nested too deeply"


def _decode(text: bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(text)
    except RecursionError:
        raise _LineError("line", _TOO_DEEP) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise _LineError("line", _why_not_json(text, str(error))) from None
    if not isinstance(data, dict):
        raise _LineError("line", f"holds {_kind(data)}, not an object with one request")
    return data


def _why_not_json(text: bytes, error: str) -> str:
    try:
        text.decode()
    except UnicodeDecodeError as undecodable:
        return f"is not UTF-8 at byte {undecodable.start}"
    if re.search(rb"[:\[,]\s*(NaN|[-+]?Infinity)\b", text):
        return "is not valid JSON: NaN and Infinity are no numbers there"
    reason = error.removeprefix("JSON is malformed: ").partition(" - at ")[0]
    return f"is not valid JSON: {reason.lower()}"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _readable_id(record: Mapping[str, Any]) -> str | None:
    """The id of a line that is otherwise invalid, where it has a usable one."""
    try:
        return _custom_id(record) or None
    except _LineError:
        return None


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a value")


# --- The two forms -------------------------------------------------------------------------------


def _batch_request(given: dict[str, Any], source: SourceLine, started: datetime) -> Request:
    for name in given:
        if name not in _BATCH_FIELDS:
            raise _LineError(name, f"is not a field of a batch line{_did_you_mean(name)}")
    if given.get("method") != "POST":
        raise _LineError("method", _wrong(given.get("method"), "POST"))
    endpoints = [endpoint.value for endpoint in Endpoint]
    if given.get("url") not in endpoints:
        raise _LineError("url", _wrong(given.get("url"), " or ".join(endpoints)))
    if not isinstance(given.get("body"), dict):
        raise _LineError("body", "is missing" if "body" not in given else "must be an object")
    endpoint = Endpoint(given["url"])
    chat = endpoint is Endpoint.CHAT
    own, other = ("messages", "prompt") if chat else ("prompt", "messages")
    if other in given["body"]:
        raise _LineError(f"body.{other}", f"is not a field of {endpoint.value}, which takes {own}")
    custom_id = _custom_id(given)
    try:
        return _request(custom_id, endpoint, given["body"], source, started)
    except _LineError as refusal:
        raise _LineError(f"body.{refusal.field}", refusal.reason) from None


def _plain_request(given: dict[str, Any], source: SourceLine, started: datetime) -> Request:
    if "prompt" not in given and "messages" not in given:
        raise _LineError("prompt", "is missing; give prompt or messages")
    body = {name: value for name, value in given.items() if name not in _ID_FIELDS}
    return _request(_custom_id(given), Endpoint.CHAT, body, source, started)


def _custom_id(record: Mapping[str, Any]) -> str:
    ids = {name: record[name] for name in _ID_FIELDS if record.get(name) is not None}
    if not ids:
        return NO_ID
    name, value = next(iter(ids.items()))
    if len(ids) > 1 and ids["id"] != ids["custom_id"]:
        raise _LineError("id", "differs from custom_id; give one of them")
    # Tables often number their rows.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _LineError(name, f"must be text, not {_kind(value)}")
    if not 1 <= len(value) <= MAX_ID_CHARS:
        raise _LineError(name, f"must have 1 to {MAX_ID_CHARS} characters, not {len(value)}")
    return value


def _wrong(value: object, allowed: str) -> str:
    if value is None:
        return f"is missing; it must be {allowed}"
    return f"must be {allowed}, not {_shortened(value)}"


def _shortened(value: object, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr, skipkeys=True)
    return text if len(text) <= limit else text[:limit] + "…"


# --- What is asked -------------------------------------------------------------------------------


def _request(
    custom_id: str,
    endpoint: Endpoint,
    given: dict[str, Any],
    source: SourceLine,
    started: datetime,
) -> Request:
    body = _body(given)
    text = _prompt(body.prompt)
    messages = tuple(_message(m, i) for i, m in enumerate(body.messages or ()))
    if text is None and not messages:
        raise _LineError("prompt" if endpoint is Endpoint.COMPLETION else "messages", "is missing")
    if text is not None and messages:
        raise _LineError("prompt", "stands beside messages; give one of them")
    if messages and not any(message.content.strip() for message in messages):
        raise _LineError("messages", "hold no text")
    if text is not None and endpoint is Endpoint.CHAT:
        messages, text = (Message("user", text),), None
    return Request(
        custom_id=custom_id,
        endpoint=endpoint,
        messages=messages,
        prompt=text or "",
        sampling=_sampling(body),
        slo=_slo(body.slo, started),
        arrival_s=body.arrival_s,
        metadata=_metadata(body.metadata),
        source=source,
    )


def _body(given: Mapping[str, Any]) -> _Body:
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if name in HARMLESS_FIELDS:
            continue
        if name in UNSUPPORTED_FIELDS:
            _refuse_unless_neutral(name, value)
        elif name not in _Body.__struct_fields__:
            hint = _did_you_mean(name) or "; fields of your own go under metadata"
            raise _LineError(str(name), f"is an unknown field{hint}")
        else:
            asked[name] = _whole(value) if name in _WHOLE_NUMBERS else value
    try:
        return msgspec.convert(asked, _Body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _refuse_unless_neutral(name: str, value: object) -> None:
    # 1 == True in Python, and not in JSON.
    if not any(type(value) is type(v) and value == v for v in UNSUPPORTED_FIELDS[name]):
        raise _LineError(name, f"{_shortened(value)} is not supported")


def _whole(value: object) -> object:
    """16.0 as 16: tables turn whole numbers into these where one is missing."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _did_you_mean(name: object) -> str:
    return suggestion(str(name), (*_Body.__struct_fields__, *_ID_FIELDS, *_BATCH_FIELDS))


def _prompt(prompt: str | None) -> str | None:
    if prompt is not None and not prompt.strip():
        raise _LineError("prompt", "is empty")
    return prompt


def _message(message: _Message, index: int) -> Message:
    role = _ROLE_ALIASES.get(message.role, message.role)
    if role not in ROLES:
        allowed = ", ".join((*ROLES, *_ROLE_ALIASES))
        reason = f"{_shortened(message.role)} is not one of {allowed}"
        raise _LineError(f"messages[{index}].role", reason)
    if isinstance(message.content, str):
        return Message(role, message.content)
    # Joined as vLLM joins them for templates that take plain text.
    at = f"messages[{index}].content"
    return Message(role, "\n".join(_part(p, f"{at}[{i}]") for i, p in enumerate(message.content)))


def _part(part: _Part, field: str) -> str:
    if part.type != "text":
        reason = f"parts of type {_shortened(part.type)} are not supported, only text"
        raise _LineError(f"{field}.type", reason)
    if part.text is None:
        raise _LineError(f"{field}.text", "is missing")
    return part.text


def _sampling(body: _Body) -> SamplingParams:
    caps = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(caps) > 1:
        raise _LineError("max_completion_tokens", "differs from max_tokens; give one of them")
    return SamplingParams(
        max_tokens=body.max_tokens or body.max_completion_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        # -1 and 0 both turn it off, by whom one asks.
        top_k=None if body.top_k is None else max(0, body.top_k),
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
    )


def _slo(spec: Mapping[str, Any] | None, started: datetime) -> SLO | None:
    if spec is None:
        return None
    try:
        return own_slo(spec, started)
    except ValidationError as error:
        location, reason = first_problem(error, OwnPromise)
        raise _LineError(dotted_path(("slo", *location)), reason) from None


def _metadata(given: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    for key, value in given.items():
        if not isinstance(value, str | int | float):
            reason = f"must be text, a number, true or false, not {_kind(value)}"
            raise _LineError(dotted_path(("metadata", key)), reason)
        if isinstance(value, float) and value - value != 0:  # NaN and the infinities
            raise _LineError(dotted_path(("metadata", key)), f"{value} is no number in JSON")
    return dict(given)


# --- msgspec's errors in plain words -------------------------------------------------------------

_MSGSPEC_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}


def _refusal(message: str) -> _LineError:
    """`Expected `int`, got `str` - at `$.max_tokens`` as a field and a reason."""
    text, _, place = message.partition(" - at ")
    path = re.search(r"\$\.?([^`]*)", place)
    field = path[1] if path else "line"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        return _LineError(f"{field}.{unknown[1]}", "is not supported")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return _LineError(f"{field}.{missing[1]}", "is missing")
    reason = re.sub(r"`([\w| ]+)`", _in_words, text.replace("Expected", "expected"))
    return _LineError(field, reason)


def _in_words(quoted: re.Match[str]) -> str:
    names = [name for name in quoted[1].split(" | ") if name != "null"]
    return " or ".join(_MSGSPEC_TYPES.get(name, name) for name in names) or "null"
