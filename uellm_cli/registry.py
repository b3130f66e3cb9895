"""Named variants, imported only when one is asked for.

A room (schedulers, predictors, engines, …) keeps one table `name -> "module:Class"` in its
`__init__`. A variant is a frozen dataclass whose fields are its options, so that one file and one
line add a variant, its options, and their place in `--help` and in error messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from uellm_cli.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """The variants of one kind of part."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def variant(self, name: str) -> type[T]:
        """The class registered under `name`; UsageError lists the names there are."""
        if name not in self._entries:
            known = ", ".join(self.names())
            raise UsageError(f"there is no {self.kind} called {name!r}; there are: {known}")
        module, _, attribute = self._entries[name].partition(":")
        return cast("type[T]", getattr(import_module(module), attribute))

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """An instance of `name` with `options`, whose values may be text from the command line.

        Raises UsageError for an option that the variant does not have or a value it cannot take.
        """
        import msgspec

        variant = self.variant(name)
        known = [field.name for field in fields(cast("Any", variant))]
        for option in options or {}:
            if option not in known:
                offered = f"its options are: {', '.join(known)}" if known else "it has no options"
                raise UsageError(f"{self.kind} {name!r} has no option {option!r}; {offered}")
        try:
            return msgspec.convert(dict(options or {}), variant, strict=False, dec_hook=_as_path)
        except (msgspec.ValidationError, ValueError) as error:
            raise UsageError(f"{self.kind} {name!r}: {error}") from None


def _as_path(wanted: type, value: object) -> Path:
    """The only kind of option that msgspec does not know."""
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(f"options of type {wanted.__name__} cannot be read")
