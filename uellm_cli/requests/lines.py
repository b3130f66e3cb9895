"""One line of a request file, or one row of a table, as a `Request` or as an `InvalidRequest`.

Three forms, told apart by their keys: a line of the OpenAI Batch API (`custom_id`, `method`, `url`,
`body`), a plain line, which is such a body with its id beside it, and ShareGPT. Null means: not
given; of a key that is there twice the last one counts. A field that would change the answer and
cannot be honoured is refused by name, never left unread.

Two ways lead from a line to a request. The fast one decodes the usual lines straight into structs
and knows nothing of reasons. What it does not take goes the careful way, which decodes into
dictionaries and can say what is wrong. The fast way takes nothing that the careful one refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from uellm_cli.requests import sharegpt
from uellm_cli.requests.asked import (
    MAX_KEPT_SLO_BYTES,
    check_metadata,
    request_of,
    slo_of,
    slo_of_text,
)
from uellm_cli.requests.decoding import TOO_DEEP, decoded, without_nulls
from uellm_cli.requests.fields import (
    BATCH_FIELDS,
    BODY_FIELDS,
    HARMLESS_FIELDS,
    ID_FIELDS,
    MAX_ID_CHARS,
    PLAIN_FIELDS,
    UNSUPPORTED_FIELDS,
    WHOLE_NUMBERS,
    Body,
    QuickBatchLine,
    QuickLine,
)
from uellm_cli.requests.wording import (
    LineError,
    did_you_mean,
    invalid,
    kind,
    refusal_of,
    shortened,
    slip_of,
)
from uellm_cli.types import Endpoint, InvalidRequest, Request, SourceLine

# The id of a request whose line gives none, until `ids.Ids` has named it.
NO_ID = ""

_PLAIN_TEXT = frozenset({"prompt", "messages", "conversations"})

# Columns of a table that may hold their objects and lists as JSON in text.
_JSON_COLUMNS = (
    "body",
    "messages",
    "conversations",
    "logit_bias",
    "metadata",
    "response_format",
    "slo",
    "stop_token_ids",
)


def parse_line(line: bytes, source: SourceLine, started: datetime) -> Request | InvalidRequest:
    """A line of a request file; `started` is the run's start, which clock times are relative to.

    The request's `custom_id` is `NO_ID` where the line gives none.
    """
    return quick_request(line, source, started) or parse_carefully(line, source, started)


def parse_carefully(line: bytes, source: SourceLine, started: datetime) -> Request | InvalidRequest:
    """As `parse_line`, and with the reason where the line is no request."""
    try:
        record = _decode(line)
    except LineError as refusal:
        return invalid(source, refusal)
    return _parse_record(record, source, started)


def parse_row(
    row: Mapping[str, Any], source: SourceLine, started: datetime
) -> Request | InvalidRequest:
    """As `parse_line`, for a row of a table; lists and objects may be JSON in text there."""
    record = dict(row)
    for name in _JSON_COLUMNS:
        value = record.get(name)
        try:
            if isinstance(value, str):
                record[name] = decoded(value.encode())
            elif name in ("body", "response_format"):
                # The structs of a column all have the same keys, null where there is nothing.
                record[name] = without_nulls(value)
        except LineError as refusal:
            return invalid(source, LineError(name, refusal.reason), _readable_id(row))
    return _parse_record(record, source, started)


# --- The fast way --------------------------------------------------------------------------------

_decode_plain_line = msgspec.json.Decoder(QuickLine).decode
_decode_batch_line = msgspec.json.Decoder(QuickBatchLine).decode


def quick_request(line: bytes, source: SourceLine, started: datetime) -> Request | None:
    """The request of a usual line; None where only the careful way can tell."""
    try:
        if b'"body"' in line:
            batch = _decode_batch_line(line)
            body, endpoint, custom_id = batch.body, batch.url, batch.custom_id
            other = body.prompt if endpoint is Endpoint.CHAT else body.messages
            if other is not None:
                return None
        else:
            plain = _decode_plain_line(line)
            body, endpoint, custom_id = plain, Endpoint.CHAT, plain.custom_id
            if custom_id is None:
                custom_id = plain.id
            elif plain.id is not None:
                return None
        if custom_id is None:
            custom_id = NO_ID
        elif isinstance(custom_id, int):
            custom_id = str(custom_id)
        elif not custom_id.isprintable():
            return None
        if body.stream:
            return None
        slo = None
        if promise := bytes(body.slo):
            if len(promise) > MAX_KEPT_SLO_BYTES:
                return None
            slo = slo_of_text(promise, started)
        return request_of(custom_id, endpoint, body, slo, body.metadata, source)
    except (LineError, msgspec.MsgspecError, ValueError, RecursionError):
        return None


# --- The careful way -----------------------------------------------------------------------------


def _parse_record(
    record: Mapping[str, Any], source: SourceLine, started: datetime
) -> Request | InvalidRequest:
    try:
        given = _given(record)
        if "conversations" in given and "body" not in given:
            given = sharegpt.as_plain(given)
        elif "body" in given or "url" in given or "method" in given:
            return _batch_request(given, source, started)
        return _plain_request(given, source, started)
    except LineError as refusal:
        return invalid(source, refusal, _readable_id(record))
    except RecursionError:
        return invalid(source, LineError("line", TOO_DEEP), _readable_id(record))


def _decode(text: bytes) -> dict[str, Any]:
    data = decoded(text)
    if not isinstance(data, dict):
        raise LineError("line", f"holds {kind(data)}, not an object with one request")
    return data


def _given(record: Mapping[str, Any], in_body: bool = False) -> dict[str, Any]:
    """The record without its nulls, save those in a JSON Schema, where null is a value."""
    given: dict[str, Any] = {}
    for name, value in record.items():
        if value is None:
            continue
        if name == "response_format":
            given[name] = value
        elif name == "body" and isinstance(value, dict) and not in_body:
            given[name] = _given(value, in_body=True)
        else:
            given[name] = without_nulls(value)
    return given


def _readable_id(record: Mapping[str, Any]) -> str | None:
    """The id of a line that is otherwise invalid, where it has a usable one."""
    try:
        return _custom_id(record) or None
    except LineError:
        return None


def _batch_request(given: dict[str, Any], source: SourceLine, started: datetime) -> Request:
    for name in given:
        if name not in BATCH_FIELDS:
            hint = did_you_mean(name, BATCH_FIELDS)
            raise LineError(name, f"is not a field of a batch line{hint}")
    if given.get("method") != "POST":
        raise LineError("method", _wrong(given.get("method"), "POST"))
    endpoints = [endpoint.value for endpoint in Endpoint]
    if given.get("url") not in endpoints:
        raise LineError("url", _wrong(given.get("url"), " or ".join(endpoints)))
    if not isinstance(given.get("body"), dict):
        raise LineError("body", "is missing" if "body" not in given else "must be an object")
    endpoint = Endpoint(given["url"])
    chat = endpoint is Endpoint.CHAT
    own, other = ("messages", "prompt") if chat else ("prompt", "messages")
    if other in given["body"]:
        raise LineError(f"body.{other}", f"is not a field of {endpoint.value}, which takes {own}")
    custom_id = _custom_id(given)
    try:
        return _request(custom_id, endpoint, given["body"], source, started)
    except LineError as refusal:
        raise LineError(f"body.{refusal.field}", refusal.reason) from None


def _plain_request(given: dict[str, Any], source: SourceLine, started: datetime) -> Request:
    if "prompt" not in given and "messages" not in given:
        for name in given:
            if meant := slip_of(name, _PLAIN_TEXT):
                raise LineError(name, f"is an unknown field; did you mean {meant!r}?")
        raise LineError("prompt", "is missing; give prompt or messages")
    body = {name: value for name, value in given.items() if name not in ID_FIELDS}
    return _request(_custom_id(given), Endpoint.CHAT, body, source, started)


def _custom_id(record: Mapping[str, Any]) -> str:
    ids = {name: record[name] for name in ID_FIELDS if record.get(name) is not None}
    if not ids:
        return NO_ID
    name, value = next(iter(ids.items()))
    if len(ids) > 1 and ids["id"] != ids["custom_id"]:
        raise LineError("id", "differs from custom_id; give one of them")
    # Tables often number their rows.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise LineError(name, f"must be text, not {kind(value)}")
    if not 1 <= len(value) <= MAX_ID_CHARS:
        raise LineError(name, f"must have 1 to {MAX_ID_CHARS} characters, not {len(value)}")
    return value


def _wrong(value: object, allowed: str) -> str:
    if value is None:
        return f"is missing; it must be {allowed}"
    return f"must be {allowed}, not {shortened(value)}"


def _request(
    custom_id: str,
    endpoint: Endpoint,
    given: Mapping[str, Any],
    source: SourceLine,
    started: datetime,
) -> Request:
    body = _body(given)
    if body.metadata is not None:
        check_metadata(body.metadata)
    return request_of(custom_id, endpoint, body, slo_of(body.slo, started), body.metadata, source)


def _body(given: Mapping[str, Any]) -> Body:
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if name in HARMLESS_FIELDS:
            continue
        if name in UNSUPPORTED_FIELDS:
            _refuse_unless_neutral(name, value)
        elif name not in BODY_FIELDS:
            hint = did_you_mean(name, PLAIN_FIELDS)
            raise LineError(
                name, f"is an unknown field{hint or '; fields of your own go under metadata'}"
            )
        elif isinstance(value, float):
            asked[name] = _number(name, value)
        else:
            asked[name] = value
    try:
        return msgspec.convert(asked, Body)
    except msgspec.ValidationError as error:
        raise refusal_of(str(error)) from None


def _refuse_unless_neutral(name: str, value: object) -> None:
    # 1 == True in Python, and not in JSON.
    if not any(type(value) is type(v) and value == v for v in UNSUPPORTED_FIELDS[name]):
        raise LineError(name, f"{shortened(value)} is not supported")


def _number(name: str, value: float) -> float | int:
    if not math.isfinite(value):  # only a table holds such
        raise LineError(name, f"{value} is no number in JSON")
    return int(value) if name in WHOLE_NUMBERS and value.is_integer() else value
