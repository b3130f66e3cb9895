"""Promises: the SLO file, a request's own `slo`, durations and clock times.

    default: {deadline: 30m}
    classes:
      - {name: interactive, match: {metadata.tier: gold}, deadline: 20s, ttft: 2s, weight: 10}
      - {name: nightly, match: {custom_id: "night-*"}, deadline: "09:00"}

The first class whose patterns all match gives a request its SLO; the request's own `slo` beats the
file. A duration counts from the request's start, a clock time is a moment of the run.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from uellm_cli.documents import Location, read_document, suggestion
from uellm_cli.types import SLO, Anchor, Request

# The class names of requests that no class of the file matches: those with their own, and the rest.
OWN_CLASS = "own"
INVALID_CLASS = "invalid"
NO_SLO = SLO()
DEFAULT_CLASS = NO_SLO.name

MAX_DURATION_S = 10 * 365 * 86_400.0

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(
    rf"(?:{_NUMBER}d)?\s*(?:{_NUMBER}h)?\s*(?:{_NUMBER}m)?\s*(?:{_NUMBER}s)?\s*(?:{_NUMBER}ms)?",
    re.ASCII,
)
_UNITS_S = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_CLOCK_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
_MAX_CHARS = 64


# --- Durations and clock times -------------------------------------------------------------------


def parse_duration(value: object) -> float:
    """Seconds from `90`, `"20s"`, `"1h30m"`, `"1500ms"` or `"2.5m"`; a bare number is seconds.

    Raises ValueError unless it is more than zero and at most `MAX_DURATION_S`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"should be a duration such as 20s or 1h30m, not {_shown(value)}")
    seconds = _seconds(value) if isinstance(value, str) else value
    if seconds is None:
        raise ValueError(
            f"{_shown(value)} is no duration; write a number of seconds, or 1500ms, 20s, 30m, "
            "1h30m, 2d"
        )
    if not 0 < seconds < math.inf:  # NaN is neither
        raise ValueError(f"a duration must be more than zero and finite, not {_shown(value)}")
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{_shown(value)} is longer than ten years")
    return float(seconds)


def seconds_until(clock_time: time, started: datetime) -> float:
    """Seconds from `started` to the next moment after it at which clocks show `clock_time`.

    The clocks are those of `started`'s time zone, changes to and from daylight saving included. An
    hour that a change repeats counts at its first showing yet to come; one that it skips counts as
    if the change had not happened.
    """
    for day in (started, started + timedelta(days=1)):
        for fold in (0, 1):
            shown = datetime.combine(day, clock_time.replace(fold=fold, tzinfo=None))
            away_s = (_moment(shown, started) - started).total_seconds()
            if away_s > 0:
                return away_s
    raise AssertionError("the same clock time tomorrow is always ahead")


def _moment(shown: datetime, started: datetime) -> datetime:
    """When clocks show the naive `shown`, in UTC.

    A fixed offset, which is all that `datetime.astimezone()` gives, knows of no clock changes; the
    machine's own zone does, and is asked where it agrees with the offset.
    """
    fixed = isinstance(started.tzinfo, timezone)
    if fixed and started.astimezone().utcoffset() == started.utcoffset():
        return shown.astimezone(UTC)
    return shown.replace(tzinfo=started.tzinfo).astimezone(UTC)


def _seconds(text: str) -> float | None:
    stripped = text.strip()
    if len(stripped) > _MAX_CHARS:
        return None
    if re.fullmatch(_NUMBER, stripped, re.ASCII):
        return float(stripped)
    parts = _DURATION.fullmatch(stripped)
    if not stripped or parts is None:
        return None
    return sum(
        float(part) * unit_s for part, unit_s in zip(parts.groups(), _UNITS_S, strict=True) if part
    )


