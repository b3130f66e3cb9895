"""Time as an argument: whoever needs it is handed a clock, and tests hand in their own."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for measuring, and local wall time for deadlines such as "09:00"."""

    def now_s(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...

    def wall(self) -> datetime:
        """Local time, with its offset from UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_s(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now().astimezone()


class VirtualClock:
    """A clock that only moves when told to, for simulated engines and tests."""

    def __init__(self, started: datetime, now_s: float = 0.0) -> None:
        self._started = started
        self._origin_s = now_s
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def wall(self) -> datetime:
        return self._started + timedelta(seconds=self._now_s - self._origin_s)

    def advance(self, seconds: float) -> None:
        """Moves time forward; raises ValueError if asked to go back."""
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds} s")
        self._now_s += seconds
