from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.builders import ONE_SECOND_STEPS, profiled
from tests.unit.scheduling_cases import IN_FLIGHT, STATIC, conditions, in_order
from uellm_cli.columns import RequestColumns, columns_of
from uellm_cli.timing.in_flight import simulate_in_flight
from uellm_cli.timing.outcomes import Outcomes, breaks_promise
from uellm_cli.timing.simulator import alone_s, alone_seconds, simulate, static_batch_times
from uellm_cli.timing.slots import simulate_slots
from uellm_cli.types import (
    SLO,
    Batching,
    Budget,
    Conditions,
    LengthEstimate,
    Source,
    StepTimes,
)

# With steps of one second an answer of n tokens takes n seconds: one prefill, n - 1 decode steps.
STEP = StepTimes(0.01, 0.0002, 0.001, 0.000_002, Source.ASSUMED)


def requests_of(*outputs: int, prompt_tokens: int = 10) -> RequestColumns:
    return columns_of(
        [
            profiled(f"r{i}", output=output, prompt_tokens=prompt_tokens)
            for i, output in enumerate(outputs)
        ]
    )


def lengths(columns: RequestColumns) -> np.typing.NDArray[np.int64]:
    return np.rint(columns.p50).astype(np.int64)


def run(columns: RequestColumns, under: Conditions, *sizes: int) -> Outcomes:
    return simulate(columns, in_order(columns, *sizes), lengths(columns), under)


# --- Static batches ------------------------------------------------------------------------------


def test_a_static_batch_runs_to_its_longest_answer() -> None:
    times = static_batch_times([10, 20], [3, 8], ONE_SECOND_STEPS)
    assert (times.first_token_s, times.finished_s) == (1.0, 8.0)


def test_batches_run_one_after_another_and_hand_back_all_their_answers_at_once() -> None:
    outcomes = run(requests_of(3, 8, 2), replace(STATIC, start_s=100.0), 2, 1)
    assert outcomes.finished_s.tolist() == [108.0, 108.0, 110.0]
    assert outcomes.first_token_s.tolist() == [101.0, 101.0, 109.0]
    assert outcomes.prefill_s.tolist() == [100.0, 100.0, 108.0]


def test_a_request_with_several_answers_runs_as_many_rounds() -> None:
    requests = [structs.replace(profiled("a", output=4), rounds=3), profiled("b", output=2)]
    columns = columns_of(requests)
    assert run(columns, STATIC).finished_s.tolist() == [12.0, 12.0]


def test_a_batch_waits_for_its_last_member_to_arrive() -> None:
    requests = [profiled("a", output=3), profiled("b", output=3, arrival_s=5.0)]
    assert run(columns_of(requests), STATIC).finished_s.tolist() == [8.0, 8.0]


def test_replicas_take_batches_as_they_are_free() -> None:
    columns = requests_of(5, 2, 2, 4)
    outcomes = run(columns, replace(STATIC, replicas=2), 1, 1, 1, 1)
    # One does the first; the other the second, the third, and the fourth at 4.
    assert outcomes.finished_s.tolist() == [5.0, 2.0, 4.0, 8.0]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_batches_take_what_the_step_time_model_says(rows: list[tuple[int, int]], size: int) -> None:
    columns = columns_of(
        [profiled(f"r{i}", prompt_tokens=s, output=o) for i, (s, o) in enumerate(rows)]
    )
    sizes = [min(size, len(rows) - first) for first in range(0, len(rows), size)]
    outcomes = run(columns, replace(STATIC, step=STEP), *sizes)
    now_s = 0.0
    for first in range(0, len(rows), size):
        members = rows[first : first + size]
        times = static_batch_times([s for s, _ in members], [o for _, o in members], STEP)
        assert outcomes.first_token_s[first] == pytest.approx(now_s + times.first_token_s)
        now_s += times.finished_s
        assert outcomes.finished_s[first] == pytest.approx(now_s)


# --- In flight -----------------------------------------------------------------------------------


def test_in_flight_the_next_enters_when_one_has_ended() -> None:
    columns = requests_of(5, 2, 3, 1)
    outcomes = run(columns, conditions(Batching.IN_FLIGHT, rows=2))
    # The third takes the second's seat, and ends with the first; then the fourth.
    assert outcomes.prefill_s.tolist() == [0.0, 0.0, 2.0, 5.0]
    assert outcomes.first_token_s.tolist() == [1.0, 1.0, 3.0, 6.0]
    assert outcomes.finished_s.tolist() == [5.0, 2.0, 5.0, 6.0]


