"""Request files: what a line means, what is refused and why, and what a damaged file leads to."""

# ruff: noqa: E501 (tables of whole messages are read best with one case a line)

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from uellm_cli.errors import RequestFileError
from uellm_cli.requests import file_sha256, files, read_all, read_requests, request_hash
from uellm_cli.requests.lines import HARMLESS_FIELDS, UNSUPPORTED_FIELDS, parse_line
from uellm_cli.types import (
    SLO,
    Anchor,
    Endpoint,
    InvalidRequest,
    Message,
    Request,
    SamplingParams,
    SourceLine,
)

STARTED = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
SOURCE = SourceLine("requests.jsonl", 7)
HI = [{"role": "user", "content": "hi"}]


def batch(body: object, **changes: object) -> dict[str, object]:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {key: value for key, value in {**line, **changes}.items() if value != "absent"}


def chat(**body: object) -> dict[str, object]:
    return batch({"messages": HI, **body})


def plain(**fields: object) -> dict[str, object]:
    return {"prompt": "hi", **fields}


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


def error_of(*paths: Path | str, **options: Any) -> str:
    with pytest.raises(RequestFileError) as caught:
        rows(*paths, **options)
    return str(caught.value)


# --- What a line means ---------------------------------------------------------------------------


def test_a_batch_line_is_read_whole() -> None:
    body = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        "max_completion_tokens": 5,
        "temperature": 0,
        "top_p": 1,
        "top_k": 40,
        "seed": 7,
        "stop": ["x", "y"],
        "slo": {"name": "gold", "deadline": "1m", "ttft": 2, "tpot": "50ms", "weight": 3},
        "arrival_s": 1.5,
        "metadata": {"tier": "gold", "n": 1, "x": 0.5, "b": True},
    }  # fmt: skip
    assert parsed(batch(body)) == Request(
        custom_id="a",
        endpoint=Endpoint.CHAT,
        messages=(Message("system", "Be brief."), Message("user", "a\nb")),
        sampling=SamplingParams(5, 0.0, 1.0, 40, 7, ("x", "y")),
        slo=SLO("gold", 60.0, Anchor.REQUEST, 2.0, 0.05, 3.0),
        arrival_s=1.5,
        metadata={"tier": "gold", "n": 1, "x": 0.5, "b": True},
        source=SOURCE,
    )


def test_a_completion_line_keeps_its_prompt_as_it_is() -> None:
    request = valid(batch({"prompt": " Once ", "stop": "\n"}, url="/v1/completions"))
    assert (request.endpoint, request.prompt, request.messages) == (
        Endpoint.COMPLETION,
        " Once ",
        (),
    )
    assert request.sampling == SamplingParams(stop=("\n",))


def test_a_plain_prompt_is_one_message_of_the_user() -> None:
    assert valid(plain(id=7)) == valid({"messages": HI, "custom_id": "7"})
    assert valid(plain()).slo is None


def test_a_clock_time_of_a_request_counts_from_the_runs_start() -> None:
    slo = valid(plain(slo={"deadline": "09:00"})).slo
    assert slo == SLO("own", 3600.0, Anchor.RUN)


def test_null_means_not_given() -> None:
    nothing = dict.fromkeys(
        [
            "id",
            "messages",
            "max_tokens",
            "temperature",
            "top_p",
            "seed",
            "stop",
            "slo",
            "n",
            "tools",
        ]
    )
    assert valid(plain(**nothing, metadata={"a": None})) == valid(plain())
    assert valid({"messages": [{"role": "user", "content": "hi", "tool_calls": None}]}) == valid(
        plain()
    )


def test_whole_numbers_may_be_written_with_a_point() -> None:
    assert valid(plain(max_tokens=16.0)).sampling.max_tokens == 16


@pytest.mark.parametrize("field", sorted(HARMLESS_FIELDS))
def test_a_field_that_changes_no_answer_is_accepted(field: str) -> None:
    assert valid(chat(**{field: "x"})) == valid(chat())


@pytest.mark.parametrize(
    ("field", "neutral"), [(f, v) for f, values in UNSUPPORTED_FIELDS.items() for v in values]
)
def test_an_unsupported_field_is_accepted_where_it_asks_for_nothing(
    field: str, neutral: object
) -> None:
    assert valid(chat(**{field: neutral})) == valid(chat())


