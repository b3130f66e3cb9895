"""Configuration documents: every error names file and line, and no bytes lead to a traceback."""

# ruff: noqa: E501 (tables of whole messages are read best with one case a line)

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from uellm_cli.documents import MAX_BYTES, Document, dotted_path, load_document, read_document
from uellm_cli.errors import DocumentError


class Wheel(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int
    label: str = ""


class Car(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = ""
    wheels: list[Wheel] = []
    spare: dict[str, Wheel] = {}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        load_document(path, Car, "car")
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("car.yaml", "name: Käfer\nwheels:\n  - {size: 15}\n  - size: 16\n    label: on\n"),
        ("car.toml", 'name = "Käfer"\n[[wheels]]\nsize = 15\n[[wheels]]\nsize = 16\nlabel="on"\n'),
        ("car.json", '{\n\t"name": "Käfer",\n\t"wheels": [{"size": 15},{"size":16,"label":"on"}]}'),
        (
            "car.json",
            b'\xef\xbb\xbf{"name":"K\\u00e4fer","wheels":[{"size":15},{"size":16,"label":"on"}]}',
        ),
    ],
)
def test_one_content_reads_the_same_in_every_format(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    car = load_document(written(tmp_path, name, content), Car, "car")
    assert car == Car(name="Käfer", wheels=[Wheel(size=15), Wheel(size=16, label="on")])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("09:30", "09:30"),
        ("13:00", "13:00"),
        ("on", "on"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("<<", "<<"),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        ("", None),
        ('"5"', "5"),
        ("|\n  5", "5"),
    ],
)
def test_plain_yaml_values_follow_the_core_schema(tmp_path: Path, text: str, value: object) -> None:
    data = read_document(written(tmp_path, "a.yaml", f"key: {text}"), "thing").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", "name: x\nwheels:\n  - {siz: 5}\n", ":3: car: wheels[0].siz: unknown key 'siz'; did you mean 'size'? known here: size, label"),
        ("a.yaml", "colour: red", ":1: car: colour: unknown key 'colour'; known here: name, wheels, spare"),
        ("a.yaml", "spare:\n  left:\n    sise: 5", ":3: car: spare.left.sise: unknown key 'sise'; did you mean 'size'? known here: size, label"),
        ("a.yaml", "wheels:\n  - size: 1\n  - size: big", ":3: car: wheels[1].size: should be a valid integer, unable to parse string as an integer, not 'big'"),
        ("a.yaml", "wheels:\n  - label: x", ":2: car: wheels[0].size: is missing"),
        ("a.yaml", "name: x\nname: y", ":2: car: 'name' is given twice (first on line 1)"),
        ("a.yaml", "name: [x", ":1: car: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("a.yaml", "a: &x [1]\nb: *x", ":2: car: the alias *x is not read here"),
        ("a.yaml", "name: !!python/object:os.system x", ":1: car: a tag (!…) is not read here"),
        ("a.yaml", "name: !!timestamp x", ":1: car: a tag (!…) is not read here"),
        ("a.yaml", "? [a]\n: b", ":1: car: a key must be text"),
        ("a.yaml", "a: 1\n---\nb: 2", ":2: car: not valid YAML: expected a single document in the stream, but found another document"),
        ("a.yaml", 'name: "\\ud800"', ": car: half of a surrogate pair in '\\ud800'"),
        ("a.yaml", 'name: "\\UFFFFFFFF"', None),
        ("a.yaml", "name: x\n\x00", ":2: car: not valid YAML: a control character"),
        ("a.yaml", "name: " + "9" * 5000, ":1: car: a whole number beyond 64 bits"),
        ("a.yaml", "name: 0x" + "f" * 5000, ": car: a whole number beyond 64 bits"),
        ("a.yaml", "[" * 5000, ": car: nested deeper than 50 levels"),
        ("a.yaml", "- " * 5000, ": car: nested deeper than 50 levels"),
        ("a.yaml", "name: " + "[" * 60 + "]" * 60, ": car: nested deeper than 50 levels"),
        ("a.yaml", "", ": car: the file is empty"),
        ("a.yaml", "# only a comment", ": car: the file is empty"),
        ("a.yaml", "- 1", ": car: the file holds a list, not a mapping"),
        ("a.yaml", b"name: \xff", ": car: not UTF-8 at byte 6"),
        ("a.yaml", b"#" * (MAX_BYTES + 1), ": car: larger than 4 MiB"),
        ("a.json", '{\n"name": "x",\n"wheels":\n[{"siz": 1}]}', ":4: car: wheels[0].siz: unknown key 'siz'; did you mean 'size'? known here: size, label"),
        ("a.json", '{\n\t"colour": 1}', ":2: car: colour: unknown key 'colour'; known here: name, wheels, spare"),
        ("a.json", '{\n"name": }', ":2: car: not valid JSON: Expecting value"),
        ("a.json", '{"a": NaN}', ": car: not valid JSON: NaN is no number in JSON"),
        ("a.json", '{"a": 1, "a": 2}', ": car: 'a' is given twice"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", ": car: a whole number beyond 64 bits"),
        ("a.json", '{"a":' * 5000, ": car: nested deeper than 50 levels"),
        ("a.json", '{"name": "\\ud800"}', ": car: half of a surrogate pair in '\\ud800'"),
        ("a.json", '{"\\u001b[31m": 1}', ":1: car: '\\x1b[31m': unknown key '\\x1b[31m'; known here: name, wheels, spare"),
        ("a.json", '{"wheels": [{"size": "x"}], "' + "k" * 2000 + '": 1}', f": car: {'k' * 2000}: unknown key 'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…; known here: name, wheels, spare"),
        ("a.json", " \n", ": car: the file is empty"),
        ("a.toml", 'name = "x"\n[[wheels]]\nsize = 1\n\n[[wheels]]\nsiz = 2', ":6: car: wheels[1].siz: unknown key 'siz'; did you mean 'size'? known here: size, label"),
        ("a.toml", 'name = """\nsize = 1\n"""\ncolour = 1', ":4: car: colour: unknown key 'colour'; known here: name, wheels, spare"),
        ("a.toml", "wheels = [\n  {size = 1},\n  {siz = 2},\n]", ":1: car: wheels[1].siz: unknown key 'siz'; did you mean 'size'? known here: size, label"),
        ("a.toml", "[spare.left]\nsize = 1\nlable = 'x'", ":3: car: spare.left.lable: unknown key 'lable'; did you mean 'label'? known here: size, label"),
        ("a.toml", "name = x", ":1: car: not valid TOML: Invalid value"),
        ("a.toml", "a = " + "[" * 5000, ": car: nested deeper than 50 levels"),
        ("a.toml", "a = " + "9" * 5000, ": car: a whole number beyond 64 bits"),
        ("a.toml", "a = 0x" + "f" * 5000, ": car: a whole number beyond 64 bits"),
        ("a.toml", ".".join("a" * 100_000) + " = 1", ":1: car: longer than 100000 characters"),
        ("a.toml", "", ": car: the file is empty"),
    ],
)  # fmt: skip
def test_an_error_names_the_line_and_what_is_wrong(
    tmp_path: Path, name: str, content: str | bytes, expected: str | None
) -> None:
    message = error_of(written(tmp_path, name, content))
    assert expected is None or message == expected


