"""What predictors read of a request."""

from __future__ import annotations

from collections.abc import Sequence

from uellm_cli.types import Request

# Of a longer text, the beginning and the end are read: instructions stand in either.
HEAD_CHARS = 2000
TAIL_CHARS = 2000


def texts_of(requests: Sequence[Request]) -> list[str]:
    """The requests' texts, messages joined by newlines, the middle of long ones left out."""
    return [_shortened(_text(request)) for request in requests]


def _text(request: Request) -> str:
    if not request.messages:
        return request.prompt
    if len(request.messages) == 1:
        return request.messages[0].content
    return "\n".join(message.content for message in request.messages)


def _shortened(text: str) -> str:
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
