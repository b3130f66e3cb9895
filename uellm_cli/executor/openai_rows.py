"""Results as the lines of OpenAI's batch output and error files."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from uellm_cli.types import Answer, Endpoint, Result, RunInfo


def output_row(result: Result, info: RunInfo) -> dict[str, Any]:
    """One line of `results.jsonl`, for a result that has an answer."""
    own_id = _row_id(result, info)
    finished_s = result.timing.finished_s if result.timing else 0.0
    chat = result.endpoint is not Endpoint.COMPLETION
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{own_id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int((info.started + timedelta(seconds=finished_s)).timestamp()),
        # Nobody shall take a simulated row for an answer.
        "model": f"simulated:{info.model}" if info.simulated else info.model,
        "choices": [
            {
                "index": index,
                **_content(answer, chat),
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(result.answers)
        ],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.output_tokens,
            "total_tokens": result.prompt_tokens + result.output_tokens,
        },
    }
    return {
        "id": f"batch_req_{own_id}",
        "custom_id": result.custom_id,
        "response": {"status_code": 200, "request_id": f"req_{own_id}", "body": body},
        "error": None,
    }


def _content(answer: Answer, chat: bool) -> dict[str, Any]:
    if chat:
        return {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
    return {"text": answer.text}


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
        "id": f"batch_req_{_row_id(result, info)}",
        "custom_id": result.custom_id,
        "response": None,
        "error": error,
    }


def _row_id(result: Result, info: RunInfo) -> str:
    # Made from what the row is about, so that rewriting a file from the journal changes nothing.
    content = f"{info.run_id}\0{result.custom_id}\0{result.source or ''}"
    return hashlib.sha256(content.encode()).hexdigest()[:24]
