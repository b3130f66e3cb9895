"""From the fields of a request, types and limits already checked, to a `Request`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from pydantic import ValidationError

from uellm_cli.documents import dotted_path, first_problem
from uellm_cli.requests.fields import (
    MAX_BIAS,
    Body,
    GivenMessage,
    Part,
    QuickBody,
    QuickMessage,
    ResponseFormat,
)
from uellm_cli.requests.slo import OwnPromise, own_slo
from uellm_cli.requests.wording import LineError, kind, shortened
from uellm_cli.types import SLO, Endpoint, Message, Request, SamplingParams, SourceLine

ROLES = ("system", "user", "assistant")
# OpenAI's newer name for instructions that outrank the user's; chat templates know only "system".
_ROLE_ALIASES = {"developer": "system"}

MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_BYTES = 1024 * 1024

_TOKEN_ID = re.compile(r"0|[1-9]\d{0,9}", re.ASCII)

Metadata = Mapping[str, str | int | float | bool | None]


def request_of(
    custom_id: str,
    endpoint: Endpoint,
    body: Body | QuickBody,
    slo: SLO | None,
    metadata: Metadata | None,
    source: SourceLine,
) -> Request:
    """The request that `body` asks for; raises LineError with a field of the body."""
    text = body.prompt
    if body.messages is None:
        if text is None:
            own = "prompt" if endpoint is Endpoint.COMPLETION else "messages"
            raise LineError(own, "is missing")
        if not text or text.isspace():
            raise LineError("prompt", "is empty")
        messages: tuple[Message, ...] = ()
        if endpoint is Endpoint.CHAT:
            messages, text = (Message("user", text),), ""
    else:
        if text is not None:
            raise LineError("prompt", "stands beside messages; give one of them")
        messages, text = _messages(body.messages), ""
    return Request(
        custom_id,
        endpoint,
        messages,
        text,
        _sampling(body, endpoint),
        slo,
        body.arrival_s or 0.0,
        metadata or {},
        source,
    )


# --- Text ----------------------------------------------------------------------------------------


def _messages(given: Sequence[GivenMessage | QuickMessage]) -> tuple[Message, ...]:
    messages = tuple([_message(message, i) for i, message in enumerate(given)])
    if all(not message.content or message.content.isspace() for message in messages):
        raise LineError("messages", "hold no text")
    return messages


def _message(message: GivenMessage | QuickMessage, index: int) -> Message:
    role = message.role
    if role not in ROLES:
        if role not in _ROLE_ALIASES:
            allowed = ", ".join((*ROLES, *_ROLE_ALIASES))
            reason = f"{shortened(role)} is not one of {allowed}"
            raise LineError(f"messages[{index}].role", reason)
        role = _ROLE_ALIASES[role]
    content = message.content
    if isinstance(content, str):
        return Message(role, content)
    # Joined as vLLM joins them for templates that take plain text.
    at = f"messages[{index}].content"
    return Message(role, "\n".join(_part(p, f"{at}[{i}]") for i, p in enumerate(content)))


def _part(part: Part, field: str) -> str:
    if part.type != "text":
        reason = f"parts of type {shortened(part.type)} are not supported, only text"
        raise LineError(f"{field}.type", reason)
    if part.text is None:
        raise LineError(f"{field}.text", "is missing")
    return part.text


# --- Sampling ------------------------------------------------------------------------------------


def _sampling(body: Body | QuickBody, endpoint: Endpoint) -> SamplingParams:
    cap, newer_cap = body.max_tokens, body.max_completion_tokens
    if cap is not None and newer_cap is not None and cap != newer_cap:
        raise LineError("max_completion_tokens", "differs from max_tokens; give one of them")
    cap = newer_cap if cap is None else cap
    floor = body.min_tokens
    if floor is not None and cap is not None and floor > cap:
        raise LineError("min_tokens", f"must be at most max_tokens, which is {cap}, not {floor}")
    stop, top_k = body.stop, body.top_k
    asks_logprobs = body.logprobs is not None or body.top_logprobs is not None
    return SamplingParams(
        cap,
        body.temperature,
        body.top_p,
        # -1 and 0 both turn it off, by whom one asks.
        None if top_k is None else max(0, top_k),
        body.seed,
        () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        1 if body.n is None else body.n,
        _logprobs(body, endpoint) if asks_logprobs else None,
        () if body.logit_bias is None else _logit_bias(body.logit_bias),
        None if body.response_format is None else _json_schema(body.response_format),
        body.min_p,
        body.repetition_penalty,
        body.presence_penalty or _NOTHING.presence_penalty,
        body.frequency_penalty or _NOTHING.frequency_penalty,
        tuple(sorted(set(body.stop_token_ids))) if body.stop_token_ids else (),
        body.ignore_eos or False,
        floor or 0,
    )


# Keys leave out what is a default, and to msgspec only the very default is one (`keys.py`).
_NOTHING = SamplingParams()


def _logprobs(body: Body | QuickBody, endpoint: Endpoint) -> int | None:
    asked, top = body.logprobs, body.top_logprobs
    if endpoint is Endpoint.COMPLETION:
        if top is not None:
            raise LineError("top_logprobs", f"is not a field of {endpoint}, which takes logprobs")
        if isinstance(asked, bool):
            raise LineError("logprobs", f"must be a whole number for {endpoint}, not true or false")
        return asked
    if asked is not None and not isinstance(asked, bool):
        raise LineError("logprobs", "must be true or false; the number goes under top_logprobs")
    if asked:
        return top or 0
    if top:
        raise LineError("top_logprobs", "needs logprobs to be true")
    return None


def _logit_bias(given: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    biases: list[tuple[int, float]] = []
    for token, bias in given.items():
        where = dotted_path(("logit_bias", str(token)))
        if not isinstance(token, str) or not _TOKEN_ID.fullmatch(token):
            raise LineError(where, f"{shortened(token)} is no id of a token")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise LineError(where, f"must be a number, not {kind(bias)}")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise LineError(where, f"must be from {-MAX_BIAS} to {MAX_BIAS}, not {bias}")
        biases.append((int(token), float(bias)))
    return tuple(sorted(biases))


def _json_schema(asked: ResponseFormat) -> str | None:
    """The JSON Schema that an answer has to follow, as compact text; None for plain text."""
    if asked.type not in ("text", "json_object", "json_schema"):
        reason = f"{shortened(asked.type)} is not one of text, json_object, json_schema"
        raise LineError("response_format.type", reason)
    at = "response_format.json_schema"
    if asked.type != "json_schema":
        if asked.json_schema is not None:
            raise LineError(at, f"stands beside type {shortened(asked.type)}")
        return None if asked.type == "text" else '{"type":"object"}'
    if asked.json_schema is None:
        raise LineError(at, "is missing")
    if problem := _why_no_schema(asked.json_schema.schema):
        raise LineError(f"{at}.schema", problem)
    try:
        text = msgspec.json.encode(asked.json_schema.schema).decode()
    except (TypeError, ValueError) as error:
        raise LineError(f"{at}.schema", f"cannot be written as JSON: {error}") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise LineError(f"{at}.schema", f"is larger than {MAX_SCHEMA_BYTES // 2**20} MiB")
    return text


def _why_no_schema(schema: dict[str, Any]) -> str | None:
    pending: list[tuple[Any, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_SCHEMA_DEPTH:
            return f"is nested deeper than {MAX_SCHEMA_DEPTH} levels"
        if isinstance(value, dict):
            pending += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, list):
            pending += [(part, depth + 1) for part in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            return "holds a whole number beyond 64 bits"
        elif isinstance(value, float) and value - value != 0:
            return f"holds {value}, which is no number in JSON"
        elif not isinstance(value, str | int | float | None):
            return f"holds {kind(value)} that JSON does not have"
    return None


# --- Promises and metadata -----------------------------------------------------------------------


def slo_of(spec: Mapping[str, Any] | None, started: datetime) -> SLO | None:
    """A request's own promise for a run that began at `started`; raises LineError."""
    if spec is None:
        return None
    try:
        return own_slo(spec, started)
    except ValidationError as error:
        location, reason = first_problem(error, OwnPromise)
        raise LineError(dotted_path(("slo", *location)), reason) from None


# A file's requests promise a few things, over and over; what is longer is not worth its memory.
MAX_KEPT_SLO_BYTES = 1024


@lru_cache(maxsize=256)
def slo_of_text(text: bytes, started: datetime) -> SLO | None:
    """As `slo_of`, for the promise as JSON; raises msgspec's errors too, of which none is kept."""
    return slo_of(msgspec.json.decode(text, type=dict[str, Any] | None), started)


def check_metadata(given: Mapping[str, Any]) -> None:
    """Raises LineError unless all values are text, true, false, or numbers that JSON has."""
    for key, value in given.items():
        where = ("metadata", str(key))
        if not isinstance(value, str | int | float):
            reason = f"must be text, a number, true or false, not {kind(value)}"
            raise LineError(dotted_path(where), reason)
        if isinstance(value, float) and value - value != 0:  # NaN and the infinities
            raise LineError(dotted_path(where), f"{value} is no number in JSON")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise LineError(dotted_path(where), "is a whole number beyond 64 bits")
