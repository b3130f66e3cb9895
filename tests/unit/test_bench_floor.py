"""The floor: its arithmetic in round numbers, that no schedule is below it, and its rates."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import model_spec
from uellm_cli.bench.floor import Rates, Sizes, floor_s, least_steps, measure_rates

# 100 parameters, and one value of KV a token.
SIZES = Sizes(layer_parameters=80, head_parameters=20, kv_values_per_token=1, hidden_size=8)
FAST = math.inf
Lengths = tuple[tuple[int, int], ...]


def floor(
    *lengths: tuple[int, int],
    bytes_per_s: float = FAST,
    flops_per_s: float = FAST,
    max_sequences: int = 10,
    element_bytes: int = 1,
) -> float:
    return floor_s(
        lengths,
        SIZES,
        Rates(bytes_per_s, 0.0, flops_per_s),
        element_bytes=element_bytes,
        max_sequences=max_sequences,
    )


def test_where_memory_bounds_each_step_reads_all_weights_and_the_cache() -> None:
    # 100 bytes a second. The first token's step reads 100, the next 100 + 4, the last 100 + 5.
    assert floor((4, 3), bytes_per_s=100.0) == pytest.approx(1.0 + 1.04 + 1.05)
    assert floor((4, 3), bytes_per_s=100.0, element_bytes=2) == pytest.approx(2 * 3.09)


def test_where_arithmetic_bounds_all_but_the_last_token_go_through_the_layers() -> None:
    # The prompt: 2 * (10 * 80 + 20) = 1640. A token more: 2 * 100.
    assert floor((10, 1), flops_per_s=100.0) == pytest.approx(16.4)
    assert floor((10, 2), flops_per_s=100.0) == pytest.approx(16.4 + 2.0)


def test_the_slower_of_both_counts_and_they_are_not_added() -> None:
    # Reading takes 3.09 s as above; 12 tokens of 160 and three of 40 are 13.6 s.
    lengths = ((10, 3),)
    reads, computes = floor(*lengths, bytes_per_s=100.0), floor(*lengths, flops_per_s=100.0)
    assert floor(*lengths, bytes_per_s=100.0, flops_per_s=100.0) == max(reads, computes)


def test_rows_share_a_reading_of_the_weights_and_no_more_than_may_run_together() -> None:
    # Alone: 100 + (100 + 1). Together 100, then 100 + 2; one after the other, twice alone.
    alone = floor((1, 2), bytes_per_s=100.0)
    assert alone == pytest.approx(2.01)
    assert floor((1, 2), (1, 2), bytes_per_s=100.0) == pytest.approx(1.0 + 1.02)
    assert floor((1, 2), (1, 2), bytes_per_s=100.0, max_sequences=1) == pytest.approx(2 * alone)


def test_steps_are_as_many_as_the_longest_answer_or_as_full_seats_take() -> None:
    # Longest first makes 7 of this, and 3 + 3 beside 2 + 2 + 2 makes 6.
    assert least_steps([3, 3, 2, 2, 2], 2) == 6
    assert least_steps([9, 1, 1], 2) == 9
    assert least_steps([1, 1, 1], 2) == 2
    assert least_steps([], 2) == 0


def test_nothing_to_do_takes_no_time() -> None:
    assert floor(bytes_per_s=1.0, flops_per_s=1.0) == 0.0
    assert floor((5, 0), bytes_per_s=1.0, flops_per_s=1.0) == 0.0


def shortest_s(lengths: Lengths, bytes_per_s: float, flops_per_s: float, seats: int) -> float:
    """By trying every schedule: rows may even give their seats up and come back at no cost."""

    @functools.cache
    def rest_s(made: tuple[int, ...]) -> float:
        open_rows = [i for i, (_, wanted) in enumerate(lengths) if made[i] < wanted]
        if not open_rows:
            return 0.0
        most = min(seats, len(open_rows))
        return min(
            step_s(rows, made) + rest_s(tuple(n + (i in rows) for i, n in enumerate(made)))
            for count in range(1, most + 1)
            for rows in combinations(open_rows, count)
        )

    def step_s(rows: tuple[int, ...], made: tuple[int, ...]) -> float:
        read, flops = float(SIZES.parameters), 0.0
        for i in rows:
            prompt = lengths[i][0]
            if made[i]:
                read += SIZES.kv_values_per_token * (prompt + made[i] - 1)
            tokens = 1 if made[i] else prompt
            flops += 2.0 * (tokens * SIZES.layer_parameters + SIZES.head_parameters)
        return max(read / bytes_per_s, flops / flops_per_s)

    return rest_s((0,) * len(lengths))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=5).map(
        tuple
    ),
    bytes_per_s=st.sampled_from((30.0, 100.0, 1e6)),
    flops_per_s=st.sampled_from((300.0, 3000.0, 1e6)),
    seats=st.integers(1, 3),
)
def test_no_schedule_is_shorter_than_the_floor(
    lengths: Lengths, bytes_per_s: float, flops_per_s: float, seats: int
) -> None:
    bound = floor(*lengths, bytes_per_s=bytes_per_s, flops_per_s=flops_per_s, max_sequences=seats)
    assert 0 < bound <= shortest_s(lengths, bytes_per_s, flops_per_s, seats) * (1 + 1e-9)


def test_the_floor_is_reached_where_every_step_is_bound_by_the_same_thing() -> None:
    lengths = ((1, 3), (1, 3), (1, 2), (1, 2), (1, 2))
    found = floor(*lengths, bytes_per_s=100.0, max_sequences=2)
    assert found == pytest.approx(shortest_s(lengths, 100.0, FAST, seats=2))


def test_a_model_s_sizes_are_numbers_of_weights_whatever_they_are_stored_as() -> None:
    # 4 layers of 1000 bytes, 2 bytes a weight, and 1 byte of KV per token and layer.
    assert Sizes.of(model_spec()) == Sizes(2000, 250, 2, 8)


def least_s(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(20):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rates_are_about_those_that_numpy_reaches(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uellm_cli.bench.floor.READ_BYTES", 2**24)
    monkeypatch.setattr("uellm_cli.bench.floor.TURNS_S", 0.05)
    rates = measure_rates("cpu", dtype, 1, Sizes(2**22, 0, 1, hidden_size=64), rows=4)

    values = np.ones(2**22, np.float32)
    reads = values.nbytes / least_s(lambda: values.max())
    one, other = np.ones((512, 1024), np.float32), np.ones((1024, 1024), np.float32)
    multiplies = 2 * 512 * 1024**2 / least_s(lambda: one @ other)
    # numpy has a thread as we do, or all of some machine's cores.
    assert reads / 10 < rates.bandwidth_bytes_per_s < reads * 10
    # A processor's bfloat16 is up to 16 times as fast as its float32; without any, far slower.
    fastest, slowest = (4, 10) if dtype == "float32" else (40, 100)
    assert multiplies / slowest < rates.flops_per_s < multiplies * fastest
