from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm_cli.types import (
    QUANTILE_LEVELS,
    SLO,
    Anchor,
    LayerSpec,
    LengthEstimate,
    Source,
    StepTimes,
    layer_kv_bytes,
)

ESTIMATE = LengthEstimate((5, 10, 25, 50, 75, 90, 95, 99), "test")


def test_an_estimate_gives_its_stored_quantiles_and_lines_between_them() -> None:
    assert [ESTIMATE.at(level) for level in QUANTILE_LEVELS] == list(ESTIMATE.tokens)
    assert ESTIMATE.at(0.6) == pytest.approx(60)  # two fifths from 50 to 75
    assert (ESTIMATE.at(0.0), ESTIMATE.at(1.0)) == (5, 99)
    assert (ESTIMATE.p50, ESTIMATE.p90) == (50, 90)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_an_estimate_never_falls_as_the_level_rises(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert ESTIMATE.at(low) <= ESTIMATE.at(high)


def test_a_deadline_counts_from_the_request_or_from_the_run_as_it_says() -> None:
    assert SLO(deadline_s=30).latest_finish_s(arrival_s=5) == 35
    assert SLO(deadline_s=30, anchor=Anchor.RUN).latest_finish_s(arrival_s=5) == 30
    assert SLO().latest_finish_s(arrival_s=5) is None


def test_a_window_bounds_the_cache_of_a_layer_and_a_state_does_not_grow() -> None:
    assert layer_kv_bytes(LayerSpec(0, 0, 2), 1000) == 2000
    assert layer_kv_bytes(LayerSpec(0, 0, 2, kv_window_tokens=100), 1000) == 200
    assert layer_kv_bytes(LayerSpec(0, 0, 0, state_bytes=7), 1000) == 7


def test_decode_steps_in_closed_form_equal_their_sum() -> None:
    step = StepTimes(1.0, 0.5, 0.25, 0.125, Source.ASSUMED)
    rows, prompt, steps = 3, 10, 4
    one_by_one = sum(1.0 + 0.25 * rows + 0.125 * rows * (prompt + t) for t in range(1, steps + 1))
    assert step.decode_s(rows, prompt, steps) == pytest.approx(one_by_one)
    assert step.decode_s(rows, prompt, 0) == 0
    assert step.prefill_s(rows, prompt) == 1.0 + 0.5 * 30 + 0.25 * 3
