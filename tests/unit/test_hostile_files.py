"""Files that are damaged, enormous, or not what they seem: every row is told of, memory is bounded."""

# ruff: noqa: E501 (tables of whole messages are read best with one case a line)

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.unit.request_cases import (
    HI,
    STARTED,
    error_of,
    invalid_rows,
    plain,
    rows,
    schema,
    sharegpt,
    written,
)
from uellm_cli.errors import RequestFileError
from uellm_cli.requests import files, read_requests
from uellm_cli.types import InvalidRequest, Request

A, B = b'{"prompt":"a"}', b'{"prompt":"b"}'
CUT_OFF = "the array has no end: the file may be cut off"
AFTER = "what follows the array's end is not read"
NOTHING = "is missing: nothing stands beside a comma"
MIB = 2**20


def prompts(found: list[Request | InvalidRequest]) -> str:
    return "".join(row.messages[0].content for row in found if isinstance(row, Request))


def packed(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        return bytes(pyarrow.compress(content, "zstd", asbytes=True))
    return content


# --- Text ----------------------------------------------------------------------------------------

TRICKY = ('"]},{[\\"', "\\", '\\\\"}, ')

# The content, the prompts that are read, and line and reason of every row that is invalid.
TEXT: dict[str, tuple[bytes, str, list[tuple[int, str]]]] = {
    "lines that end as in DOS": (A + b"\r\n" + B + b"\r\n", "ab", []),
    "a last line without its end": (A + b"\n" + B, "ab", []),
    "a byte order mark in front": (b"\xef\xbb\xbf" + A, "a", []),
    "a byte order mark in the middle": (A + b"\n\xef\xbb\xbf" + B, "ab", []),
    "a byte order mark within a line": (b" \xef\xbb\xbf" + A, "", [(1, "is not valid JSON: invalid character (byte 0)")]),
    "blank lines": (b"\n \n\t\r\n" + A + b"\n\n", "a", []),
    "form feeds between pages": (A + b"\n\x0c\n\x0c" + B, "ab", []),
    "lines that end as on old Macs": (A + b"\r" + B, "", [(1, "is not valid JSON: trailing characters (byte 16)")]),
    "Unicode's own line end in a text": ('{"prompt":"a\u2028"}'.encode(), "a\u2028", []),
    "a line of null bytes": (A + b"\n\0\0\0\n" + B, "ab", [(2, "is not valid JSON: invalid character (byte 0)")]),
    "a line of UTF-16 in the middle": (A + b"\n" + '{"prompt":"x"}'.encode("utf-16-le") + b"\n" + B, "ab", [(2, "is not valid JSON: object keys must be strings (byte 1)")]),
    "a line of Latin-1": (A + b'\n{"prompt":"\xe9"}\n' + B, "ab", [(2, "is not UTF-8 at byte 11")]),
    "an object over several lines": (b'{\n"prompt":\n"a"}\n', "", [(1, "is not valid JSON: input data was truncated"), (2, "is not valid JSON: trailing characters (byte 9)"), (3, "is not valid JSON: trailing characters (byte 4)")]),
    "a header of CSV": (b"prompt,id\n" + A, "a", [(1, "is not valid JSON: invalid character (byte 0)")]),
    "an array": (b"[" + A + b"," + B + b"]", "ab", []),
    "an array over several lines": (b"[\n  {\n   \"prompt\": \"a\"\n  },\n  " + B + b"\n]\n", "ab", []),
    "an array after blanks and a byte order mark": (b"\xef\xbb\xbf\n \n[" + A + b"]", "a", []),
    "brackets, commas and quotes in texts": (json.dumps([plain(prompt=text) for text in TRICKY]).encode(), "".join(TRICKY), []),
    "lists and objects within an element": (b'[{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"metadata":{"b":"}"}}]', "a", []),
    "an array with a comma too many at its end": (b"[" + A + b",]", "a", [(2, NOTHING)]),
    "an array with a comma too many within": (b"[" + A + b",," + B + b"]", "ab", [(2, NOTHING)]),
    "an array that begins with a comma": (b"[," + B + b"]", "b", [(1, NOTHING)]),
    "an array without commas": (b"[" + A + b"\n" + B + b"]", "", [(1, "is not valid JSON: trailing characters (byte 16)")]),
    "an array of other things": (b'[1, "x", null, [2], ' + A + b"]", "a", [(1, "holds a number, not an object with one request"), (2, "holds text, not an object with one request"), (3, "holds null, not an object with one request"), (4, "holds a list, not an object with one request")]),
    "an array in an array": (b"[[" + A + b"," + B + b"]]", "", [(1, "holds a list, not an object with one request")]),
    "an element that is no JSON": (b"[{'prompt': 'x'}, " + A + b"]", "a", [(1, "is not valid JSON: object keys must be strings (byte 1)")]),
    "an array that closes an object too many": (b"[" + A + b"}, " + B + b"]", "b", [(1, "is not valid JSON: trailing characters (byte 15)")]),
    "an array that is not closed": (b"[" + A, "a", [(2, CUT_OFF)]),
    "an array that is cut after a comma": (b"[" + A + b",\n", "a", [(2, CUT_OFF)]),
    "an array that is cut in an element": (b"[" + A + b', {"prompt": ', "a", [(2, CUT_OFF)]),
    "an array that is cut in a text": (b"[" + A + b', {"prompt": "x', "a", [(2, CUT_OFF)]),
    "an array that is cut in an escape": (b"[" + A + b', {"prompt": "x\\', "a", [(2, CUT_OFF)]),
    "an array that only begins": (b"[", "", [(1, CUT_OFF)]),
    "an array of 100000 brackets": (b"[" * 100_000, "", [(1, CUT_OFF)]),
    "an array that is closed twice": (b"[" + A + b"]]", "a", [(2, AFTER)]),
    "two arrays": (b"[" + A + b"]\n[" + B + b"]", "a", [(2, AFTER)]),
    "lines after an array": (b"[" + A + b"]\n" + B + b"\n", "a", [(2, AFTER)]),
    "a backslash after an array": (b"[" + A + b"]\n\\", "a", [(2, AFTER)]),
    "an empty array and something else": (b"[] x", "", [(1, AFTER)]),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", TEXT)
def test_a_text_gives_its_rows_packed_or_not(tmp_path: Path, name: str, ending: str) -> None:
    content, read, refused = TEXT[name]
    path = tmp_path / f"a{ending}"
    path.write_bytes(packed(content, path.name))
    assert prompts(rows(path)) == read
    assert invalid_rows(path) == [(line, "line", reason) for line, reason in refused]


class _Trickle(io.RawIOBase):
    """A pipe that hands over a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        self._rest = content
        self._size = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        size = min(len(buffer), self._size)
        piece, self._rest = self._rest[:size], self._rest[size:]
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", TEXT)
def test_a_text_gives_the_same_rows_a_few_bytes_at_a_time(name: str, size: int) -> None:
    content, read, refused = TEXT[name]
    content = content[:2000]
    assert prompts(rows("-", stdin=_Trickle(content, size))) == read
    found = invalid_rows("-", stdin=_Trickle(content, size))
    assert found == [(line, "line", reason) for line, reason in refused]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL.gz", "a.ndjson.zst"])
def test_a_file_that_is_called_lines_holds_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(b"[1]\n" + A, name.lower()))
    assert prompts(rows(path)) == "a"
    assert invalid_rows(path) == [(1, "line", "holds a list, not an object with one request")]


def test_a_conversation_file_is_lines_or_an_array(tmp_path: Path) -> None:
    lines = [sharegpt(("human", "a"), ("gpt", "x")), sharegpt(("gpt", "x"))]
    written(tmp_path / "a.jsonl", lines)
    (tmp_path / "a.json").write_text(json.dumps(lines, indent=2))
    for name in ("a.jsonl", "a.json"):
        assert prompts(rows(tmp_path / name)) == "a"
        assert invalid_rows(tmp_path / name) == [(2, "conversations", "hold no turn of a human")]


# --- Size ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fails when Python holds more than `limit` bytes at any time within."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


TOO_LONG = "is longer than 16 MiB"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_of_100_mb_is_a_row_and_never_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=codec) as file:
        file.write(A + b'\n{"prompt":"')
        for _ in range(100):
            file.write(b"x" * MIB)
        file.write(b'"}\n' + B)
    with memory_below(40 * MIB):
        found = rows(path)
    assert prompts(found) == "ab"
    assert [(r.source.line, r.reason) for r in found if isinstance(r, InvalidRequest)] == [
        (2, TOO_LONG)
    ]


@pytest.mark.parametrize(
    ("before", "filling", "after"),
    [(b'"', b"x", b'"'), (b'"', rb"\"\\", b'"'), (b'"', b'","', b'"'), (b"1", b",[1,{}]", b"")],
    ids=["text", "escapes", "texts", "lists"],
)
def test_an_element_of_100_mb_is_a_row_and_never_in_memory(
    tmp_path: Path, before: bytes, filling: bytes, after: bytes
) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.write(b"[" + A + b', {"prompt":[' + before)
        for _ in range(100):
            file.write(filling * (MIB // len(filling)))
        file.write(after + b"]}," + B + b"]")
    with memory_below(40 * MIB):
        found = rows(path)
    assert prompts(found) == "ab"
    assert [(r.source.line, r.reason) for r in found if isinstance(r, InvalidRequest)] == [
        (2, TOO_LONG)
    ]


def test_a_gzip_bomb_costs_time_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(b"\0" * MIB)
    assert path.stat().st_size < MIB
    with memory_below(40 * MIB):
        assert invalid_rows(path) == [(1, "line", TOO_LONG)]


def test_a_bomb_of_line_ends_costs_time_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\n" * 1_000_000 + A, compresslevel=1))
    with memory_below(40 * MIB):
        (row,) = rows(path)
    assert row.source.line == 1_000_001


def test_an_element_too_long_is_a_row_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    fits = json.dumps(plain(prompt="x" * 86)).encode()
    assert len(fits) == 100
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + fits + b"," + fits + b" ," + b"[" * 500 + b"]" * 500 + b"," + A + b"]")
    assert [(row.source.line, isinstance(row, Request)) for row in rows(path)] == [
        (1, True), (2, False), (3, False), (4, True),
    ]  # fmt: skip


def test_only_ids_grow_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for i in range(20_000):
            file.write(b'{"id":"request-%d","prompt":"%b"}\n' % (i, b"x" * 1000))
    with memory_below(8 * MIB):
        assert sum(1 for _ in read_requests([str(path)], started=STARTED)) == 20_000


# --- Damage --------------------------------------------------------------------------------------

NOISE = bytes(range(256)) * 16
MANY = b"".join(b'{"id":"%d","prompt":"%d"}\n' % (i, i * 7919 % 104729) for i in range(100_000))


def damaged_tail(path: Path) -> tuple[int, str]:
    """How many rows of MANY are read, all of them right; and the reason of the one after them."""
    *read, last = rows(path)
    assert isinstance(last, InvalidRequest)
    assert all(isinstance(row, Request) for row in read)
    assert [row.custom_id for row in read] == [str(i) for i in range(len(read))]
    assert (last.source.line, last.field) == (len(read) + 1, "line")
    return len(read), last.reason


DAMAGE = "the file is damaged from here on: "
EARLY_END = DAMAGE + "Compressed file ended before the end-of-stream marker was reached"


def test_a_gzip_file_that_is_cut_off_keeps_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(MANY)
    path.write_bytes(whole[: len(whole) // 2])
    read, reason = damaged_tail(path)
    assert 40_000 < read < 60_000
    assert reason == EARLY_END


def test_a_gzip_file_without_its_checksum_keeps_every_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(MANY)[:-8])
    assert damaged_tail(path) == (100_000, EARLY_END)


def test_a_gzip_file_with_a_wrong_checksum_keeps_every_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(MANY)[:-8] + b"\0" * 8)
    read, reason = damaged_tail(path)
    assert read == 100_000
    assert reason.startswith(DAMAGE + "CRC check failed")


def test_a_gzip_file_with_a_hole_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = bytearray(gzip.compress(MANY))
    middle = len(whole) // 2
    whole[middle : middle + 5000] = b"\xff" * 5000
    path.write_bytes(whole)
    read, reason = damaged_tail(path)
    assert read > 30_000
    assert reason.startswith(DAMAGE + "Error -3 while decompressing data")


def test_what_follows_a_gzip_file_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(MANY) + b"something else")
    read, reason = damaged_tail(path)
    assert read == 100_000
    assert reason.startswith(DAMAGE + "Not a gzipped file")


@pytest.mark.parametrize("tail", [b"", b"\xff" * 100])
def test_a_zstandard_file_that_breaks_keeps_what_was_read(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = packed(MANY, path.name)
    path.write_bytes(whole[: len(whole) // 2] + tail)
    read, reason = damaged_tail(path)
    assert read > 10_000
    assert reason.startswith(DAMAGE)


def test_an_array_in_a_gzip_file_that_is_cut_off_keeps_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    array = b"[" + MANY.strip().replace(b"\n", b",\n") + b"]"
    whole = gzip.compress(array)
    path.write_bytes(whole[: len(whole) // 2])
    read, reason = damaged_tail(path)
    assert 40_000 < read < 60_000
    assert reason == EARLY_END


def test_a_last_line_that_damage_cuts_is_never_taken_for_a_request(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(A + b"\n" + B)[:-8])
    assert prompts(rows(path)) == "a"
    assert invalid_rows(path) == [(2, "line", EARLY_END)]


# --- Files as a whole ----------------------------------------------------------------------------

# The name, the content, and what is said of the file.
UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("a.jsonl", b"", "the file holds no requests"),
    "a file of blanks": ("a.jsonl", b"\n \r\n" * 9, "the file holds no requests"),
    "a file of blanks beyond all patience": ("a.json", b" " * 200_000, "the file holds no requests"),
    "a byte order mark and nothing else": ("a.jsonl", b"\xef\xbb\xbf", "the file holds no requests"),
    "an empty array": ("a.json", b" [ \n ] \n", "the file holds no requests"),
    "an empty gzip file": ("a.gz", gzip.compress(b""), "the file holds no requests"),
    "an empty zstandard file": ("a.zst", b"", "the file holds no requests"),
    "text called gzip": ("a.gz", A, "the file is damaged: Not a gzipped file"),
    "text called zstandard": ("a.zst", A, "the file is damaged: ZSTD decompress failed"),
    "text called Parquet": ("a.parquet", A * 9, "the file is damaged: Parquet magic bytes not found"),
    "the first bytes of gzip": ("a.gz", gzip.compress(A)[:12], "the file is damaged: Compressed file ended"),
    "the first line of gzip, cut": ("a.gz", gzip.compress(A * 99)[:-9], "the file is damaged: Compressed file ended"),
    "the first bytes of zstandard": ("a.zst", packed(A, "a.zst")[:8], "the file is damaged: Truncated compressed stream"),
    "UTF-16": ("a.jsonl", '{"prompt": "x"}'.encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
    "UTF-16, its bytes the other way round": ("a", b"\xfe\xff" + '{"prompt": "x"}'.encode("utf-16-be"), "the file is UTF-16; save it as UTF-8"),
    "UTF-16 in gzip": ("a.gz", gzip.compress('{"prompt": "x"}'.encode("utf-16")), "the file is UTF-16; save it as UTF-8"),
    "gzip in gzip": ("a.gz", gzip.compress(gzip.compress(A)), "is packed twice or holds a table; unpack it first"),
    "zstandard in gzip": ("a.gz", gzip.compress(packed(A, "a.zst")), "is packed twice or holds a table; unpack it first"),
    "Parquet in gzip": ("a.parquet.gz", gzip.compress(b"PAR1..."), "is packed twice or holds a table; unpack it first"),
    "the first bytes of Parquet": ("a", b"PAR1", "the file is damaged: Parquet file size is 4 bytes"),
    "Parquet without its end": ("a.parquet", b"PAR1" + b"x" * 99, "the file is damaged: Parquet magic bytes not found"),
    "Parquet with a footer of noise": ("a.parquet", b"PAR1" + NOISE + b"\x40\x00\x00\x00PAR1", "the file is damaged: "),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_of_which_nothing_can_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    file_name, content, reason = UNUSABLE[name]
    path = tmp_path / file_name
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path}: {reason}")


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    assert "is a directory; give its files" in error_of(tmp_path)


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    link = tmp_path / "a.jsonl"
    link.symlink_to(tmp_path / "nothing")
    assert error_of(link) == f"{link}: is a link to a file that is not there"


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    link = tmp_path / "a.jsonl"
    link.symlink_to(link)
    assert error_of(link) == f"{link}: is a link to a file that is not there"


def test_one_file_under_two_names_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [plain()])
    (tmp_path / "b.jsonl").symlink_to(path)
    assert error_of(path, tmp_path / "b.jsonl").endswith("b.jsonl: is given twice")


def test_a_file_that_cannot_be_read_is_an_error() -> None:
    assert error_of("/proc/self/mem") == "/proc/self/mem: Input/output error"


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be read by root")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [plain()])
    path.chmod(0)
    assert error_of(path) == f"{path}: Permission denied"


def test_a_socket_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert error_of("s") == "s: No such device or address"


def test_the_null_device_holds_no_requests() -> None:
    assert error_of("/dev/null") == "/dev/null: the file holds no requests"


def test_a_file_that_vanishes_is_an_error(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", [plain()])
    two = written(tmp_path / "2.jsonl", [plain()])
    found = read_requests([str(one), str(two)], started=STARTED)
    next(found)
    two.unlink()
    with pytest.raises(RequestFileError, match="No such file or directory"):
        next(found)


def test_a_name_that_is_not_utf8_is_shown_as_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    written(Path(path), [plain(), plain(n=0)])
    for row in rows(path):
        assert row.source.file == f"{tmp_path}/\\xff.jsonl"
    Path(path).write_bytes(b"")
    assert error_of(path) == f"{tmp_path}/\\xff.jsonl: the file holds no requests"


@contextlib.contextmanager
def fed(path: Path, content: bytes) -> Iterator[None]:
    """A named pipe into which somebody writes."""
    os.mkfifo(path)
    writer = threading.Thread(target=_write, args=(path, content))
    writer.start()
    try:
        yield
    finally:
        writer.join(timeout=10)
        assert not writer.is_alive()


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), path.open("wb") as pipe:
        pipe.write(content)


@pytest.mark.parametrize("name", ["a", "a.gz", "a.zst"])
def test_a_named_pipe_is_read_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with fed(path, packed(A + b"\n" + B, name)):
        assert prompts(rows(path)) == "ab"


def test_parquet_through_a_pipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with fed(path, b"PAR1" + NOISE):
        assert error_of(path) == (
            f"{path}: Parquet cannot be read from standard input or a pipe; give a file"
        )


# --- Parquet -------------------------------------------------------------------------------------


def table_file(path: Path, columns: object, **options: Any) -> Path:
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    parquet.write_table(table, path, **options)
    return path


def damage(path: Path, *groups: int) -> None:
    """Overwrites the first column of some row groups."""
    content = bytearray(path.read_bytes())
    metadata = parquet.ParquetFile(path).metadata
    for group in groups:
        column = metadata.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = (
            b"\xff" * column.total_compressed_size
        )
    path.write_bytes(content)


def three_groups(path: Path) -> Path:
    return table_file(
        path, {"prompt": [f"{i}" for i in range(30)], "id": list(range(30))}, row_group_size=10
    )


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_rows_of_a_damaged_row_group_are_invalid_and_the_others_are_read(
    tmp_path: Path, lost: int
) -> None:
    path = three_groups(tmp_path / "a.parquet")
    damage(path, lost)
    found = rows(path)
    assert [row.source.line for row in found] == list(range(1, 31))
    broken = range(lost * 10, lost * 10 + 10)
    assert [isinstance(row, InvalidRequest) for row in found] == [i in broken for i in range(30)]
    for row in found:
        if isinstance(row, InvalidRequest):
            assert row.field == "line"
            assert row.reason.startswith("cannot be read: the file is damaged here: ")


def test_parquet_that_is_damaged_everywhere_is_an_error(tmp_path: Path) -> None:
    path = three_groups(tmp_path / "a.parquet")
    damage(path, 0, 1, 2)
    assert error_of(path).startswith(f"{path}: the file is damaged: ")


def test_damage_that_only_a_checksum_shows_is_found(tmp_path: Path) -> None:
    path = table_file(
        tmp_path / "a.parquet", {"prompt": [f"{i}" * 50 for i in range(9)]},
        compression="none", use_dictionary=False, write_page_checksum=True, row_group_size=5,
    )  # fmt: skip
    content = path.read_bytes()
    path.write_bytes(content.replace(b"2" * 50, b"2" * 49 + b"x"))
    assert [isinstance(row, Request) for row in rows(path)] == [False] * 5 + [True] * 4


def test_columns_of_others_are_left_alone_and_named_once(tmp_path: Path) -> None:
    columns = {f"column {i}": [i] * 2000 for i in range(12)}
    path = table_file(
        tmp_path / "a.parquet", {"prompt": ["x"] * 2000, "url": ["http://x"] * 2000, "model": ["m"] * 2000, **columns}
    )  # fmt: skip
    notes: list[str] = []
    assert all(isinstance(row, Request) for row in rows(path, note=notes.append))
    named = ", ".join(f"'column {i}'" for i in range(9))
    assert notes == [f"{path}: columns that are not read: 'url', {named} and 3 more"]


@pytest.mark.parametrize(
    ("column", "meant"),
    [("max_token", "max_tokens"), ("max_new_tokens", "max_tokens"), ("Temperature", "temperature"), ("message", "messages"), ("ID", "id"), ("metdata", "metadata")],
)  # fmt: skip
def test_a_column_with_a_slip_in_its_name_is_an_error(
    tmp_path: Path, column: str, meant: str
) -> None:
    path = table_file(tmp_path / "a.parquet", {"prompt": ["x"], column: [5]})
    assert error_of(path) == f"{path}: the column {column!r} is unknown; did you mean {meant!r}?"


def test_a_table_without_a_text_column_is_an_error(tmp_path: Path) -> None:
    path = table_file(tmp_path / "a.parquet", {"question": ["x"], "a\x1b\n": [5]})
    assert error_of(path) == (
        f"{path}: no column is called prompt, messages, conversations or body; there are: "
        r"'question', 'a\\x1b\\n'"
    )


def test_a_table_with_a_column_twice_is_an_error(tmp_path: Path) -> None:
    arrays = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    table = pyarrow.Table.from_arrays(arrays, names=["prompt", "prompt"])
    path = table_file(tmp_path / "a.parquet", table)
    assert error_of(path) == f"{path}: the column 'prompt' is there twice"
    others = pyarrow.Table.from_arrays([*arrays, arrays[0]], names=["x", "x", "prompt"])
    assert prompts(rows(table_file(tmp_path / "b.parquet", others))) == "a"


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    path = table_file(tmp_path / "a.parquet", {"prompt": pyarrow.array([], pyarrow.string())})
    assert error_of(path) == f"{path}: the file holds no requests"


# A table of three rows, the prompts that are read, and row, field and reason of the others.
STRUCT = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
WHEN = pyarrow.array([1, None, 3], pyarrow.timestamp("us"))
BAD_UTF8 = pyarrow.StringArray.from_buffers(
    3, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffc")
)
TWO_OF_A_NAME = pyarrow.StructArray.from_arrays([pyarrow.array([1, 2, 3])] * 2, names=["a", "a"])
REPEATED_KEY = pyarrow.array([[("a", "x"), ("a", "y")], [("a", "x")], None], pyarrow.map_("string", "string"))  # fmt: skip

TABLES: dict[str, tuple[dict[str, Any], str, list[tuple[int, str, str]]]] = {
    "columns of nothing but null": ({"prompt": list("abc"), "seed": pyarrow.nulls(3), "slo": pyarrow.nulls(3), "metadata": pyarrow.nulls(3), "id": pyarrow.nulls(3)}, "abc", []),
    "a prompt of nothing but null": ({"prompt": pyarrow.nulls(3)}, "", [(i, "prompt", "is missing; give prompt or messages") for i in (1, 2, 3)]),
    "a dictionary": ({"prompt": pyarrow.array(list("aba")).dictionary_encode()}, "aba", []),
    "large strings": ({"prompt": pyarrow.array(list("abc"), pyarrow.large_string())}, "abc", []),
    "views of strings": ({"prompt": pyarrow.array(list("abc"), pyarrow.string_view())}, "abc", []),
    "messages as structs": ({"messages": pyarrow.array([HI, [], None], pyarrow.list_(STRUCT))}, "hi", [(2, "messages", "expected a list of length >= 1"), (3, "prompt", "is missing; give prompt or messages")]),
    "messages as large lists": ({"messages": pyarrow.array([HI] * 3, pyarrow.large_list(STRUCT))}, "hihihi", []),
    "bytes": ({"prompt": [b"a", None, b"\xff"]}, "", [(1, "prompt", "expected text, got bytes"), (2, "prompt", "is missing; give prompt or messages"), (3, "prompt", "expected text, got bytes")]),
    "texts that are not UTF-8": ({"prompt": BAD_UTF8}, "ac", [(2, "prompt", "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte")]),
    "timestamps": ({"prompt": list("abc"), "seed": WHEN}, "b", [(1, "seed", "expected a whole number, got datetime"), (3, "seed", "expected a whole number, got datetime")]),
    "timestamps that Python does not have": ({"prompt": list("abc"), "seed": pyarrow.array([1, None, 3], pyarrow.timestamp("ns"))}, "b", [(1, "seed", "cannot be read: Nanosecond"), (3, "seed", "cannot be read: Nanosecond")]),
    "dates": ({"prompt": [date(2026, 1, 1), None, None]}, "", [(1, "prompt", "expected text, got date"), (2, "prompt", "is missing; give prompt or messages"), (3, "prompt", "is missing; give prompt or messages")]),
    "decimals": ({"prompt": list("abc"), "temperature": [Decimal("0.5"), None, Decimal("2.5")]}, "ab", [(3, "temperature", "expected a number <= 2.0")]),
    "numbers that are none": ({"prompt": list("abc"), "temperature": [float("nan"), float("inf"), 1.0], "max_tokens": [5.0, None, 1.5]}, "", [(1, "temperature", "nan is no number in JSON"), (2, "temperature", "inf is no number in JSON"), (3, "max_tokens", "expected a whole number, got a number")]),
    "keys that are there twice": ({"prompt": list("abc"), "metadata": REPEATED_KEY}, "bc", [(1, "metadata", "cannot be read: ")]),
    "fields that are there twice": ({"prompt": list("abc"), "metadata": TWO_OF_A_NAME}, "", [(i, "metadata", "cannot be read: ") for i in (1, 2, 3)]),
    "maps in maps": ({"prompt": list("abc"), "metadata": pyarrow.array([[("a", [("b", "c")])], None, []], pyarrow.map_("string", pyarrow.map_("string", "string")))}, "bc", [(1, "metadata.a", "must be text, a number, true or false, not an object")]),
    "maps by number": ({"prompt": list("abc"), "metadata": pyarrow.array([[(1, "x")], None, []], pyarrow.map_("int64", "string"))}, "bc", [(1, "metadata", "expected text, got a whole number")]),
    "numbers of 64 bits without a sign": ({"prompt": list("abc"), "seed": pyarrow.array([2**64 - 1, 1, None], pyarrow.uint64())}, "bc", [(1, "seed", "expected a whole number <= 9223372036854775807")]),
    "objects as JSON in text": ({"messages": [json.dumps(HI), "[", "null"], "metadata": ['{"a": 1}', "x", None]}, "hi", [(2, "messages", "is not valid JSON: input data was truncated"), (3, "prompt", "is missing; give prompt or messages")]),
    "promises as JSON in text": ({"prompt": list("abc"), "slo": ['{"deadline": "5s"}', "{}", "5s"]}, "a", [(2, "slo", "promises nothing; give a deadline, ttft or tpot"), (3, "slo", "is not valid JSON: trailing characters (byte 2)")]),
    "schemas as JSON in text": ({"prompt": list("abc"), "response_format": [json.dumps(schema({"const": None})), '{"type": "x"}', None]}, "ac", [(2, "response_format.type", '"x" is not one of text, json_object, json_schema')]),
    "biases as JSON in text": ({"prompt": list("abc"), "logit_bias": ['{"5": 1}', '{"x": 1}', "[]"]}, "a", [(2, "logit_bias.x", '"x" is no id of a token'), (3, "logit_bias", "expected an object, got a list")]),
    "fields that are not supported": ({"prompt": list("abc"), "tools": [[], None, ["x"]], "stream": [False, None, None]}, "ab", [(3, "tools", '["x"] is not supported')]),
    "conversations": ({"conversations": [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], [{"from": "gpt", "value": "b"}], []], "url": ["x"] * 3}, "a", [(2, "conversations", "hold no turn of a human"), (3, "conversations", "hold no turn of a human")]),
    "batch lines with a misplaced cap": ({"custom_id": list("abc"), "method": ["POST"] * 3, "url": ["/v1/chat/completions"] * 3, "body": [{"messages": HI, "seed": 1}, {"messages": HI, "seed": None}, None], "max_tokens": [None, 5, None]}, "hi", [(2, "max_tokens", "is not a field of a batch line"), (3, "body", "is missing")]),
    "a column called like a part of another": ({"prompt": list("abc"), "seed": [1, 2, 3], "seed.of.another": [1, 2, 3]}, "abc", []),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_its_rows(tmp_path: Path, name: str) -> None:
    columns, read, refused = TABLES[name]
    path = table_file(tmp_path / "a.parquet", columns)
    assert prompts(rows(path)) == read
    found = invalid_rows(path)
    assert [(line, field) for line, field, _ in found] == [
        (line, field) for line, field, _ in refused
    ]
    for (_, _, reason), (_, _, expected) in zip(found, refused, strict=True):
        assert reason.startswith(expected)


def test_a_schema_of_a_table_keeps_its_nulls(tmp_path: Path) -> None:
    columns = {"prompt": ["a"], "response_format": [json.dumps(schema({"const": None}))]}
    (row,) = rows(table_file(tmp_path / "a.parquet", columns))
    assert isinstance(row, Request)
    assert row.sampling.json_schema == '{"const":null}'


@pytest.mark.parametrize("type_", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])  # fmt: skip
def test_a_cell_too_long_is_a_row_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: pyarrow.DataType
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 2000)
    texts = ["a", "x" * 3000, "b" * 1900, None, "c"]
    path = table_file(tmp_path / "a.parquet", {"prompt": pyarrow.array(texts).cast(type_)})
    assert prompts(rows(path)) == "a" + "b" * 1900 + "c"
    assert invalid_rows(path) == [
        (2, "prompt", "is longer than 0 MiB"),
        (4, "prompt", "is missing; give prompt or messages"),
    ]


def test_a_cell_of_100_mb_is_a_row_and_few_rows_are_held_beside_it(tmp_path: Path) -> None:
    path = table_file(
        tmp_path / "a.parquet", {"prompt": ["a", "x" * (100 * MIB), "b"]}, use_dictionary=False
    )
    with memory_below(40 * MIB):
        found = rows(path)
    assert prompts(found) == "ab"
    assert invalid_rows(path) == [(2, "prompt", TOO_LONG)]


def test_a_table_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    texts = [f"{i}" * 200_000 for i in range(100)]
    path = table_file(tmp_path / "a.parquet", {"prompt": texts}, use_dictionary=False)
    before = pyarrow.total_allocated_bytes()
    most = 0
    for row in itertools.islice(read_requests([str(path)], started=STARTED), 60):
        assert isinstance(row, Request)
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 60 * MIB
