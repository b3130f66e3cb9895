"""Results as the lines of OpenAI's batch output and error files.

A run makes one a request, so that they are plain dicts, built in a few microseconds.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from uellm_cli.types import Answer, Endpoint, Result, RunInfo, TokenLogprob


def output_row(result: Result, info: RunInfo) -> dict[str, Any]:
    """One line of `results.jsonl`, for a result that has an answer."""
    own_id = _row_id(result, info)
    chat = result.endpoint is not Endpoint.COMPLETION
    choice = _chat_choice if chat else _completion_choice
    finished_s = result.timing.finished_s if result.timing else 0.0
    body = {
        "id": ("chatcmpl-" if chat else "cmpl-") + own_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(info.started.timestamp() + finished_s),
        # Nobody shall take a simulated row for an answer.
        "model": f"simulated:{info.model}" if info.simulated else info.model,
        "choices": [choice(index, answer) for index, answer in enumerate(result.answers)],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.output_tokens,
            "total_tokens": result.prompt_tokens + result.output_tokens,
        },
    }
    return {
        "id": "batch_req_" + own_id,
        "custom_id": result.custom_id,
        "response": {"status_code": 200, "request_id": "req_" + own_id, "body": body},
        "error": None,
    }


def error_row(result: Result, info: RunInfo) -> dict[str, Any]:
    """One line of `errors.jsonl`; an invalid line's row names its file, line and field."""
    error: dict[str, Any] = {}
    if result.failure is not None:
        error = {"code": result.failure.code, "message": result.failure.message}
        if result.failure.field is not None:
            error["field"] = result.failure.field
    if result.source is not None:
        error |= {"file": result.source.file, "line": result.source.line}
    return {
        "id": "batch_req_" + _row_id(result, info),
        "custom_id": result.custom_id,
        "response": None,
        "error": error,
    }


def _row_id(result: Result, info: RunInfo) -> str:
    # Made from what the row is about, so that rewriting a file from the journal changes nothing.
    content = f"{info.run_id}\0{result.custom_id}\0{result.source or ''}"
    return blake2b(content.encode(), digest_size=12).hexdigest()


def _chat_choice(index: int, answer: Answer) -> dict[str, Any]:
    told = answer.logprobs
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": None if told is None else {"content": _chat_logprobs(told), "refusal": None},
        "finish_reason": answer.finish_reason,
    }


def _chat_logprobs(told: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {**_chat_token(token), "top_logprobs": [_chat_token(other) for other in token.top]}
        for token in told
    ]


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    # A special token is no text, and has no bytes.
    raw = list(token.raw) if token.raw else None
    return {"token": token.token, "logprob": token.logprob, "bytes": raw}


def _completion_choice(index: int, answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "index": index,
        "logprobs": None if answer.logprobs is None else _completion_logprobs(answer.logprobs),
        "finish_reason": answer.finish_reason,
    }


def _completion_logprobs(told: Sequence[TokenLogprob]) -> dict[str, Any]:
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