def _parse_deadline(value: object) -> float | time:
    if isinstance(value, time):  # TOML has clock times
        return value
    if isinstance(value, str) and ":" in value:
        parts = _CLOCK_TIME.fullmatch(value.strip())
        if parts is None:
            raise ValueError(f"{_shown(value)} is no clock time; write 09:00 or 09:00:30")
        return time(int(parts[1]), int(parts[2]), int(parts[3] or 0))
    return parse_duration(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "…"


# --- What is written -----------------------------------------------------------------------------

_Duration = Annotated[float, BeforeValidator(parse_duration)]
_Deadline = Annotated[float | time, BeforeValidator(_parse_deadline)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class Promise(BaseModel):
    """What a class of the file and a request's own `slo` have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline: _Deadline | None = None
    ttft: _Duration | None = None
    tpot: _Duration | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = 1.0

    @model_validator(mode="after")
    def _promises_something(self) -> Promise:
        if self.deadline is None and self.ttft is None and self.tpot is None:
            raise ValueError("promises nothing; give a deadline, ttft or tpot")
        return self

    def slo(self, name: str, started: datetime) -> SLO:
        """The promise as an SLO of a run that began at `started`."""
        deadline, anchor = self.deadline, Anchor.REQUEST
        if isinstance(deadline, time):
            deadline, anchor = seconds_until(deadline, started), Anchor.RUN
        return SLO(name, deadline, anchor, self.ttft, self.tpot, self.weight)


class OwnPromise(Promise):
    """A request's own `slo`."""

    name: _Name = OWN_CLASS


def _pattern_key(key: str) -> str:
    known = ("custom_id", "endpoint")
    if key not in known and not re.fullmatch(r"metadata\..+", key, re.DOTALL):
        hint = suggestion(key, known)
        raise ValueError(
            f"cannot match by {_shown(key)}{hint or ';'} known here: custom_id, endpoint, "
            "metadata.<key>"
        )
    return key


def _pattern(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(f"should be text, a number, true or false, not {_shown(value)}")
    return _as_text(value)


class _SloClass(Promise):
    name: _Name
    match: Annotated[
        dict[
            Annotated[str, AfterValidator(_pattern_key)],
            Annotated[str, BeforeValidator(_pattern)],
        ],
        Field(min_length=1),
    ]


class _SloFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Promise | None = None
    classes: list[_SloClass] = []


# --- What it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SloClass:
    """An SLO and the patterns that a request must all match to get it."""

    slo: SLO
    patterns: tuple[tuple[str, re.Pattern[str]], ...]

    def matches(self, request: Request) -> bool:
        for key, pattern in self.patterns:
            value = _property(request, key)
            if value is None or not pattern.fullmatch(value):
                return False
        return True


@dataclass(frozen=True, slots=True)
class SloRules:
    """Which SLO each request has. Without a file: its own, or none."""

    classes: tuple[SloClass, ...] = ()
    default: SLO = NO_SLO

    def slo_for(self, request: Request) -> SLO:
        """The request's own SLO, that of the first class that matches, or the default."""
        if request.slo is not None:
            return request.slo
        return next((c.slo for c in self.classes if c.matches(request)), self.default)


def load_slo_rules(path: Path, started: datetime) -> SloRules:
    """The rules of an SLO file for a run that began at `started` (aware, local time).

    Patterns are shell globs (`*`, `?`, `[…]`), upper and lower case told apart; numbers and
    booleans match the same value, written as a number or as text. Raises DocumentError with the
    file, the line and what is wrong there.
    """
    document = read_document(path, "SLO file")
    spec = document.validated(_SloFile)
    if spec.default is None and not spec.classes:
        raise document.error((), "neither a default nor any classes")
    if clash := _name_clash(spec.classes):
        raise document.error(*clash)
    return SloRules(
        classes=tuple(SloClass(c.slo(c.name, started), _compiled(c.match)) for c in spec.classes),
        default=spec.default.slo(DEFAULT_CLASS, started) if spec.default else NO_SLO,
    )


def _name_clash(classes: list[_SloClass]) -> tuple[Location, str] | None:
    taken = {
        DEFAULT_CLASS: "the requests that no class matches",
        OWN_CLASS: "the requests with an slo of their own",
        INVALID_CLASS: "the lines that are no requests",
    }
    for i, entry in enumerate(classes):
        if entry.name in taken:
            return ("classes", i, "name"), f"{entry.name!r} already names {taken[entry.name]}"
        taken[entry.name] = f"classes[{i}]"
    return None


def _compiled(patterns: Mapping[str, str]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    # fnmatch translates to atomic groups, so no pattern backtracks without end.
    return tuple((key, re.compile(fnmatch.translate(glob))) for key, glob in patterns.items())


def _property(request: Request, key: str) -> str | None:
    if key == "custom_id":
        return request.custom_id
    if key == "endpoint":
        return request.endpoint.value
    value = request.metadata.get(key.removeprefix("metadata."))
    return None if value is None else _as_text(value)


def _as_text(value: str | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def own_slo(spec: Mapping[str, Any], started: datetime) -> SLO:
    """A request's own `slo` object as an SLO; raises pydantic's ValidationError."""
    promise = OwnPromise.model_validate(spec)
    return promise.slo(promise.name, started)
