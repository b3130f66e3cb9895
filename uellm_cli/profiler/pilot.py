"""The pilot: a few requests that are answered first, to learn how long this model's answers are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.errors import UsageError
from uellm_cli.types import ProfiledRequest

# What is enough to find a tenth of the answers, and what more hardly improves on (docs/LOG.md).
LEAST, MOST = 32, 300
SHARE = 0.02
# A pilot is worth its while where so many times as many requests come after it.
TIMES = 10


@dataclass(frozen=True, slots=True)
class Pilot:
    """How many requests: a `share` of them, or a `count`; by default as many as pay.

    `is_automatic` leaves it to the file and the predictor whether there is a pilot at all.
    """

    share: float | None = None
    count: int | None = None
    is_automatic: bool = False

    @property
    def is_asked(self) -> bool:
        return self.share is not None or self.count is not None

    def size(self, requests: int) -> int:
        if self.count is not None:
            return min(self.count, requests)
        if self.share is not None:
            return min(max(round(self.share * requests), 1), requests)
        if not self.is_automatic:
            return 0
        size = min(max(round(SHARE * requests), LEAST), MOST)
        return size if requests >= TIMES * size else 0


AUTOMATIC = "auto"
OFF = "off"


def parse_pilot(text: str) -> Pilot:
    """`auto`, `off`, a share as `2%`, or a number of requests; UsageError for anything else."""
    if text == AUTOMATIC:
        return Pilot(is_automatic=True)
    if text == OFF:
        return Pilot()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if 0 < share <= 1:
                return Pilot(share=share)
        elif int(text) > 0:
            return Pilot(count=int(text))
    except ValueError:
        pass
    raise UsageError(
        f"--pilot {text!r} is neither a share of the requests, as 2%, nor a number of them, nor "
        f"{AUTOMATIC} or {OFF}"
    )


def chosen(requests: Sequence[ProfiledRequest], size: int, seed: int) -> frozenset[str]:
    """`size` of the requests at random, the same ones whatever their order."""
    names = sorted(request.custom_id for request in requests)
    return frozenset(random.Random(seed).sample(names, size))  # noqa: S311 - no secret