def test_an_unknown_key_is_named_before_the_one_it_was_meant_to_be(tmp_path: Path) -> None:
    path = written(tmp_path, "a.yaml", "wheels:\n  - {siez: 5, label: x}")
    assert "unknown key 'siez'" in error_of(path)


def test_a_missing_file_a_directory_and_an_impossible_path_are_document_errors(
    tmp_path: Path,
) -> None:
    assert error_of(tmp_path / "none.yaml") == ": car: there is no such file"
    assert error_of(tmp_path) == ": car: Is a directory"
    assert error_of(Path("a\0b")).endswith("car: embedded null byte")


def test_a_device_without_an_end_is_refused_like_a_large_file() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    assert "larger than" in error_of(Path("/dev/zero"))


def test_a_pipe_is_read_like_a_file() -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"name: x")
        os.close(write_end)
        assert load_document(Path(f"/dev/fd/{read_end}"), Car, "car").name == "x"
    finally:
        os.close(read_end)


def test_a_location_is_written_as_one_would_type_it() -> None:
    assert dotted_path(("classes", 0, "match", "metadata.tier")) == "classes[0].match.metadata.tier"
    assert dotted_path(("a b", "c")) == "'a b'.c"


def test_a_long_toml_value_costs_no_more_than_its_line_number(tmp_path: Path) -> None:
    rows = "\n".join("1," for _ in range(20_000))
    path = written(tmp_path, "a.toml", f"a = [\n{rows}\n]\n")
    assert error_of(path).startswith(": car: a: unknown key 'a'")


SYNTAX = st.lists(
    st.sampled_from(
        [*"{}[]:,-?!&*|>'\"%@#=.0123e\\\t\n ", "a: ", "\n  ", "- ", '{"a": ', "[[a]]\n", '"""', "0x",
         "1e9", "NaN", "!!int ", "!!timestamp x", "\\ud800", "<<: ", "---\n", "a = ", "\x00", "\x85"]
    )
).map("".join)  # fmt: skip


@given(
    st.one_of(st.binary(), SYNTAX.map(str.encode)), st.sampled_from(["a.yaml", "a.json", "a.toml"])
)
def test_no_bytes_raise_anything_but_a_document_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), name, content)
    with contextlib.suppress(DocumentError):
        document = read_document(path, "thing")
        assert str(document.error(("a", 0, "b"), "wrong"))
        load_document(path, Car, "car")


def test_an_error_can_be_made_for_a_place_that_only_later_proves_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, "a.yaml", "wheels:\n  - {size: 1}\n  - {size: 2}")
    document: Document = read_document(path, "car")
    assert str(document.error(("wheels", 1, "size"), "too big")) == (
        f"{path}:3: car: wheels[1].size: too big"
    )
