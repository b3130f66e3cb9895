"""ShareGPT's conversations as requests: `{"conversations": [{"from": "human", "value": "…"}, …]}`.

The request is the conversation up to its last human turn. The turns after it are the answer that
somebody else gave, and are left out. Files of this kind carry all sorts of keys, which say nothing
about the answer and are passed over; those that would change it are honoured or refused.
"""

from __future__ import annotations

from typing import Any

from uellm_cli.requests.fields import (
    BODY_FIELDS,
    HARMLESS_FIELDS,
    ID_FIELDS,
    UNSUPPORTED_FIELDS,
)
from uellm_cli.requests.wording import LineError, kind, shortened, slip_of

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}

# Beside the conversation, where they hold anything, they are a part of what the model was shown.
MEDIA_FIELDS = ("image", "images", "video", "videos", "audios")

_TEXT = ("prompt", "messages")
_OWN_FIELDS = frozenset((*ID_FIELDS, *BODY_FIELDS, *UNSUPPORTED_FIELDS)) - {*_TEXT}
_MEANT = BODY_FIELDS - {*_TEXT}


def as_plain(record: dict[str, Any]) -> dict[str, Any]:
    """A ShareGPT record, its nulls taken out, as a plain line's; raises LineError."""
    for name in _TEXT:
        if name in record:
            raise LineError(name, "stands beside conversations; give one of them")
    messages = _messages(record["conversations"], record.get("system"))
    plain = {name: value for name, value in record.items() if _is_asked(name, value)}
    return {**plain, "messages": messages}


def _messages(turns: object, system: object) -> list[dict[str, str]]:
    if not isinstance(turns, list):
        raise LineError("conversations", f"expected a list, got {kind(turns)}")
    messages = [_message(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
    human = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not human:
        raise LineError("conversations", "hold no turn of a human")
    messages = messages[: human[-1] + 1]
    if not any(message["content"].strip() for message in messages):
        raise LineError("conversations", "hold no text")
    return _with_system(messages, system)


def _message(turn: object, at: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise LineError(at, f"expected an object, got {kind(turn)}")
    for name in ("from", "value"):
        if name not in turn:
            raise LineError(f"{at}.{name}", "is missing")
        if not isinstance(turn[name], str):
            raise LineError(f"{at}.{name}", f"expected text, got {kind(turn[name])}")
    role = ROLES.get(turn["from"])
    if role is None:
        allowed = ", ".join(ROLES)
        raise LineError(f"{at}.from", f"{shortened(turn['from'])} is not one of {allowed}")
    return {"role": role, "content": turn["value"]}


def _with_system(messages: list[dict[str, str]], system: object) -> list[dict[str, str]]:
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise LineError("system", f"expected text, got {kind(system)}")
    first = {"role": "system", "content": system}
    if messages[0] == first:
        return messages
    if messages[0]["role"] == "system":
        raise LineError("system", "differs from the conversation's own system turn")
    return [first, *messages]


def _is_asked(name: str, value: object) -> bool:
    """Whether a key of the record is one of a request's own fields."""
    if name in MEDIA_FIELDS and value not in ("", []):
        raise LineError(name, f"{shortened(value)} is not supported")
    # Some write the tools as text, for lack of a better column.
    if name == "tools" and value in ("", "[]"):
        return False
    if name in _OWN_FIELDS:
        return True
    if name not in HARMLESS_FIELDS and (meant := slip_of(name, _MEANT)):
        raise LineError(name, f"is an unknown field; did you mean {meant!r}?")
    return False
