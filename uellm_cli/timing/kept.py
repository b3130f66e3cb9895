"""Step times that runs have measured, kept for the plans that follow.

One small file for each engine, model, dtype and machine, in the user's cache folder or where
UELLM_STEP_TIMES says; "off" keeps and reads none. A plan stands without: what cannot be read is as
if it were not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from uellm_cli.atomic import cache_folder, write_json
from uellm_cli.errors import OutputError
from uellm_cli.timing.fit import Fit
from uellm_cli.types import StepTimes

VARIABLE = "UELLM_STEP_TIMES"
# Of the times' own meaning: others are not understood.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class StepKey:
    """What step times hold for; devices by their names."""

    engine: str
    dtype: str
    model_fingerprint: str
    devices: tuple[str, ...]

    @property
    def file_name(self) -> str:
        told = "\0".join(str(value) for value in asdict(self).values())
        return f"{self.engine}-{hashlib.blake2b(told.encode(), digest_size=12).hexdigest()}.json"


@dataclass(frozen=True, slots=True)
class KeptSteps:
    """`error` is the fit's median error, over `samples` steps."""

    key: StepKey
    times: StepTimes
    samples: int
    error: float
    format: int = FORMAT


def folder_of(environment: Mapping[str, str]) -> Path | None:
    """Where step times are kept; None where they are not."""
    told = environment.get(VARIABLE, "")
    if told.lower() == "off":
        return None
    return Path(told) if told else cache_folder("step-times", environment)


def read_steps(folder: Path, key: StepKey) -> StepTimes | None:
    """The times that were kept for `key`, if there are any that can be read."""
    try:
        kept = msgspec.json.decode((folder / key.file_name).read_bytes(), type=KeptSteps)
    except (OSError, msgspec.DecodeError):
        return None
    times = kept.times
    is_sane = min(times.fixed_s, times.per_prefill_token_s, times.per_sequence_s) >= 0
    return times if kept.key == key and kept.format == FORMAT and is_sane else None


def keep_steps(folder: Path, key: StepKey, fit: Fit) -> None:
    """Keeps what was fitted; OutputError where that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    write_json(folder / key.file_name, KeptSteps(key, fit.times, fit.samples, fit.error))
