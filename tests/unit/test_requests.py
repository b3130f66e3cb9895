"""Request files: what a line means, what is refused and why, and what a damaged file leads to."""

# ruff: noqa: E501 (tables of whole messages are read best with one case a line)

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tests.unit.request_cases import (
    HI,
    SOURCE,
    STARTED,
    batch,
    chat,
    completion,
    error_of,
    parsed,
    plain,
    rows,
    schema,
    sharegpt,
    valid,
    written,
)
from uellm_cli.errors import RequestFileError
from uellm_cli.requests import file_sha256, files
from uellm_cli.requests.fields import HARMLESS_FIELDS, UNSUPPORTED_FIELDS
from uellm_cli.requests.keys import content_of
from uellm_cli.types import (
    SLO,
    Anchor,
    Endpoint,
    InvalidRequest,
    Message,
    Request,
    SamplingParams,
)

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


@pytest.mark.parametrize("make", [plain, chat, completion])
def test_what_servers_like_openai_s_have_beside_its_own_fields_is_read(
    make: Callable[..., object],
) -> None:
    asked = {
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -2,
        "frequency_penalty": 0.5,
        "stop_token_ids": [9, 3, 9],
        "ignore_eos": True,
        "min_tokens": 5,
        "max_tokens": 5,
    }
    assert valid(make(**asked)).sampling == SamplingParams(
        max_tokens=5,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=0.5,
        stop_token_ids=(3, 9),
        ignore_eos=True,
        min_tokens=5,
    )


def test_a_penalty_of_zero_is_none_and_what_a_model_may_have_set_is_turned_off() -> None:
    nothing = {
        "presence_penalty": 0,
        "frequency_penalty": -0.0,
        "stop_token_ids": [],
        "ignore_eos": False,
        "min_tokens": 0,
    }
    assert content_of(valid(plain(**nothing))) == content_of(valid(plain()))
    assert valid(plain(min_p=0, repetition_penalty=1)).sampling == SamplingParams(
        min_p=0.0, repetition_penalty=1.0
    )


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


@pytest.mark.parametrize(
    ("line", "logprobs"),
    [
        (chat(logprobs=True), 0),
        (chat(logprobs=True, top_logprobs=5), 5),
        (chat(logprobs=False), None),
        (chat(logprobs=False, top_logprobs=0), None),
        (plain(logprobs=True, top_logprobs=20), 20),
        (completion(logprobs=0), 0),
        (completion(logprobs=5), 5),
    ],
)
def test_each_endpoint_asks_for_log_probabilities_in_its_own_way(
    line: object, logprobs: int | None
) -> None:
    assert valid(line).sampling == SamplingParams(logprobs=logprobs)


def test_biases_are_sorted_by_token() -> None:
    sampling = valid(plain(logit_bias={"10": 1, "9": -100, "0": 0.5}, n=3)).sampling
    assert sampling == SamplingParams(n=3, logit_bias=((0, 0.5), (9, -100.0), (10, 1.0)))


@pytest.mark.parametrize(
    ("asked", "schema_text"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type":"object"}'),
        (schema({}), "{}"),
        (schema({"const": None, "enum": [None, 1.5]}, strict=True), '{"const":null,"enum":[null,1.5]}'),
        (schema({"title": "é"}, description="d", strict=None), '{"title":"é"}'),
    ],
)  # fmt: skip
def test_a_response_format_is_a_schema_as_text(asked: object, schema_text: str | None) -> None:
    assert valid(chat(response_format=asked)).sampling.json_schema == schema_text


# --- ShareGPT ------------------------------------------------------------------------------------


def test_a_conversation_is_asked_up_to_its_last_human_turn() -> None:
    line = sharegpt(
        ("system", "Be brief."), ("human", "a"), ("gpt", "b"), ("user", "c"), ("bard", "d"), id="x"
    )
    messages = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert valid(line) == Request(
        "x", Endpoint.CHAT, tuple(Message(*message) for message in messages), source=SOURCE
    )


@pytest.mark.parametrize("name", ["gpt", "assistant", "chatgpt", "bing", "bard", "model"])
def test_all_names_of_a_model_are_the_assistant(name: str) -> None:
    messages = valid(sharegpt(("human", "a"), (name, "b"), ("human", "c"))).messages
    assert messages[1] == Message("assistant", "b")


def test_what_such_files_carry_beside_a_conversation_is_passed_over() -> None:
    line = sharegpt(
        ("human", "a"), id=5, model="m", source="web", url="http://x", items=[{"a": [1]}], lang="en",
        hash=7, tools="[]", images=[], score=0.5, category=None, system="",
    )  # fmt: skip
    line["conversations"][0] |= {"markdown": None, "weight": 0}  # type: ignore[index]
    assert valid(line) == valid(plain(prompt="a", id=5))


