"""Targets of `--goodput ttft:200,tpot:50,e2el:5000`, in the names and milliseconds of vllm.

Goodput is the rate of requests that keep all their targets (DistServe, arXiv 2401.09670); as in
`vllm bench serve`, an answer of one token has no TPOT and keeps any TPOT target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from uellm_cli.errors import UsageError
from uellm_cli.report.rows import LatencyRow, within

_FIELDS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}


@dataclass(frozen=True, slots=True)
class GoodputTargets:
    """The same targets for every request; None is not asked for."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


def parse_goodput(text: str) -> GoodputTargets:
    """The targets in `text`; UsageError for an unknown or repeated name or an impossible time."""
    targets: dict[str, float] = {}
    for part in text.split(","):
        name, _, milliseconds = part.strip().partition(":")
        if name not in _FIELDS:
            raise UsageError(
                f"--goodput: {part.strip()!r} is no target; write for example ttft:200 with one "
                f"of {', '.join(_FIELDS)} and milliseconds"
            )
        if _FIELDS[name] in targets:
            raise UsageError(f"--goodput: {name} is given twice")
        targets[_FIELDS[name]] = _seconds(name, milliseconds)
    return GoodputTargets(**targets)


def _seconds(name: str, milliseconds: str) -> float:
    try:
        value = float(milliseconds)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"--goodput: {name} needs milliseconds above 0, not {milliseconds!r}")
    return value / 1000


def is_good(row: LatencyRow, targets: GoodputTargets) -> bool:
    """Whether a request was answered and keeps every target."""
    return (
        row.error is None
        and within(row.ttft_s, targets.ttft_s)
        and within(row.tpot_s, targets.tpot_s)
        and within(row.e2e_s, targets.e2e_s)
    )