def test_memory_that_is_short_keeps_the_next_one_waiting() -> None:
    # 10 + 5 - 1 tokens each; there is room for two of them, and not for three.
    columns = requests_of(5, 5, 5)
    outcomes = run(columns, conditions(Batching.IN_FLIGHT, kv_bytes=30))
    assert outcomes.finished_s.tolist() == [5.0, 5.0, 10.0]


def test_who_is_longer_than_predicted_makes_the_last_in_order_start_again() -> None:
    columns = requests_of(4, 4)
    # Both were to have 4 tokens; the first one has 12, and needs what both held.
    outcomes = simulate_in_flight(
        columns,
        in_order(columns),
        np.array([12, 12]),
        conditions(Batching.IN_FLIGHT, kv_bytes=30),
    )
    assert outcomes.finished_s[0] == 12.0
    assert 12.0 < outcomes.finished_s[1] < 24.0  # it keeps what it had drawn
    assert outcomes.prefill_s.tolist() == [0.0, 0.0]


def test_who_runs_longer_than_expected_is_expected_to_go_on() -> None:
    # The first one is at 30 of 55 tokens of memory when the second, of 20, arrives. It was thought
    # to end at 15 tokens; having made 20, it is thought to grow, and nothing is let in beside it.
    spread = LengthEstimate((2.0, 3.0, 6.0, 10.0, 18.0, 30.0, 45.0, 80.0), "test")
    first = structs.replace(profiled("a", output=10), output=spread, kv_bytes=40)
    second = profiled("b", output=10, arrival_s=20.0)
    columns = columns_of([first, second])
    under = conditions(Batching.IN_FLIGHT, rows=2, kv_bytes=55)
    outcomes = simulate_in_flight(columns, in_order(columns), np.array([30, 10]), under)
    assert outcomes.finished_s[0] == 30.0
    assert outcomes.prefill_s[1] == 30.0


def test_a_request_that_arrives_later_enters_then() -> None:
    requests = [profiled("a", output=10), profiled("b", output=2, arrival_s=4.5)]
    outcomes = run(columns_of(requests), conditions(Batching.IN_FLIGHT, rows=2))
    assert outcomes.prefill_s.tolist() == [0.0, 5.0]
    assert outcomes.finished_s.tolist() == [10.0, 7.0]


def test_an_engine_with_nothing_to_do_waits_for_the_next_arrival() -> None:
    requests = [profiled("a", output=2), profiled("b", output=3, arrival_s=100.0)]
    outcomes = run(columns_of(requests), IN_FLIGHT)
    assert outcomes.finished_s == pytest.approx([2.0, 103.0])


def test_long_prompts_are_computed_in_several_steps() -> None:
    columns = requests_of(2, 2, prompt_tokens=100)
    under = Conditions(Budget(10**9, 10, 60), ONE_SECOND_STEPS, Batching.IN_FLIGHT)
    outcomes = run(columns, under)
    # Steps of 60 tokens: 60 + 40 of the first with 20 of the second, which has 60 and 20 to go.
    assert outcomes.first_token_s.tolist() == [2.0, 4.0]
    assert outcomes.finished_s.tolist() == [3.0, 5.0]


def test_replicas_share_one_queue() -> None:
    columns = requests_of(5, 2, 3, 1)
    outcomes = run(columns, replace(conditions(Batching.IN_FLIGHT, rows=1), replicas=2))
    assert outcomes.finished_s.tolist() == pytest.approx([5.0, 2.0, 5.0, 6.0])


def test_answers_to_one_request_run_beside_each_other() -> None:
    columns = columns_of([structs.replace(profiled("a", output=4), rounds=3)])
    assert run(columns, IN_FLIGHT).finished_s.tolist() == [4.0]
    assert run(columns, conditions(Batching.IN_FLIGHT, rows=1)).finished_s.tolist() == [12.0]


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=30)


