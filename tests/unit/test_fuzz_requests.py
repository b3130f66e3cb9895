"""Whatever a file holds: no crash, no row lost, a reason for each that is refused.

More than 10,000 inputs a run, over all tests here.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.unit.request_cases import (
    HI,
    SOURCE,
    STARTED,
    chat,
    completion,
    plain,
    rows,
    schema,
    sharegpt,
)
from uellm_cli.errors import RequestFileError
from uellm_cli.requests.fields import HARMLESS_FIELDS, PLAIN_FIELDS, UNSUPPORTED_FIELDS
from uellm_cli.requests.lines import parse_carefully, parse_row, quick_request
from uellm_cli.requests.wording import MAX_FIELD_CHARS, MAX_REASON_CHARS
from uellm_cli.types import InvalidRequest, Request

BOM = b"\xef\xbb\xbf"

VALID: list[dict[str, object]] = [
    plain(id="a", max_tokens=64, metadata={"tier": "gold", "n": 1, "x": 0.5, "b": True}),
    plain(custom_id=7, temperature=0.7, top_p=0.9, top_k=40, seed=1, stop=["x", "y"], stream=False),
    plain(slo={"deadline": "20s", "ttft": 2}, arrival_s=1.5, user="u", model="m", n=2, best_of=1),
    plain(logprobs=True, top_logprobs=3, logit_bias={"5": 1.5, "12": -100}, frequency_penalty=0),
    plain(response_format=schema({"type": "object", "properties": {"a": {"const": None}}})),
    {"messages": [{"role": "system", "content": "é🦊"}, *HI], "metadata": None, "tools": []},
    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}]},
    chat(max_completion_tokens=5, stop="\n", presence_penalty=0.0, n=None),
    chat(response_format={"type": "json_object"}, service_tier="auto"),
    completion(logprobs=2, seed=-1),
    plain(min_p=0.1, repetition_penalty=1.2, presence_penalty=-1.5, stop_token_ids=[3, 0]),
    chat(frequency_penalty=2, ignore_eos=True, min_tokens=4, max_tokens=4),
    sharegpt(("system", "s"), ("human", "a"), ("gpt", "b"), id="x", source="web"),
]


def check(row: Request | InvalidRequest) -> None:
    """What holds for every row: it can be written as UTF-8, and a refused one says why."""
    msgspec.json.encode(row).decode()
    assert row.source.file
    assert row.source.line >= 1
    if isinstance(row, InvalidRequest):
        assert 1 <= len(row.field) <= 12 * (MAX_FIELD_CHARS + 1)
        assert 1 <= len(row.reason) <= 12 * (MAX_REASON_CHARS + 1)
        assert (row.field + row.reason).isprintable()


def check_line(line: bytes) -> Request | InvalidRequest | None:
    """The row of a line, the same by both ways; None for a blank one."""
    quick = quick_request(line, SOURCE, STARTED)
    content = line.removeprefix(BOM).strip()
    if not content:
        assert quick is None
        return None
    careful = parse_carefully(content, SOURCE, STARTED)
    assert quick is None or quick == careful
    check(careful)
    return careful


# --- Lines ---------------------------------------------------------------------------------------


def test_the_lines_that_are_mutated_are_requests() -> None:
    for line in VALID:
        assert isinstance(check_line(json.dumps(line).encode()), Request)


EDIT = st.tuples(
    st.integers(0, 400),
    st.integers(0, 3),
    st.one_of(
        st.binary(max_size=3),
        st.sampled_from(
            [b"null", b"NaN", b"1e999", b"-1", b"0", b'""', b"{}", b"[]", b"true", b"\\ud800", b'"',
             b"\\u0000", b"1" * 30, b'"body":{},', b'"id":"z",', b",", b"\\", b"\xff", b"9.0"]
        ),
    ),
)  # fmt: skip


@settings(max_examples=3000)
@given(st.sampled_from(VALID), st.lists(EDIT, max_size=4), st.booleans())
def test_a_mutated_line_is_a_request_or_has_a_reason(
    line: dict[str, object], edits: list[tuple[int, int, bytes]], as_ascii: bool
) -> None:
    text = json.dumps(line, ensure_ascii=as_ascii).encode()
    for position, cut, new in edits:
        position %= len(text) + 1
        text = text[:position] + new + text[position + cut :]
    check_line(text)


@settings(max_examples=2000)
@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbf")
@example(b'{"":0}')
def test_any_bytes_are_a_request_or_have_a_reason(line: bytes) -> None:
    check_line(line)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 5, 128, 2**63, -(2**63), 2**64, 10**30])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["", " ", "a", "POST", "/v1/completions", "user", "text", "5s", "\0"]),
    lambda part: (
        st.lists(part, max_size=4)
        | st.dictionaries(
            st.text(max_size=4)
            | st.sampled_from(
                ["role", "content", "type", "text", "from", "value", "name", "schema",
                 "json_schema", "deadline", "weight", "5", "prompt", "messages", "max_tokens"]
            ),
            part,
            max_size=4,
        )
    ),
    max_leaves=10,
)  # fmt: skip
NAMES = [
    *PLAIN_FIELDS, *HARMLESS_FIELDS, *UNSUPPORTED_FIELDS, "method", "url", "body", "system",
    "images", "source", "max_token", "",
]  # fmt: skip


@settings(max_examples=3000, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(VALID),
    st.dictionaries(st.sampled_from(sorted(NAMES)), JSON, min_size=1, max_size=3),
    st.booleans(),
)
def test_any_value_in_any_field_is_a_request_or_has_a_reason(
    line: dict[str, object], values: dict[str, object], in_body: bool
) -> None:
    body = line.get("body")
    if in_body and isinstance(body, dict):
        record = {**line, "body": {**body, **values}}
    else:
        record = {**line, **values}
    # Python writes NaN, Infinity and halves of surrogate pairs, which are no JSON.
    check_line(json.dumps(record).encode())
    check(parse_row(record, SOURCE, STARTED))


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.sampled_from(sorted(NAMES)), JSON), max_size=6))
def test_a_key_may_come_again(items: list[tuple[str, object]]) -> None:
    fields = [("prompt", "a"), *items]
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields)
    check_line(f"{{{text}}}".encode())


# --- Files ---------------------------------------------------------------------------------------

PIECE = st.one_of(
    st.sampled_from([json.dumps(line).encode() for line in VALID]),
    st.sampled_from(
        [b"", b" ", b"\r", BOM, b"\x0c", b"[", b"]", b"{}", b"[]", b"null", b'"', b"\0"]
    ),
    st.binary(max_size=12),
    st.builds(lambda i: json.dumps(plain(id=i)).encode(), st.integers(0, 3)),
)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}
NO_TEXT = (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(path: Path) -> list[Request | InvalidRequest] | None:
    """The rows of a file, checked; None where it is refused as a whole."""
    try:
        found = rows(path)
    except RequestFileError as error:
        # Only some examples raise.
        is_told = str(error).startswith(str(path)) and str(error).isprintable()
        assert is_told
        return None
    for row in found:
        check(row)
    numbers = [row.source.line for row in found]
    assert all(a < b for a, b in itertools.pairwise(numbers))
    ids = [row.custom_id for row in found if row.custom_id is not None]
    assert len(ids) == len(set(ids))
    assert all(row.custom_id for row in found if isinstance(row, Request))
    return found


def numbers_of(found: Iterable[Request | InvalidRequest] | None) -> list[int]:
    return [row.source.line for row in found or ()]


@settings(max_examples=1000)
@given(
    st.lists(PIECE, max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.sampled_from(sorted(PACKINGS)),
)
def test_each_line_of_a_file_is_a_row(
    folder: Path, pieces: list[bytes], end: bytes, packing: str
) -> None:
    content = end.join(pieces)
    if content.startswith(NO_TEXT):
        return
    path = folder / f"a.jsonl{packing}"
    path.write_bytes(PACKINGS[packing](content))
    lines = [line.removeprefix(BOM).strip() for line in content.split(b"\n")]
    assert numbers_of(read(path)) == [number for number, line in enumerate(lines, 1) if line]


@settings(max_examples=1000)
@given(
    st.lists(JSON.filter(lambda value: not isinstance(value, float)) | st.sampled_from(VALID)),
    st.sampled_from([None, 0, 2]),
    st.sampled_from(sorted(PACKINGS)),
    st.booleans(),
)
def test_each_element_of_an_array_is_a_row(
    folder: Path, elements: list[object], indent: int | None, packing: str, as_ascii: bool
) -> None:
    path = folder / f"a.json{packing}"
    text = json.dumps(elements, indent=indent, ensure_ascii=as_ascii).encode(errors="replace")
    path.write_bytes(PACKINGS[packing](text))
    assert numbers_of(read(path)) == list(range(1, len(elements) + 1))


@settings(max_examples=1000)
@given(st.lists(PIECE | st.sampled_from([b",", b"},{", b'"', b"\\"]), max_size=12))
@example([BOM, BOM])
def test_no_array_however_broken_loses_what_was_read(folder: Path, pieces: list[bytes]) -> None:
    first = json.dumps(plain(id="first")).encode()
    path = folder / "b.json"
    path.write_bytes(b"[" + first + b"," + b"".join(pieces))
    found = read(path)
    assert found is not None
    assert (found[0].custom_id, found[0].source.line) == ("first", 1)
    assert numbers_of(found) == list(range(1, len(found) + 1))
    assert len(found) > 1


@settings(max_examples=700)
@given(
    st.lists(PIECE, min_size=1, max_size=6).map(b"\n".join),
    st.sampled_from([".gz", ".zst"]),
    st.integers(0, 200),
    st.binary(max_size=4),
    st.booleans(),
)
def test_no_damage_of_a_packed_file_is_a_crash(
    folder: Path, content: bytes, packing: str, place: int, noise: bytes, is_cut: bool
) -> None:
    path = folder / f"c{packing}"
    whole = PACKINGS[packing](content)
    place %= len(whole)
    after = b"" if is_cut else whole[place + len(noise) :]
    path.write_bytes(whole[:place] + noise + after)
    read(path)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(VALID[:5]), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=3),
    st.sampled_from(["none", "zstd", "snappy"]),
)
def test_no_damage_of_a_table_is_a_crash(
    folder: Path,
    records: list[dict[str, object]],
    edits: list[tuple[int, bytes]],
    compression: str,
) -> None:
    path = folder / "d.parquet"
    names = sorted({name for record in records for name in record} - {"custom_id"})
    columns = {
        name: [
            json.dumps(r[name]) if isinstance(r.get(name), dict) else r.get(name) for r in records
        ]
        for name in names
    }
    parquet.write_table(
        pyarrow.table(columns), path, row_group_size=2, compression=compression,
        write_page_checksum=True,
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    for place, noise in edits:
        place %= len(content)
        content[place : place + len(noise)] = noise
    path.write_bytes(content)
    found = read(path)
    if not edits:
        assert numbers_of(found) == list(range(1, len(records) + 1))
