"""Small configuration documents (YAML, TOML, JSON), validated with the line of every error.

The format follows the file's ending; anything else is read as YAML. YAML scalars follow the core
schema of YAML 1.2, so that `on`, `09:30` and `2024-01-01` stay text and `1e3` is a number. Keys are
text; aliases, tags and merge keys are not read: a configuration needs none of them, and through
them a few lines can grow to gigabytes.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from uellm_cli.errors import DocumentError

Location = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

# A configuration is written by hand; a document beyond this is a mistake or an attack.
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 50
# tomllib takes quadratic time over one endless dotted key.
MAX_TOML_LINE_CHARS = 100_000
# The lines of a longer TOML value are not looked for: each try parses it from its start again.
MAX_TOML_STATEMENT_LINES = 200


@dataclass(frozen=True, slots=True)
class Document:
    """A document's content and text; its lines are only looked up for an error."""

    path: Path
    what: str
    data: dict[str, Any]
    text: str

    def validated(self, schema: type[ModelT]) -> ModelT:
        """The content as an instance of `schema`; DocumentError names the first thing wrong."""
        try:
            return schema.model_validate(self.data)
        except ValidationError as error:
            location, reason = first_problem(error, schema)
            raise self.error(location, reason) from None

    def error(self, location: Location, reason: str) -> DocumentError:
        """An error about what is at `location`, with the line where it stands if that is known."""
        lines = _format_of(self.path).lines(self.text)
        known = (location[:end] for end in range(len(location), 0, -1))
        line = next((lines[place] for place in known if place in lines), None)
        dotted = dotted_path(location)
        return _error(self.path, self.what, f"{dotted}: {reason}" if dotted else reason, line)


def load_document(path: Path, schema: type[ModelT], what: str) -> ModelT:
    """The document at `path` as an instance of `schema`; `what` names it in errors.

    Raises DocumentError with the file, the line where it is known, and the reason.
    """
    return read_document(path, what).validated(schema)


def read_document(path: Path, what: str) -> Document:
    """The document at `path`, which must be a mapping with text for keys; raises DocumentError."""
    text = _read_text(path, what)
    try:
        data = _format_of(path).parse(text)
        _check_values(data)
    except _SyntaxError as error:
        raise _error(path, what, error.reason, error.line) from None
    except RecursionError:
        raise _error(path, what, _TOO_DEEP) from None
    if not isinstance(data, dict):
        kind = "is empty" if data is None else f"holds a {type(data).__name__}, not a mapping"
        raise _error(path, what, f"the file {kind}")
    return Document(path, what, data, text)


