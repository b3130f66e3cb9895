from __future__ import annotations

import pytest

from tests.builders import profiled
from uellm_cli.errors import UsageError
from uellm_cli.profiler.pilot import chosen, parse_pilot


@pytest.mark.parametrize(
    ("text", "requests", "size"),
    [
        ("2%", 1000, 20),
        ("2%", 10, 1),
        ("100%", 7, 7),
        ("50", 1000, 50),
        ("50", 7, 7),
        ("off", 1000, 0),
        ("auto", 200, 0),
        ("auto", 319, 0),
        ("auto", 320, 32),
        ("auto", 5000, 100),
        ("auto", 1_000_000, 300),
    ],
)
def test_a_pilot_s_size_is_what_was_asked_or_what_pays(text: str, requests: int, size: int) -> None:
    assert parse_pilot(text).size(requests) == size


@pytest.mark.parametrize("text", ["0", "-3", "0%", "101%", "nan%", "many", "", "%", "1.5"])
def test_what_is_no_pilot_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a share"):
        parse_pilot(text)


def test_a_pilot_is_drawn_whatever_the_order_and_by_the_seed() -> None:
    requests = [profiled(f"r{i}") for i in range(200)]
    first = chosen(requests, 40, seed=1)
    assert first == chosen(requests[::-1], 40, seed=1)
    assert len(first) == 40
    assert first != chosen(requests, 40, seed=2)
