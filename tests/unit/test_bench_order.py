"""Requests handed over in another order, and answers put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_bench_workers import job
from uellm_cli.bench.order import longest_first, order_for, put_back
from uellm_cli.bench.workers import Entrant, Round


def test_the_longest_come_first_and_equals_stay_in_order() -> None:
    assert longest_first([5, 9, 5, 7]) == [1, 3, 0, 2]


def test_only_who_is_asked_for_so_is_given_the_longest_first(tmp_path: Path) -> None:
    asked = replace(job(tmp_path), output_tokens=[2, 3])
    assert order_for(Entrant("any", ()), asked) == [0, 1]
    assert order_for(Entrant("any", (), is_peer=True, is_longest_first=True), asked) == [1, 0]


@given(st.lists(st.integers(1, 9), min_size=1))
def test_answers_put_back_are_in_the_order_of_arrival(output_tokens: list[int]) -> None:
    order = longest_first(output_tokens)
    told = Round(
        1.0,
        [output_tokens[i] for i in order],
        ttft_s=[float(i) for i in order],
        tokens=[[i] for i in order],
        texts=[str(i) for i in order],
    )
    back = put_back(told, order)
    places = range(len(order))
    assert back.output_tokens == output_tokens
    assert back.ttft_s == [float(i) for i in places]
    assert back.tokens == [[i] for i in places]
    assert back.texts == [str(i) for i in places]


def test_what_is_not_told_is_not_put_back() -> None:
    assert put_back(Round(1.0, [2, 1]), [1, 0]) == Round(1.0, [1, 2])
