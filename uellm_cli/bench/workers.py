"""Engines as processes: each loads once, then waits for its rounds."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from uellm_cli.bench.serve import Job

# What follows an engine's name where it is given the requests with the longest answers first.
LONGEST_FIRST = ":longest-first"
GRACE_S = 5.0
SHOWN_CHARACTERS = 200


class Ready(msgspec.Struct, frozen=True):
    """A worker has loaded its engine; the first of `versions` is the engine's own."""

    versions: dict[str, str]
    load_s: float


class Round(msgspec.Struct, frozen=True):
    """One round as a worker tells it; see `serve.py`."""

    seconds: float
    output_tokens: list[int]
    ttft_s: list[float] | None = None
    tokens: list[list[int]] | None = None
    texts: list[str] | None = None


AnswerT = TypeVar("AnswerT", Ready, Round)


@dataclass(frozen=True, slots=True)
class Entrant:
    """An engine that takes part, the command that is its worker, and the order it is given."""

    engine: str
    command: tuple[str, ...]
    is_peer: bool = False
    is_longest_first: bool = False

    @property
    def name(self) -> str:
        """What it is called in the table, and asked for by."""
        return f"{self.engine}{LONGEST_FIRST}" if self.is_longest_first else self.engine


class WorkerError(Exception):
    """Why a worker is out, in a few words for the table."""


class Worker:
    """A running worker; use as a context manager. What it prints beside answers goes to `log`."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - the bench's own command
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,  # so that it ends with all that it started
            )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, job: Job, timeout_s: float) -> Ready:
        self._send(msgspec.json.encode(job))
        return self._answer(Ready, timeout_s)

    def round(self, requests: int, timeout_s: float) -> Round:
        """One round over the job's first `requests`; WorkerError when there is no answer to it."""
        self._send(msgspec.json.encode({"requests": requests}))
        return self._answer(Round, timeout_s)

    def cpu_s(self) -> float:
        """Processor seconds that it has taken so far, with its children's."""
        total = 0.0
        with suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    times = each.cpu_times()
                    total += times.user + times.system
        return total

    def close(self) -> None:
        """Lets it end by itself, and ends it where it does not."""
        if self._process.poll() is None:
            self._send(b'{"bye": true}')
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        self.kill()

    def kill(self) -> None:
        """Ends it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _send(self, line: bytes) -> None:
        # In a thread: a worker that does not read must not hold up the others.
        threading.Thread(target=self._write, args=(line + b"\n",), daemon=True).start()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        with suppress(OSError, ValueError):  # what is wrong with it shows when it does not answer
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _answer(self, kind: type[AnswerT], timeout_s: float) -> AnswerT:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerError(f"no answer within {timeout_s:g} s") from None
        if not line:
            raise WorkerError(self._last_words())
        try:
            return msgspec.json.decode(line, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            shown = line[:SHOWN_CHARACTERS].decode(errors="backslashreplace").strip()
            raise WorkerError(f"answered with {shown!r}") from None

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        lines = self.log.read_text(errors="backslashreplace").strip().splitlines()
        said = f": {lines[-1][:SHOWN_CHARACTERS]}" if lines else ""
        return f"ended with code {self._process.returncode}{said}"
