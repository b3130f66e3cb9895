"""What a user can ask for, in one type: the flags of the commands, parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant by its registered name, and its options as given."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


class OnLate(StrEnum):
    """What happens to a request whose deadline is past before it is run."""

    RUN = "run"
    SKIP = "skip"


class OutputFormat(StrEnum):
    """What answers are written as; JSON lines are always written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


class Redoable(StrEnum):
    """Kinds of results that can be made again."""

    FAILED = "failed"
    EXPIRED = "expired"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Resume:
    """How to go on with a run.

    `redo` kinds of results are made again, with at least `max_tokens` to say if that is given.
    `changed_only` allows inputs that have changed, and answers what is new or different in them.
    `changes` are settings given anew, by their names in `Settings`; the others stay as they were.
    """

    redo: tuple[Redoable, ...] = ()
    max_tokens: int | None = None
    changed_only: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides a plan and a run; kept in `run.json`, where a resume finds it.

    `model` is None for the bundled one. `max_batch` is the most rows that run at a time, None for
    as many as suit the engine and fit the devices.
    `pilot` says how many requests are answered first to learn from (`profiler/pilot.py`).
    `plan` is the file of a plan that is followed as it is. `calibrate` has the engine's step times
    measured first where that is worth it.
    `durability` says when results are put on the disk (`executor/durability.py`).
    """

    predictor: Choice
    scheduler: Choice
    placement: Choice
    engine: Choice
    requests: tuple[str, ...] = ()
    slo_file: str | None = None
    model: str | None = None
    topology: str | None = None
    max_tokens: int | None = None
    max_batch: int | None = None
    limit: int | None = None
    strict: bool = False
    truncate_prompt: bool = False
    trust_remote_code: bool = False
    on_late: OnLate = OnLate.RUN
    pilot: str = "off"
    plan: str | None = None
    calibrate: bool = False
    durability: str = "batch"
    output_format: OutputFormat = OutputFormat.JSONL
    seed: int = 0
