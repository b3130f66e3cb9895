"""What the tests of request files have in common: lines, files, and what is read of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from uellm_cli.errors import RequestFileError
from uellm_cli.requests import read_requests
from uellm_cli.requests.lines import parse_line
from uellm_cli.types import InvalidRequest, Request, SourceLine

STARTED = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
SOURCE = SourceLine("requests.jsonl", 7)
HI = [{"role": "user", "content": "hi"}]


def batch(body: object, **changes: object) -> dict[str, object]:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {key: value for key, value in {**line, **changes}.items() if value != "absent"}


def chat(**body: object) -> dict[str, object]:
    return batch({"messages": HI, **body})


def completion(**body: object) -> dict[str, object]:
    return batch({"prompt": "hi", **body}, url="/v1/completions")


def plain(**fields: object) -> dict[str, object]:
    return {"prompt": "hi", **fields}


def sharegpt(*turns: tuple[str, object], **fields: object) -> dict[str, object]:
    return {"conversations": [{"from": who, "value": said} for who, said in turns], **fields}


def schema(of: object, **changes: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": of, **changes}}


def parsed(line: object) -> Request | InvalidRequest:
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse_line(text, SOURCE, STARTED)


def valid(line: object) -> Request:
    request = parsed(line)
    assert isinstance(request, Request), request
    return request


def written(path: Path, lines: Sequence[object]) -> Path:
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return path


def rows(*paths: Path | str, **options: Any) -> list[Request | InvalidRequest]:
    return list(read_requests([str(path) for path in paths], started=STARTED, **options))


def invalid_rows(*paths: Path | str, **options: Any) -> list[tuple[int, str, str]]:
    """Line, field and reason of each row that is no request."""
    found = rows(*paths, **options)
    return [(r.source.line, r.field, r.reason) for r in found if isinstance(r, InvalidRequest)]


def error_of(*paths: Path | str, **options: Any) -> str:
    with pytest.raises(RequestFileError) as caught:
        rows(*paths, **options)
    return str(caught.value)
