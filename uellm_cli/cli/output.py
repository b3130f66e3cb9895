"""Where things are shown: text for people on stderr, one JSON document on stdout."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TextIO, cast

from rich.console import Console
from rich.text import Text

from uellm_cli.errors import OutputError
from uellm_cli.report.console import visible


class _Forgiving:
    """Standard error, which a run outlives: a terminal may be closed, a reader have had enough."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self.encoding = getattr(file, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            if self._file is not None:
                self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._file is not None:
                self._file.flush()

    def isatty(self) -> bool:
        try:
            return self._file is not None and self._file.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self._file is None:
            raise OSError("there is no standard error")
        return self._file.fileno()


def _stderr() -> Console:
    return Console(file=cast("IO[str]", _Forgiving(sys.stderr)), highlight=False)


BUNDLED_MODEL_NOTE = "No --model given: using the bundled model, tiny-llm (a toy)."


@dataclass(frozen=True, slots=True)
class Output:
    """What a command may say, by its flags."""

    json: bool = False
    quiet: bool = False
    console: Console = field(default_factory=_stderr)

    def say(self, *renderables: object) -> None:
        """Shows something to a person, unless they asked for quiet; text is never markup."""
        if not self.quiet:
            for renderable in renderables:
                self.console.print(
                    _plain(renderable) if isinstance(renderable, str) else renderable
                )

    def line(self, text: str) -> None:
        """Shows one line, however long: what reads a log does not want it wrapped."""
        if not self.quiet:
            self.console.print(_plain(text), soft_wrap=True)

    def document(self, content: object) -> None:
        """The one JSON document of a command, if it was asked for."""
        if self.json:
            import msgspec

            body = msgspec.json.format(msgspec.json.encode(content), indent=2)
            try:
                sys.stdout.write(body.decode() + "\n")
                sys.stdout.flush()
            except (OSError, ValueError, AttributeError) as error:  # None where it is closed
                raise OutputError(f"standard output cannot be written: {error}") from None


def error_line(message: str) -> None:
    """One sentence on stderr, as plain text whatever it quotes."""
    _stderr().print(Text.assemble(("error: ", "bold red"), _plain(message)), soft_wrap=True)


def _plain(text: str) -> Text:
    return Text("\n".join(visible(line) for line in text.splitlines()))


def amount(size_bytes: float) -> str:
    """Bytes for people: 1.5 GB is 1.5·10⁹ bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people, with two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
