"""The floor's arithmetic in round numbers, and that its rates can be measured."""

from __future__ import annotations

import math

import pytest

from tests.builders import model_spec
from uellm_cli.bench.floor import Rates, Sizes, floor_s, measure_rates

# 100 parameters, and one value of KV a token.
SIZES = Sizes(layer_parameters=80, head_parameters=20, kv_values_per_token=1, hidden_size=8)
FAST = math.inf


def floor(
    *lengths: tuple[int, int],
    bytes_per_s: float = FAST,
    flops_per_s: float = FAST,
    max_sequences: int = 10,
    prefill_tokens: int = 1000,
    element_bytes: int = 1,
) -> float:
    return floor_s(
        lengths,
        SIZES,
        Rates(bytes_per_s, 0.0, 0.0, flops_per_s),
        element_bytes=element_bytes,
        max_sequences=max_sequences,
        prefill_tokens=prefill_tokens,
    )


def test_where_memory_bounds_each_step_reads_all_weights_and_the_cache() -> None:
    # 100 bytes a second. The prompt's step reads 100, the next 100 + 5, the last 100 + 6.
    assert floor((4, 3), bytes_per_s=100.0) == pytest.approx(1.0 + 1.05 + 1.06)
    assert floor((4, 3), bytes_per_s=100.0, element_bytes=2) == pytest.approx(2 * 3.11)


def test_where_arithmetic_bounds_prompts_go_through_the_layers_and_once_through_the_head() -> None:
    # The prompt: 2 * (10 * 80 + 20) = 1640. A token more: 2 * 100.
    assert floor((10, 1), flops_per_s=100.0) == pytest.approx(16.4)
    assert floor((10, 2), flops_per_s=100.0) == pytest.approx(16.4 + 2.0)


def test_rows_share_a_reading_of_the_weights_and_no_more_than_may_run_together() -> None:
    # Alone: 100 + (100 + 1 + 1). Together 100, then 100 + 2 * 2; one after the other, twice alone.
    alone = floor((1, 2), bytes_per_s=100.0)
    assert alone == pytest.approx(2.02)
    assert floor((1, 2), (1, 2), bytes_per_s=100.0) == pytest.approx(1.0 + 1.04)
    assert floor((1, 2), (1, 2), bytes_per_s=100.0, max_sequences=1) == pytest.approx(2 * alone)


def test_the_longest_answer_begins_first() -> None:
    # Two rows at a time: 4 steps with the longest first, 5 if it waited for the short ones.
    works = ((0, 2), (0, 2), (0, 4))
    sizes = Sizes(80, 20, kv_values_per_token=0, hidden_size=8)
    steps = floor_s(
        works,
        sizes,
        Rates(100.0, 0.0, 0.0, FAST),
        element_bytes=1,
        max_sequences=2,
        prefill_tokens=9,
    )
    assert steps == pytest.approx(4.0)


def test_prompts_of_a_step_stay_within_its_tokens_but_a_long_one_goes_alone() -> None:
    # 60 + 60 do not fit into 100 together: the second begins a step later.
    sizes = Sizes(80, 20, kv_values_per_token=0, hidden_size=8)
    rates = Rates(100.0, 0.0, 0.0, FAST)

    def steps(prompt_tokens: int) -> float:
        lengths = [(prompt_tokens, 1)] * 2
        return floor_s(lengths, sizes, rates, element_bytes=1, max_sequences=9, prefill_tokens=100)

    assert steps(50) == pytest.approx(1.0)
    assert steps(60) == pytest.approx(2.0)
    assert steps(500) == pytest.approx(2.0)


def test_nothing_to_do_takes_no_time() -> None:
    assert floor(bytes_per_s=1.0) == 0.0


def test_a_model_s_sizes_are_numbers_of_weights_whatever_they_are_stored_as() -> None:
    # 4 layers of 1000 bytes, 2 bytes a weight, and 1 byte of KV per token and layer.
    assert Sizes.of(model_spec()) == Sizes(2000, 250, 2, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rates_are_measured(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uellm_cli.bench.floor.READ_BYTES", 2**24)
    monkeypatch.setattr("uellm_cli.bench.floor.TURNS_S", 0.0)
    rates = measure_rates("cpu", dtype, 1, Sizes(1000, 100, 1, hidden_size=64), rows=4)
    # No machine that runs this is slower than a tenth of a GB/s, or faster than 100 TB/s.
    assert 1e8 < rates.bandwidth_bytes_per_s < 1e14
    assert 1e7 < rates.flops_per_s < 1e16