@settings(max_examples=60)
@given(rows=sizes, seats=st.integers(1, 8))
def test_slots_come_to_what_following_every_event_does(
    rows: list[tuple[int, int]], seats: int
) -> None:
    columns = columns_of(
        [profiled(f"r{i}", prompt_tokens=s, output=o) for i, (s, o) in enumerate(rows)]
    )
    under = conditions(Batching.IN_FLIGHT, rows=seats, step=STEP)
    followed = simulate_in_flight(columns, in_order(columns), lengths(columns), under)
    slotted = simulate_slots(columns, in_order(columns), lengths(columns), under)
    for name in ("prefill_s", "first_token_s", "finished_s"):
        assert getattr(slotted, name) == pytest.approx(getattr(followed, name)), name


@settings(max_examples=40)
@given(rows=sizes, kv_bytes=st.integers(120, 400), seed=st.integers(0, 99))
def test_every_request_ends_however_short_memory_and_predictions_are(
    rows: list[tuple[int, int]], kv_bytes: int, seed: int
) -> None:
    columns = columns_of(
        [profiled(f"r{i}", prompt_tokens=s, output=o) for i, (s, o) in enumerate(rows)]
    )
    drawn = np.random.default_rng(seed).integers(1, 61, len(columns))
    under = conditions(Batching.IN_FLIGHT, rows=6, kv_bytes=kv_bytes)
    outcomes = simulate_in_flight(columns, in_order(columns), drawn, under)
    assert np.isfinite(outcomes.finished_s).all()
    assert (outcomes.prefill_s < outcomes.first_token_s).all()
    assert (outcomes.first_token_s <= outcomes.finished_s).all()
    assert (outcomes.finished_s - outcomes.prefill_s >= drawn).all()
    # The first in the order never waits for anybody.
    assert outcomes.finished_s[0] == drawn[0]


@given(rows=sizes, seats=st.integers(1, 8))
def test_more_seats_never_make_the_run_longer_where_lengths_are_alike(
    rows: list[tuple[int, int]], seats: int
) -> None:
    # Graham's anomalies are those of unequal jobs: with equal ones more is never worse.
    columns = requests_of(*[7] * len(rows))
    fewer = run(columns, conditions(Batching.IN_FLIGHT, rows=seats))
    more = run(columns, conditions(Batching.IN_FLIGHT, rows=seats + 1))
    assert more.makespan_s <= fewer.makespan_s


# --- Promises ------------------------------------------------------------------------------------


def test_promises_are_broken_by_late_ends_late_begins_and_slow_tokens() -> None:
    slos = [SLO(deadline_s=5), SLO(ttft_s=2), SLO(tpot_s=0.9), SLO(tpot_s=1.0), SLO()]
    columns = columns_of(
        [structs.replace(profiled(f"r{i}", output=3), slo=slo) for i, slo in enumerate(slos)]
    )
    never = math.inf
    outcomes = Outcomes(
        np.zeros(5), np.array([1.0, 2.5, 1, 1, never]), np.array([6.0, 4, 3, 3, never])
    )
    # Three tokens, two gaps from 1 s to 3 s: one second each.
    broken = breaks_promise(columns, outcomes, np.full(5, 3))
    assert broken.tolist() == [True, True, True, False, False]


def test_what_never_runs_is_late_if_it_was_due() -> None:
    paced = structs.replace(profiled("c"), slo=SLO(tpot_s=1.0))
    columns = columns_of([profiled("a", deadline_s=1000), profiled("b"), paced])
    never = np.full(3, math.inf)
    broken = breaks_promise(columns, Outcomes(never, never, never), np.array([3, 3, 3]))
    assert broken.tolist() == [True, False, True]


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (1, 1.0), (5, 5.0)])
def test_alone_a_request_takes_a_step_a_token(tokens: int, seconds: float) -> None:
    assert alone_s(profiled("a"), tokens, ONE_SECOND_STEPS) == seconds


def test_alone_all_at_once_is_alone_one_by_one() -> None:
    requests = [
        structs.replace(profiled(f"r{i}", output=3 + i, prompt_tokens=5 * i + 1), rounds=1 + i % 2)
        for i in range(4)
    ]
    columns = columns_of(requests)
    expected = [alone_s(r, round(r.output.p50) * r.rounds, STEP) for r in requests]
    assert alone_seconds(columns, lengths(columns), STEP) == pytest.approx(expected)