def test_what_a_conversation_asks_for_counts() -> None:
    line = sharegpt(("human", "a"), system="s", max_tokens=5, metadata={"tier": "gold"})
    request = valid(line)
    assert request.messages == (Message("system", "s"), Message("user", "a"))
    assert (request.sampling.max_tokens, request.metadata) == (5, {"tier": "gold"})


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
    stem = ids[0]
    assert stem is not None
    assert re.fullmatch("line-[0-9a-f]{12}", stem)
    assert ids[1] not in ids[:1]
    assert ids[2:] == [f"{stem}-2", f"{stem}-3"]
    assert [row.custom_id for row in rows(path)] == ids


def test_a_name_after_content_never_takes_one_that_is_given(tmp_path: Path) -> None:
    stem = rows(written(tmp_path / "b.jsonl", [plain()]))[0].custom_id
    path = written(tmp_path / "a.jsonl", [plain(id=stem), plain(), plain(id=f"{stem}-2")])
    first, second, third = rows(path)
    assert (first.custom_id, second.custom_id) == (stem, f"{stem}-2")
    assert isinstance(third, InvalidRequest)


def test_of_two_lines_with_one_id_the_first_stands(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", [plain(id="a"), plain(id="bad", top_p=5)])
    two = written(
        tmp_path / "2.jsonl", [plain(id="b"), plain(id="a"), plain(id="bad"), plain(id="a", n=0)]
    )
    found = rows(one, two)
    assert [(r.custom_id, r.source.file) for r in found if isinstance(r, Request)] == [
        ("a", str(one)),
        ("b", str(two)),
    ]
    refused = [row for row in found if isinstance(row, InvalidRequest)]
    assert [(r.source.line, r.field, r.reason, r.custom_id) for r in refused] == [
        (2, "top_p", "expected a number <= 1.0", "bad"),
        (2, "custom_id", f'"a" is already the id of {one}:1', None),
        (3, "custom_id", f'"bad" is already the id of {one}:2', None),
        (4, "n", "expected a whole number >= 1", None),
    ]


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
    one = written(tmp_path / "1.jsonl", [plain(id=1), plain(id=2, n=0), plain(id=3)])
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
    first, *refused = rows(path)
    assert isinstance(first, Request)
    assert first.messages == (Message("user", "hi"),)
    assert [
        (row.custom_id, row.field, row.source.line)
        for row in refused
        if isinstance(row, InvalidRequest)
    ] == [
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


def test_a_table_may_have_every_sampling_field_as_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {
        "prompt": ["a", "b", "c"],
        "min_p": [0.1, None, None],
        "repetition_penalty": pyarrow.array([2, None, None]),
        "presence_penalty": [1.5, None, 0.0],
        "stop_token_ids": pyarrow.array([[1, 2], None, []], pyarrow.list_(pyarrow.int32())),
        "ignore_eos": [True, None, False],
        "min_tokens": pyarrow.array([16.0, None, 0.0]),
    }
    parquet.write_table(pyarrow.table(table), path)
    first, second, third = (row.sampling for row in rows(path) if isinstance(row, Request))
    assert first == SamplingParams(
        min_p=0.1,
        repetition_penalty=2.0,
        presence_penalty=1.5,
        stop_token_ids=(1, 2),
        ignore_eos=True,
        min_tokens=16,
    )
    assert second == third == SamplingParams()
    as_text = tmp_path / "b.parquet"
    table = {"prompt": ["a", "b"], "stop_token_ids": ["[4]", "[true]"]}
    parquet.write_table(pyarrow.table(table), as_text)
    good, bad = rows(as_text)
    assert isinstance(good, Request)
    assert good.sampling.stop_token_ids == (4,)
    assert isinstance(bad, InvalidRequest)
    assert (bad.field, bad.reason) == (
        "stop_token_ids[0]",
        "expected a whole number, got true or false",
    )


def test_values_that_json_does_not_have_are_invalid_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    metadata = [{"at": STARTED, "x": 1.0}, {"at": None, "x": float("inf")}, {"at": None, "x": 2.0}]
    table = {"prompt": ["a", "b", "c"], "metadata": metadata}
    parquet.write_table(pyarrow.table(table), path)
    found = rows(path)
    assert [getattr(row, "field", None) for row in found] == ["metadata.at", "metadata.x", None]
    binary = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.table({"prompt": [b"\xff"], "n": [STARTED]}), binary)
    assert [getattr(row, "field", None) for row in rows(binary)] == ["prompt"]