@pytest.mark.parametrize("field", sorted(UNSUPPORTED_FIELDS))
def test_an_unsupported_field_is_refused_by_name_where_it_asks_for_something(field: str) -> None:
    refused = parsed(chat(**{field: ["something"]}))
    assert refused == InvalidRequest(SOURCE, f"body.{field}", '["something"] is not supported', "a")


# --- What is refused -----------------------------------------------------------------------------

HOSTILE: list[tuple[object, str, str]] = [
    (b"{", "line", "is not valid JSON: input data was truncated"),
    (b"{'prompt': 'x'}", "line", "is not valid JSON: object keys must be strings (byte 1)"),
    (b'{"prompt": "x"} x', "line", "is not valid JSON: trailing characters (byte 17)"),
    (b'{"prompt": "\xff"}', "line", "is not UTF-8 at byte 12"),
    (b'{"prompt": "x", "top_p": NaN}', "line", "is not valid JSON: NaN and Infinity are no numbers there"),
    (b'{"prompt": "x", "top_p": -Infinity}', "line", "is not valid JSON: NaN and Infinity are no numbers there"),
    (b'{"prompt": "x", "top_p": 1e999}', "line", "is not valid JSON: number out of range"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "line", "is not valid JSON: integer value out of range"),
    (b"[" * 100_000, "line", "is nested too deeply"),
    (b'{"user":' * 100_000, "line", "is nested too deeply"),
    (b'{"prompt":"x","user":' + b"[" * 980 + b"]" * 980 + b"}", "line", "is nested too deeply"),
    (b'{"prompt":"x","user":' + b"[" * 700 + b"]" * 700 + b"}", "line", "is nested too deeply"),
    ([plain()], "line", "holds a list, not an object with one request"),
    (5, "line", "holds a number, not an object with one request"),
    ("hi", "line", "holds text, not an object with one request"),
    (None, "line", "holds null, not an object with one request"),
    ({}, "prompt", "is missing; give prompt or messages"),
    ({"prompt": None}, "prompt", "is missing; give prompt or messages"),
    (plain(prompt=""), "prompt", "is empty"),
    (plain(prompt=" \n"), "prompt", "is empty"),
    (plain(prompt=5), "prompt", "expected text, got a whole number"),
    (plain(prompt=["a", "b"]), "prompt", "expected text, got a list"),
    (plain(messages=HI), "prompt", "stands beside messages; give one of them"),
    (plain(max_token=5), "max_token", "is an unknown field; did you mean 'max_tokens'?"),
    (plain(colour="red"), "colour", "is an unknown field; fields of your own go under metadata"),
    (plain(id=""), "id", "must have 1 to 512 characters, not 0"),
    (plain(id="x" * 513), "id", "must have 1 to 512 characters, not 513"),
    (plain(id=[1]), "id", "must be text, not a list"),
    (plain(id=True), "id", "must be text, not true or false"),
    (plain(id="a", custom_id="b"), "id", "differs from custom_id; give one of them"),
    (plain(max_tokens=0), "max_tokens", "expected a whole number >= 1"),
    (plain(max_tokens=-1), "max_tokens", "expected a whole number >= 1"),
    (plain(max_tokens=10**9), "max_tokens", "expected a whole number <= 10000000"),
    (plain(max_tokens=10**18), "max_tokens", "expected a whole number <= 10000000"),
    (plain(max_tokens=1.5), "max_tokens", "expected a whole number, got a number"),
    (plain(max_tokens="5"), "max_tokens", "expected a whole number, got text"),
    (plain(max_tokens=True), "max_tokens", "expected a whole number, got true or false"),
    (plain(max_tokens=5, max_completion_tokens=6), "max_completion_tokens", "differs from max_tokens; give one of them"),
    (plain(temperature=-0.1), "temperature", "expected a number >= 0.0"),
    (plain(temperature=2.1), "temperature", "expected a number <= 2.0"),
    (plain(temperature="hot"), "temperature", "expected a number, got text"),
    (plain(top_p=0), "top_p", "expected a number > 0.0"),
    (plain(top_p=1.1), "top_p", "expected a number <= 1.0"),
    (plain(top_k=-2), "top_k", "expected a whole number >= -1"),
    (plain(seed=-(2**64)), "seed", "expected a whole number >= -9223372036854775808"),
    (plain(seed=2**64), "seed", "expected a whole number <= 9223372036854775807"),
    (plain(stop=""), "stop", "expected text of length >= 1"),
    (plain(stop=["a", ""]), "stop[1]", "expected text of length >= 1"),
    (plain(stop=["a"] * 5), "stop", "expected a list of length <= 4"),
    (plain(stop=[None]), "stop[0]", "expected text, got null"),
    (plain(arrival_s=-1), "arrival_s", "expected a number >= 0.0"),
    (plain(arrival_s=1e300), "arrival_s", "expected a number <= 315360000.0"),
    (plain(metadata=[]), "metadata", "expected an object, got a list"),
    (plain(metadata={"a": {}}), "metadata.a", "must be text, a number, true or false, not an object"),
    (plain(metadata={"a b": [1]}), "metadata.'a b'", "must be text, a number, true or false, not a list"),
    (plain(slo=5), "slo", "expected an object, got a whole number"),
    (plain(slo={}), "slo", "promises nothing; give a deadline, ttft or tpot"),
    (plain(slo={"name": "gold"}), "slo", "promises nothing; give a deadline, ttft or tpot"),
    (plain(slo={"deadlin": 5}), "slo.deadlin", "unknown key 'deadlin'; did you mean 'deadline'? known here: deadline, ttft, tpot, weight, name"),
    (plain(slo={"deadline": "25:00"}), "slo.deadline", "'25:00' is no clock time; write 09:00 or 09:00:30"),
    (plain(slo={"ttft": 0}), "slo.ttft", "a duration must be more than zero and finite, not 0"),
    (plain(slo={"ttft": 1, "weight": 0}), "slo.weight", "should be greater than 0, not 0"),
    ({"messages": []}, "messages", "expected a list of length >= 1"),
    ({"messages": "hi"}, "messages", "expected a list, got text"),
    ({"messages": [None]}, "messages[0]", "expected an object, got null"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages", "hold no text"),
    (batch({"messages": [*HI, {"role": "tool", "content": "x"}]}), "body.messages[1].role", '"tool" is not one of system, user, assistant, developer'),
    (batch({"messages": [{"role": 5, "content": "x"}]}), "body.messages[0].role", "expected text, got a whole number"),
    (batch({"messages": [{"content": "x"}]}), "body.messages[0].role", "is missing"),
    (batch({"messages": [{"role": "user"}]}), "body.messages[0].content", "is missing"),
    (batch({"messages": [{"role": "user", "content": None}]}), "body.messages[0].content", "is missing"),
    (batch({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}), "body.messages[0].tool_calls", "is not supported"),
    (batch({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}), "body.messages[0].content[0].type", 'parts of type "image_url" are not supported, only text'),
    (batch({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "body.messages[0].content[0].text", "is missing"),
    (batch({"messages": [{"role": "user", "content": ["x"]}]}), "body.messages[0].content[0]", "expected an object, got text"),
    (batch({}), "body.messages", "is missing"),
    (batch({"prompt": "x"}), "body.prompt", "is not a field of /v1/chat/completions, which takes messages"),
    (batch({"messages": HI}, url="/v1/completions"), "body.messages", "is not a field of /v1/completions, which takes prompt"),
    (batch({}, url="/v1/completions"), "body.prompt", "is missing"),
    (batch({"messages": HI, "n": 2}), "body.n", "2 is not supported"),
    (batch({"messages": HI, "n": True}), "body.n", "true is not supported"),
    (batch({"messages": HI, "stream": True}), "body.stream", "true is not supported"),
    (batch("{}"), "body", "must be an object"),
    (batch("absent"), "body", "is missing"),
    (batch({}, method="GET"), "method", 'must be POST, not "GET"'),
    (batch({}, method="absent"), "method", "is missing; it must be POST"),
    (batch({}, url="/v1/embeddings"), "url", 'must be /v1/chat/completions or /v1/completions, not "/v1/embeddings"'),
    (batch({}, url="absent"), "url", "is missing; it must be /v1/chat/completions or /v1/completions"),
    (batch({"messages": HI}, priority=1), "priority", "is not a field of a batch line"),
    (batch({"messages": HI}, custom_id={}), "custom_id", "must be text, not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "field", "reason"), HOSTILE)
def test_what_cannot_be_honoured_is_refused_with_field_and_reason(
    line: object, field: str, reason: str
) -> None:
    refused = parsed(line)
    assert isinstance(refused, InvalidRequest)
    assert (refused.field, refused.reason) == (field, reason)


def test_a_refused_line_keeps_its_id_where_it_has_one() -> None:
    refused = parsed(plain(id="a", top_p=5))
    assert refused.custom_id == "a"
    assert refused.source == SOURCE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["id", "custom_id", "method", "url", "body", "prompt", "messages", "max_tokens", "stop", "slo",
     "metadata", "temperature", "n", "user", "seed", "arrival_s"]
)  # fmt: skip


@given(st.dictionaries(FIELDS, JSON))
def test_any_record_is_a_request_or_an_invalid_one(record: Mapping[str, object]) -> None:
    assert isinstance(parsed(record), Request | InvalidRequest)
    assert isinstance(parsed({**batch(dict(record))}), Request | InvalidRequest)


# --- Ids -----------------------------------------------------------------------------------------


def test_a_line_without_an_id_is_named_after_its_content(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [plain(), plain(seed=1), plain(), {"messages": HI}])
    ids = [row.custom_id for row in rows(path)]
    stem = "line-" + request_hash(valid(plain()))[:12]
    assert ids == [
        stem,
        "line-" + request_hash(valid(plain(seed=1)))[:12],
        f"{stem}-2",
        f"{stem}-3",
    ]
    assert [row.custom_id for row in rows(path)] == ids


def test_a_name_after_content_never_takes_one_that_is_given(tmp_path: Path) -> None:
    stem = "line-" + request_hash(valid(plain()))[:12]
    path = written(tmp_path / "a.jsonl", [plain(id=stem), plain(), plain(id=f"{stem}-2")])
    first, second, third = rows(path)
    assert (first.custom_id, second.custom_id) == (stem, f"{stem}-2")
    assert isinstance(third, InvalidRequest)


def test_of_two_lines_with_one_id_the_first_stands(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", [plain(id="a"), plain(id="bad", top_p=5)])
    two = written(
        tmp_path / "2.jsonl", [plain(id="b"), plain(id="a"), plain(id="bad"), plain(id="a", n=2)]
    )
    found = read_all([str(one), str(two)], started=STARTED)
    assert [(r.custom_id, r.source.file) for r in found.valid] == [("a", str(one)), ("b", str(two))]
    assert [(r.source.line, r.field, r.reason, r.custom_id) for r in found.invalid] == [
        (2, "top_p", "expected a number <= 1.0", "bad"),
        (2, "custom_id", f"'a' is already the id of {one}:1", None),
        (3, "custom_id", f"'bad' is already the id of {one}:2", None),
        (4, "n", "2 is not supported", None),
    ]


def test_the_hash_is_of_what_is_asked_and_not_of_what_is_promised() -> None:
    asked = request_hash(valid(plain()))
    assert len(asked) == 64
    assert asked == request_hash(
        valid(plain(id="b", slo={"ttft": 1}, metadata={"a": 1}, arrival_s=1))
    )
    others = [
        plain(prompt="ho"),
        plain(seed=0),
        plain(max_tokens=1),
        plain(stop="x"),
        plain(temperature=0),
    ]
    assert len({asked, *(request_hash(valid(other)) for other in others)}) == 6
    assert request_hash(valid(plain(temperature=1))) == request_hash(valid(plain(temperature=1.0)))


def test_the_hash_of_a_request_stays_the_same_from_version_to_version() -> None:
    # Runs are resumed by it: a change of this value makes every finished answer void.
    assert request_hash(valid(plain(max_tokens=5))) == (
        "472bb6320af02eb0fbb1139539b6427ca6fedf7db08363b3b04d04264ae67d7e"
    )


# --- Files ---------------------------------------------------------------------------------------


def test_lines_are_read_whatever_their_ends_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt":"a"}\r\n\r\n  \n{"prompt":"b"}\n\xef\xbb\xbf{"prompt":"c"}'
    )
    assert [
        (r.messages[0].content, r.source.line) for r in rows(path) if isinstance(r, Request)
    ] == [
        ("a", 1),
        ("b", 4),
        ("c", 5),
    ]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.jsonl.gz", "gzip"), ("a.jsonl.zst", "zstd"), ("a.jsonl", "gzip"), ("a.jsonl", "zstd")],
)
def test_compressed_lines_are_read_as_they_are(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    with pyarrow.output_stream(str(path), compression=codec) as file:
        file.write(b'{"prompt":"a"}\n{"prompt":"b"}')
    assert len(rows(path)) == 2
    with path.open("rb") as stdin:
        assert len(rows("-", stdin=stdin)) == 2


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_joined_compressed_files_are_read_to_the_end(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(pyarrow.compress(b'{"prompt":"a"}\n', codec, asbytes=True) * 2)
    assert len(rows(path)) == 2


def test_standard_input_is_one_of_the_files(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [plain(id="a")])
    found = rows(path, "-", stdin=io.BytesIO(b'{"prompt": "x", "id": "b"}\n'))
    assert [(row.custom_id, row.source.file) for row in found] == [("a", str(path)), ("b", "-")]


def test_globs_name_files_in_order_and_a_files_own_name_comes_first(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, [plain(id=name)])
    assert [row.custom_id for row in rows(tmp_path / "[ab].jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [row.custom_id for row in rows(tmp_path / "c[1].jsonl")] == ["c[1].jsonl"]
    assert len(rows(tmp_path / "**" / "*.jsonl")) == 4


def test_a_limit_counts_rows_over_all_files_and_stops_reading(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", [plain(id=1), plain(id=2, n=5), plain(id=3)])
    damaged = tmp_path / "2.jsonl.gz"
    damaged.write_bytes(b"no gzip")
    assert [row.custom_id for row in rows(one, damaged, limit=3)] == ["1", "2", "3"]
    assert len(rows(one, limit=2)) == 2
    assert rows(one, limit=0) == []


def test_a_line_too_long_is_a_row_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    fits = json.dumps(plain(prompt="x" * 86)).encode()
    assert len(fits) == 100
    path = tmp_path / "a.jsonl"
    path.write_bytes(fits + b"\n" + fits + b" \n" + b"x" * 950 + b"\n" + fits + b"\n" + fits + b" ")
    assert [(row.source.line, isinstance(row, Request)) for row in rows(path)] == [
        (1, True), (2, False), (3, False), (4, True), (5, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "the file holds no requests"),
        ("a.jsonl", b"\n \r\n", "the file holds no requests"),
        ("a.jsonl.gz", b"", "the file holds no requests"),
        ("a.jsonl.gz", b'{"prompt": "x"}', "the file is damaged: Not a gzipped file (b'{\"')"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 99)[:-9], "the file is damaged: Compressed file ended before the end-of-stream marker was reached"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999)[:12] + b"\xff" * 20, "the file is damaged: "),
        ("a.jsonl.zst", b'{"prompt": "x"}', "the file is damaged: "),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x24\x00", "the file is damaged: "),
        ("a.parquet", b"", "the file is damaged: "),
        ("a.parquet", b"PAR1" + b"x" * 99, "the file is damaged: "),
        ("a.jsonl", b"PAR1", "the file is damaged: "),
        ("a.jsonl", '{"prompt": "x"}'.encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_empty_or_damaged_is_an_error_with_its_name(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path}: {reason}")


def test_a_path_that_names_no_file_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [plain()])
    assert error_of() == "no request files are given"
    assert error_of(tmp_path / "none.jsonl").endswith("none.jsonl: there is no such file")
    assert error_of(tmp_path / "*.csv").endswith("*.csv: no file matches")
    assert "is a directory; give its files" in error_of(tmp_path)
    assert error_of(path, tmp_path / "*.jsonl") == f"{path}: is given twice"
    assert error_of("-", "-", stdin=io.BytesIO()) == "-: is given twice"
    assert error_of("x" * 5000).endswith("File name too long")
    assert "no such file" in error_of("a\0b")
    assert error_of("-", stdin=io.BytesIO(b"")) == "-: the file holds no requests"
    assert "standard input" in error_of("-", stdin=io.BytesIO(b"PAR1"))


def test_no_valid_line_at_all_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [plain(n=2), plain(top_p=5)])
    with pytest.raises(RequestFileError) as caught:
        read_all([str(path)], started=STARTED)
    assert str(caught.value) == (
        f"{path}: none of 2 lines is a valid request; the first is {path}:1: n: 2 is not supported"
    )
    with pytest.raises(RequestFileError, match="no requests were read"):
        read_all([str(path)], started=STARTED, limit=0)


def test_a_files_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 300_000)
    assert file_sha256(path) == hashlib.sha256(b"x" * 300_000).hexdigest()
    with pytest.raises(RequestFileError, match="No such file"):
        file_sha256(tmp_path / "none")


LINE = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"\n", b"\r\n", b"\xef\xbb\xbf", b" ", b"\x0c"]),
    st.dictionaries(FIELDS, st.text(max_size=3), max_size=3).map(lambda r: json.dumps(r).encode()),
)


@given(st.lists(LINE).map(b"\n".join), st.sampled_from(["a.jsonl", "a.gz", "a.zst", "a.parquet"]))
def test_any_bytes_give_one_row_for_each_line_or_a_request_file_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        found = rows(path)
    except RequestFileError as error:
        assert str(path) in str(error)  # noqa: PT017 (only some examples raise)
        return
    lines = [line.removeprefix(b"\xef\xbb\xbf").strip() for line in content.split(b"\n")]
    assert [row.source.line for row in found] == [n for n, line in enumerate(lines, 1) if line]
    ids = [row.custom_id for row in found if row.custom_id is not None]
    assert len(set(ids)) == len(ids)


# --- Parquet -------------------------------------------------------------------------------------

PLAIN_ROW = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(min_size=1, max_size=3),
        "max_tokens": st.integers(0, 100),
        "temperature": st.floats(0, 2),
        "stop": st.lists(st.text(min_size=1), max_size=4),
        "metadata": st.fixed_dictionaries({}, optional={"tier": st.text(), "n": st.integers(0, 9)}),
        "slo": st.fixed_dictionaries({"deadline": st.sampled_from(["5s", "09:00"])}),
    },
).flatmap(
    lambda row: st.one_of(
        st.text().map(lambda prompt: {**row, "prompt": prompt}),
        st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1)
        .map(lambda messages: {**row, "messages": messages}),
    )
)  # fmt: skip


