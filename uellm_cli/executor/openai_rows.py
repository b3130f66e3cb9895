"""Results as the lines of OpenAI's batch output and error files.

A run writes one a request and often twice, so that they are structs: those are built and encoded
in half the time that dicts take.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from uellm_cli.types import Endpoint, Result, RunInfo, TokenLogprob

# A row repeats its id four times; a longer one is stood for by its hash.
_LONG_ID_CHARS = 64


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str
    refusal: None = None


class _ChatChoice(msgspec.Struct, gc=False):
    index: int
    message: _Message
    logprobs: dict[str, Any] | None
    finish_reason: str


class _CompletionChoice(msgspec.Struct, gc=False):
    text: str
    index: int
    logprobs: dict[str, Any] | None
    finish_reason: str


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Body(msgspec.Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: Sequence[_ChatChoice | _CompletionChoice]
    usage: _Usage


class _Response(msgspec.Struct, gc=False):
    status_code: int
    request_id: str
    body: _Body


class OutputRow(msgspec.Struct, gc=False):
    """A line of `results.jsonl`."""

    id: str
    custom_id: str
    response: _Response
    error: None = None


class _Error(msgspec.Struct, gc=False, omit_defaults=True):
    """OpenAI's `code` and `message`; what an invalid line adds is where it is, and its field."""

    code: str | None = None
    message: str | None = None
    field: str | None = None
    file: str | None = None
    line: int | None = None


class ErrorRow(msgspec.Struct, gc=False):
    """A line of `errors.jsonl`."""

    id: str
    custom_id: str | None
    response: None
    error: _Error


class OpenAIRows:
    """Rows of one run."""

    def __init__(self, info: RunInfo) -> None:
        self._prefix = f"{info.run_id}-"
        self._started_s = info.started.timestamp()
        # Nobody shall take a simulated row for an answer.
        self._model = f"simulated:{info.model}" if info.simulated else info.model

    def row(self, result: Result) -> OutputRow | ErrorRow:
        return self.output_row(result) if result.failure is None else self.error_row(result)

    def output_row(self, result: Result) -> OutputRow:
        """The row of a result that has an answer."""
        own_id = self._own_id(result)
        chat = result.endpoint is not Endpoint.COMPLETION
        finished_s = result.timing.finished_s if result.timing else 0.0
        body = _Body(
            id=("chatcmpl-" if chat else "cmpl-") + own_id,
            object="chat.completion" if chat else "text_completion",
            created=int(self._started_s + finished_s),
            model=self._model,
            choices=_chat_choices(result) if chat else _completion_choices(result),
            usage=_Usage(
                result.prompt_tokens,
                result.output_tokens,
                result.prompt_tokens + result.output_tokens,
            ),
        )
        response = _Response(200, "req_" + own_id, body)
        return OutputRow("batch_req_" + own_id, result.custom_id, response)

    def error_row(self, result: Result) -> ErrorRow:
        """The row of a result that has none, or of an invalid line."""
        failure, source = result.failure, result.source
        error = _Error(
            code=failure.code if failure else None,
            message=failure.message if failure else None,
            field=failure.field if failure else None,
            file=source.file if source else None,
            line=source.line if source else None,
        )
        # A line without an id of its own goes by its place, which is no id to anybody else.
        own = None if source and result.custom_id == str(source) else result.custom_id
        return ErrorRow("batch_req_" + self._own_id(result), own, None, error)

    def _own_id(self, result: Result) -> str:
        # Made from what the row is about: writing a file anew from the journal changes nothing.
        name = result.custom_id
        if len(name) > _LONG_ID_CHARS:
            name = blake2b(name.encode(), digest_size=_LONG_ID_CHARS // 2).hexdigest()
        return self._prefix + name


def _chat_choices(result: Result) -> list[_ChatChoice]:
    return [
        _ChatChoice(
            index,
            _Message("assistant", answer.text),
            _chat_logprobs(answer.logprobs),
            answer.finish_reason,
        )
        for index, answer in enumerate(result.answers)
    ]


def _completion_choices(result: Result) -> list[_CompletionChoice]:
    return [
        _CompletionChoice(
            answer.text, index, _completion_logprobs(answer.logprobs), answer.finish_reason
        )
        for index, answer in enumerate(result.answers)
    ]


def _chat_logprobs(told: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if told is None:
        return None
    content = [
        {**_chat_token(token), "top_logprobs": [_chat_token(other) for other in token.top]}
        for token in told
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    # A special token is no text, and has no bytes.
    raw = list(token.raw) if token.raw else None
    return {"token": token.token, "logprob": token.logprob, "bytes": raw}


def _completion_logprobs(told: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "tokens": [_completion_token(token) for token in told],
        "token_logprobs": [token.logprob for token in told],
        "top_logprobs": [_top_logprobs(token) for token in told],
        "text_offset": _text_offsets(told),
    }


def _completion_token(token: TokenLogprob) -> str:
    """As OpenAI writes it there, where a token that is no whole character has no other field."""
    try:
        token.raw.decode()
    except UnicodeDecodeError:
        return f"bytes:{token.token}"
    return token.token


def _top_logprobs(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the one that was drawn though it be none of them."""
    top: dict[str, float] = {}
    for other in (*token.top, token):
        # Of tokens that are written alike, the likelier.
        top.setdefault(_completion_token(other), other.logprob)
    return top


def _text_offsets(told: Sequence[TokenLogprob]) -> list[int]:
    """Where in the answer's text each token begins, in characters; within one, where that does."""
    decoder = getincrementaldecoder("utf-8")("replace")
    offsets, offset = [], 0
    for token in told:
        offsets.append(offset)
        offset += len(decoder.decode(token.raw))
    return offsets
