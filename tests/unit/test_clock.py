from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm_cli.clock import SystemClock, VirtualClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_virtual_clock_moves_only_when_told_and_takes_the_wall_along() -> None:
    clock = VirtualClock(NOON, now_s=5.0)
    assert (clock.now_s(), clock.wall()) == (5.0, NOON)
    clock.advance(90)
    assert (clock.now_s(), clock.wall()) == (95.0, NOON + timedelta(seconds=90))


def test_a_virtual_clock_never_goes_back() -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        VirtualClock(NOON).advance(-1)


def test_the_system_clock_knows_its_offset_from_utc() -> None:
    clock = SystemClock()
    assert clock.wall().utcoffset() is not None
    assert clock.now_s() <= clock.now_s()