@given(st.lists(PLAIN_ROW, min_size=1, max_size=5))
def test_the_same_rows_as_lines_and_as_parquet_give_equal_requests(
    tmp_path_factory: pytest.TempPathFactory, content: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = written(folder / "requests", content)
    as_lines = rows(lines)
    columns = {
        name: [row.get(name) for row in content] for name in {n for row in content for n in row}
    }
    if columns.get("metadata") and not any(columns["metadata"]):
        del columns["metadata"]  # Parquet knows no structs without fields
    table = pyarrow.table(columns)
    lines.unlink()
    parquet.write_table(table, lines, row_group_size=2)
    assert rows(lines) == as_lines


def test_parquet_may_hold_batch_lines_with_the_body_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bodies = [json.dumps({"messages": HI}), "{", '{"messages": []}', "[]"]
    table = {
        "custom_id": list("abcd"),
        "method": ["POST"] * 4,
        "url": ["/v1/chat/completions"] * 4,
        "body": bodies,
    }
    parquet.write_table(pyarrow.table(table), path)
    found = read_all([str(path)], started=STARTED)
    assert [request.messages for request in found.valid] == [(Message("user", "hi"),)]
    assert [(row.custom_id, row.field, row.source.line) for row in found.invalid] == [
        ("b", "body", 2),
        ("c", "body.messages", 3),
        ("d", "body", 4),
    ]


def test_what_tables_do_to_numbers_and_maps_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {
        "id": [1, 2, 3],
        "prompt": ["a", "b", "c"],
        "max_tokens": pyarrow.array([16.0, None, float("nan")]),
        "metadata": pyarrow.array([[("a", "x")], None, None], pyarrow.map_("string", "string")),
        "seed": pyarrow.nulls(3),
    }
    parquet.write_table(pyarrow.table(table), path)
    first, second, third = rows(path)
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert (first.custom_id, first.sampling, first.metadata) == (
        "1",
        SamplingParams(16),
        {"a": "x"},
    )
    assert (second.sampling, second.metadata) == (SamplingParams(), {})
    assert isinstance(third, InvalidRequest)
    assert third.field == "max_tokens"


def test_values_that_json_does_not_have_are_invalid_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    metadata = [{"at": STARTED, "x": 1.0}, {"at": None, "x": float("inf")}, {"at": None, "x": 2.0}]
    table = {"prompt": ["a", "b", "c"], "metadata": metadata}
    parquet.write_table(pyarrow.table(table), path)
    found = rows(path)
    assert [getattr(row, "field", None) for row in found] == ["metadata.at", "metadata.x", None]
    binary = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.table({"prompt": [b"\xff"], "n": [STARTED]}), binary)
    assert [getattr(row, "field", None) for row in rows(binary)] == ["n"]


def test_parquet_damaged_in_the_middle_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": [f"prompt {i}" for i in range(3000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path}: the file is damaged: ")
