"""When results are put on the disk: after each result, after each batch, or every so often.

Whatever the schedule, a result is handed to the operating system as soon as the engine hands it
back, so a killed process loses nothing of it. The schedule decides what a power cut may cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm_cli.errors import UsageError
from uellm_cli.requests.slo import parse_duration


@dataclass(frozen=True, slots=True)
class Durability:
    """`each_result`, or at most `every_s` seconds after it came; neither: with each batch."""

    each_result: bool = False
    every_s: float | None = None


EACH_BATCH = Durability()


def parse_durability(text: str) -> Durability:
    """`result`, `batch` or a duration such as `5s`; UsageError for anything else."""
    if text == "result":
        return Durability(each_result=True)
    if text == "batch":
        return EACH_BATCH
    try:
        return Durability(every_s=parse_duration(text))
    except ValueError:
        raise UsageError(
            f"--durability: {text!r} is neither result, batch nor a duration such as 5s"
        ) from None