def first_problem(error: ValidationError, schema: type[BaseModel]) -> tuple[Location, str]:
    """Where the first thing wrong is, and what it is, in words for the person who wrote it.

    An unknown key comes first: it is likely why a known one seems to be missing.
    """
    problems = error.errors(include_url=False, include_context=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = first["loc"]
    if first["type"] == "extra_forbidden":
        return where, _unknown_key(str(where[-1]), _known_keys(schema, where[:-1]))
    if first["type"] == "missing":
        return where, "is missing"
    reason = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    given = first["input"]
    if first["type"] != "value_error" and isinstance(given, str | int | float):
        reason += f", not {_shortened(given)}"
    return where, reason


def dotted_path(location: Location) -> str:
    """`("classes", 0, "ttft")` as `classes[0].ttft`, quoting what is no plain name."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w.\-]+", part) else _shortened(part)
            text += f".{name}" if text else name
    return text


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?` where one of the known names is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _error(path: Path, what: str, reason: str, line: int | None = None) -> DocumentError:
    place = f"{path}:{line}" if line else str(path)
    return DocumentError(f"{place}: {what}: {reason}")


def _shortened(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _read_text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            # Not stat(): a pipe or a device has no size.
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _error(path, what, f"larger than {MAX_BYTES // 2**20} MiB")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise _error(path, what, "there is no such file") from None
    except OSError as error:
        raise _error(path, what, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _error(path, what, f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # a path with a NUL in it
        raise _error(path, what, str(error)) from None


# --- What every format has to refuse -------------------------------------------------------------

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_TOO_MANY_DIGITS = "a whole number beyond 64 bits"


class _SyntaxError(Exception):
    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def _check_values(data: object) -> None:
    """Refuses deep nesting, and text and numbers that could not be printed again."""
    pending: list[tuple[object, int]] = [(data, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _SyntaxError(_TOO_DEEP)
        if isinstance(value, dict):
            pending += ((part, depth + 1) for item in value.items() for part in item)
        elif isinstance(value, list):
            pending += ((part, depth + 1) for part in value)
        elif isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise _SyntaxError(f"half of a surrogate pair in {_shortened(value)}")
        elif isinstance(value, int) and value.bit_length() > 64:
            raise _SyntaxError(_TOO_MANY_DIGITS)


# --- YAML ----------------------------------------------------------------------------------------

_YAML_NULL = re.compile(r"~|null|Null|NULL|")
_YAML_TRUE = re.compile(r"true|True|TRUE")
_YAML_FALSE = re.compile(r"false|False|FALSE")
_YAML_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_YAML_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_YAML_SPECIAL_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """Composes nodes without aliases and tags; `_scalar` decides what a plain scalar means."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent):
            raise _SyntaxError(f"the alias *{event.anchor} is not read here", line)
        if getattr(event, "tag", None) is not None:
            raise _SyntaxError("a tag (!…) is not read here", line)
        return super().compose_node(parent, index)


def _compose_yaml(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise _SyntaxError(f"not valid YAML: {reason}", line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _SyntaxError("not valid YAML: a control character", line) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _SyntaxError(f"not valid YAML: {error}") from None


def _parse_yaml(text: str) -> object:
    node = _compose_yaml(text)
    return None if node is None else _value(node)


def _value(node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    content: dict[str, object] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _SyntaxError("a key must be text", line)
        key = key_node.value
        if key in content:
            reason = f"{_shortened(key)} is given twice (first on line {first_line[key]})"
            raise _SyntaxError(reason, line)
        first_line[key] = line
        content[key] = _value(value_node)
    return content


def _scalar(node: yaml.ScalarNode) -> object:
    text: str = node.value
    if node.style is not None:  # quoted, or a block: always text
        return text
    if _YAML_NULL.fullmatch(text):
        return None
    if _YAML_TRUE.fullmatch(text):
        return True
    if _YAML_FALSE.fullmatch(text):
        return False
    if _YAML_INT.fullmatch(text):
        try:
            # Base 0 would refuse a leading zero, base 10 the prefixes.
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError:
            raise _SyntaxError(_TOO_MANY_DIGITS, node.start_mark.line + 1) from None
    if _YAML_FLOAT.fullmatch(text):
        return float(text)
    if special := _YAML_SPECIAL_FLOAT.fullmatch(text):
        return float(special[1] + "inf") if special[2] else float("nan")
    return text


def _yaml_lines(text: str) -> dict[Location, int]:
    node = _compose_yaml(text)
    return {} if node is None else dict(_node_lines(node, ()))


def _node_lines(node: yaml.Node, at: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _node_lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*at, i), value.start_mark.line + 1
            yield from _node_lines(value, (*at, i))


# --- JSON ----------------------------------------------------------------------------------------


def _parse_json(text: str) -> object:
    if not text.strip():
        return None
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _SyntaxError(f"not valid JSON: {error.msg}", error.lineno) from None
    except ValueError:  # Python's limit on the digits of an integer
        raise _SyntaxError(_TOO_MANY_DIGITS) from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content: dict[str, object] = {}
    for key, value in pairs:
        if key in content:
            raise _SyntaxError(f"{_shortened(key)} is given twice")
        content[key] = value
    return content


def _no_constant(name: str) -> NoReturn:
    raise _SyntaxError(f"not valid JSON: {name} is no number in JSON")


def _json_lines(text: str) -> dict[Location, int]:
    # YAML reads JSON but for tabs, which valid JSON has only between its tokens.
    try:
        return _yaml_lines(text.replace("\t", " "))
    except _SyntaxError:
        return {}


# --- TOML ----------------------------------------------------------------------------------------


def _parse_toml(text: str) -> object:
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_TOML_LINE_CHARS:
            raise _SyntaxError(f"longer than {MAX_TOML_LINE_CHARS} characters", number)
    try:
        return tomllib.loads(text) or None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        reason = str(error)[: at.start()] if at else str(error)
        raise _SyntaxError(f"not valid TOML: {reason}", int(at[1]) if at else None) from None
    except ValueError:  # Python's limit on the digits of an integer
        raise _SyntaxError(_TOO_MANY_DIGITS) from None


def _toml_lines(text: str) -> dict[Location, int]:
    """The line of each key, found by reading statement for statement.

    A statement is the shortest run of lines that is TOML by itself, so text that looks like a key
    inside a longer string is never taken for one.
    """
    lines: dict[Location, int] = {}
    last_element: dict[Location, int] = {}
    table: Location = ()
    statement, started = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        started = started if statement else number
        statement += line + "\n"
        try:
            content = tomllib.loads(statement)
        except (ValueError, RecursionError):
            if number - started > MAX_TOML_STATEMENT_LINES:
                break
            continue
        if statement.lstrip().startswith("["):
            table = _toml_table(content, last_element)
            lines.setdefault(table, started)
        else:
            for place in _toml_places(content, table):
                lines.setdefault(place, started)
        statement = ""
    return lines


def _toml_table(header: dict[str, Any], last_element: dict[Location, int]) -> Location:
    """Where the table of a header is: `[a.b]`, or the next element of `[[a]]`."""
    table: Location = ()
    inner: object = header
    while isinstance(inner, dict) and inner:
        key, inner = next(iter(inner.items()))
        table = (*table, key)
        if isinstance(inner, list):
            last_element[table] = last_element.get(table, -1) + 1
        if table in last_element:  # a table below [[a]] belongs to its last element
            table = (*table, last_element[table])
    return table


def _toml_places(value: object, at: Location) -> Iterator[Location]:
    if isinstance(value, dict):
        parts: Iterable[tuple[str | int, object]] = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return
    for key, part in parts:
        yield (*at, key)
        yield from _toml_places(part, (*at, key))


@dataclass(frozen=True, slots=True)
class _Format:
    """How a format's text becomes data, and where in the text each key and element is."""

    parse: Callable[[str], object]
    lines: Callable[[str], dict[Location, int]]


_YAML = _Format(_parse_yaml, _yaml_lines)
_FORMATS = {
    ".toml": _Format(_parse_toml, _toml_lines),
    ".json": _Format(_parse_json, _json_lines),
}


def _format_of(path: Path) -> _Format:
    return _FORMATS.get(path.suffix.lower(), _YAML)


# --- Hints ---------------------------------------------------------------------------------------


def _unknown_key(key: str, known: list[str]) -> str:
    hint = suggestion(key, known) or ";"
    return f"unknown key {_shortened(key)}{hint} known here: {', '.join(known)}"


def _known_keys(schema: type[BaseModel], where: Location) -> list[str]:
    """The keys that `schema` allows at `where`."""
    current: list[type[BaseModel]] = [schema]
    for part in where:
        fields = [
            field
            for model in current
            for name, field in model.model_fields.items()
            if part in (name, field.alias)
        ]
        # An index, a key of a dict or the tag of a union names no field: what holds it stays.
        if fields:
            current = [model for field in fields for model in _models_in(field.annotation)]
    return [field.alias or name for model in current for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = getattr(annotation, "__args__", ())
    return [model for argument in arguments for model in _models_in(argument)]
