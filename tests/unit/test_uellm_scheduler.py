"""The default scheduler: whom it saves, what it fills in, and that nothing simple beats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.builders import profiled
from tests.unit.scheduling_cases import IN_FLIGHT, STATIC, conditions, in_order, order_of, schedule
from uellm_cli.columns import RequestColumns, columns_of
from uellm_cli.scheduler import SCHEDULERS
from uellm_cli.scheduler.bounds import fewest_late, late_bound, makespan_bound_s
from uellm_cli.scheduler.exact import least_late_in_flight, least_late_static
from uellm_cli.scheduler.urgency import Urgency, savable
from uellm_cli.timing.fluid import fluid
from uellm_cli.timing.outcomes import breaks_promise
from uellm_cli.timing.simulator import simulate
from uellm_cli.types import (
    QUANTILE_LEVELS,
    SLO,
    Batching,
    Conditions,
    LengthEstimate,
    ProfiledRequest,
    Source,
    StepTimes,
)

STEP = StepTimes(0.01, 0.0002, 0.001, 0.000_002, Source.ASSUMED)
Rows = list[tuple[int, int]]
small_cases = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 40)), min_size=1, max_size=7)


def requests_of(rows: Rows) -> list[ProfiledRequest]:
    return [
        profiled(f"r{i}", output=output, deadline_s=due, prompt_tokens=1)
        for i, (output, due) in enumerate(rows)
    ]


def late(columns: RequestColumns, name: str, under: Conditions, **options: object) -> int:
    """How many are late if lengths are as predicted."""
    arranged = SCHEDULERS.build(name, options).arrange(columns, under)
    lengths = np.rint(columns.p50).astype(np.int64)
    outcomes = simulate(columns, arranged, lengths, under)
    return int(breaks_promise(columns, outcomes, lengths).sum())


# --- In flight -----------------------------------------------------------------------------------


def test_what_cannot_be_saved_does_not_sink_what_can() -> None:
    # One seat, a token a second. Earliest deadline first spends 10 s on the one that is due at 9,
    # and then all the others are late; without it they are all in time.
    rows = [(10, 9), (3, 10), (3, 11), (3, 12)]
    under = conditions(Batching.IN_FLIGHT, rows=1)
    columns = columns_of(requests_of(rows))
    assert late(columns, "edf", under) == 4
    assert late(columns, "uellm", under) == 1
    assert order_of(schedule("uellm", requests_of(rows), under)) == ["r1", "r2", "r3", "r0"]


def test_of_those_that_are_in_each_other_s_way_the_largest_is_let_go_of() -> None:
    # Each is in time alone. The first one's five seconds make the three others late.
    urgency = Urgency(np.array([0.0, 1.0, 2.0, 3.0]), np.array([5.0, 1.0, 1.0, 1.0]), ahead_s=0.0)
    order = np.arange(4)
    assert savable(urgency, np.ones(4), order).tolist() == [False, True, True, True]
    # Unless it weighs more than what it takes; then the others give way, as far as they must.
    weight = np.array([100.0, 1.0, 1.0, 1.0])
    assert savable(urgency, weight, order).tolist() == [True, False, False, False]


def test_long_answers_that_are_due_last_begin_early_where_that_makes_nobody_late() -> None:
    # Two seats. By deadline alone the long one begins at 4 and ends at 24.
    rows = [(4, 100), (4, 100), (20, 1000)]
    requests = requests_of(rows)
    under = conditions(Batching.IN_FLIGHT, rows=2)
    assert order_of(schedule("uellm", requests, under))[0] == "r2"
    # Where the short ones are due at once, it waits.
    urgent = [
        structs.replace(r, slo=SLO(deadline_s=d)) for r, d in zip(requests, (4, 4, 99), strict=True)
    ]
    assert order_of(schedule("uellm", urgent, under)) == ["r0", "r1", "r2"]


def test_without_promises_the_longest_go_first() -> None:
    requests = [profiled(f"r{i}", output=output) for i, output in enumerate((3, 50, 7, 20))]
    under = conditions(Batching.IN_FLIGHT, rows=2)
    assert order_of(schedule("uellm", requests, under)) == ["r1", "r3", "r2", "r0"]


def test_a_first_token_that_is_promised_comes_in_time() -> None:
    long = [profiled(f"long{i}", output=50) for i in range(4)]
    quick = [
        structs.replace(profiled(f"quick{i}", output=60), slo=SLO("chat", ttft_s=5.0))
        for i in range(2)
    ]
    under = conditions(Batching.IN_FLIGHT, rows=2)
    assert set(order_of(schedule("uellm", [*long, *quick], under))[:2]) == {"quick0", "quick1"}


def test_a_promised_pace_makes_fewer_run_at_a_time() -> None:
    # A step of n rows takes 0.1 + 0.1·n s: a token in 0.5 s allows for four rows, not for ten.
    step = StepTimes(0.1, 0.0, 0.1, 0.0, Source.ASSUMED)
    paced = [
        structs.replace(profiled(f"r{i}", output=20), slo=SLO("paced", tpot_s=0.5))
        for i in range(20)
    ]
    columns = columns_of(paced)
    under = conditions(Batching.IN_FLIGHT, rows=10, step=step)
    arranged = SCHEDULERS.build("uellm").arrange(columns, under)
    assert arranged.budget is not None
    assert 1 < arranged.budget.max_sequences <= 4
    assert late(columns, "uellm", under) == 0
    assert late(columns, "edf", under) == 20


@settings(max_examples=30, deadline=None)
@given(rows=small_cases, seats=st.integers(1, 3))
def test_few_requests_in_flight_are_nearly_as_few_late_as_can_be(rows: Rows, seats: int) -> None:
    columns = columns_of(requests_of(rows))
    tokens = np.array([output for output, _ in rows])
    due = np.array([float(d) for _, d in rows])
    least = least_late_in_flight(tokens, due, np.ones(len(rows)), seats)
    found = late(columns, "uellm", conditions(Batching.IN_FLIGHT, rows=seats))
    assert least - 1e-6 <= found <= least + 1


def test_over_many_small_cases_the_optimum_is_missed_rarely() -> None:
    random = Random(7)
    missed = 0
    for _ in range(60):
        rows = [(random.randint(1, 12), random.randint(2, 40)) for _ in range(7)]
        seats = random.randint(1, 3)
        tokens = np.array([output for output, _ in rows])
        due = np.array([float(d) for _, d in rows])
        least = least_late_in_flight(tokens, due, np.ones(7), seats)
        under = conditions(Batching.IN_FLIGHT, rows=seats)
        missed += late(columns_of(requests_of(rows)), "uellm", under) > round(least)
    assert missed <= 9


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 400)), min_size=1, max_size=40),
    batching=st.sampled_from(list(Batching)),
    seats=st.integers(1, 8),
)
def test_with_constant_predictions_it_is_never_worse_than_earliest_deadline_first(
    rows: Rows, batching: Batching, seats: int
) -> None:
    # All are predicted alike, and are: only deadlines tell them apart.
    requests = [profiled(f"r{i}", output=20, deadline_s=due) for i, (_, due) in enumerate(rows)]
    columns = columns_of(requests)
    under = conditions(batching, rows=seats)
    assert late(columns, "uellm", under) <= late(columns, "edf", under)


def test_nobody_waits_for_ever() -> None:
    # However much that is urgent there is, an order of all of them has a place for each.
    urgent = [profiled(f"u{i}", output=5, deadline_s=3 + i) for i in range(30)]
    lost = [profiled("lost", output=500, deadline_s=1), profiled("free", output=1)]
    order = order_of(schedule("uellm", [*lost, *urgent], conditions(Batching.IN_FLIGHT, rows=2)))
    assert sorted(order) == sorted(r.custom_id for r in [*urgent, *lost])


# --- Static --------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(rows=small_cases.filter(lambda rows: len(rows) <= 6), size=st.integers(1, 3))
def test_few_requests_in_static_batches_are_as_few_late_as_can_be(rows: Rows, size: int) -> None:
    tokens = np.array([output for output, _ in rows])
    due = np.array([float(d) for _, d in rows])
    least = least_late_static(tokens, due, np.ones(len(rows)), size)
    found = late(columns_of(requests_of(rows)), "uellm", conditions(Batching.STATIC, rows=size))
    assert least - 1e-6 <= found <= least + 1


def test_static_batches_are_fewer_late_than_by_any_other_rule() -> None:
    random = Random(3)
    spread = (0.4, 0.5, 0.7, 1.0, 1.5, 2.2, 2.8, 4.0)
    requests = []
    for i in range(100):
        median = random.choice((10, 30, 100, 250))
        estimate = LengthEstimate(tuple(median * factor for factor in spread), "test")
        due = random.uniform(100, 1600)
        requests.append(structs.replace(profiled(f"r{i:03d}", deadline_s=due), output=estimate))
    columns = columns_of(requests)
    shares = {name: mean_late(columns, name, STATIC) for name in SCHEDULERS.names()}
    best = min(share for name, share in shares.items() if name != "uellm")
    assert shares["uellm"] < 0.9 * best


def mean_late(columns: RequestColumns, name: str, under: Conditions) -> float:
    """Late requests on average over lengths that no scheduler has seen."""
    arranged = SCHEDULERS.build(name).arrange(columns, under)
    counts = []
    for seed in range(100, 120):
        levels = np.random.default_rng(seed).random(len(columns))
        lengths = np.maximum(np.rint(columns.drawn(levels)), 1).astype(np.int64)
        outcomes = simulate(columns, arranged, lengths, under)
        counts.append(int(breaks_promise(columns, outcomes, lengths).sum()))
    return float(np.mean(counts))


# --- Bounds and exact solutions ------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 30)),
        min_size=1,
        max_size=25,
    ),
    batching=st.sampled_from(list(Batching)),
    seats=st.integers(1, 8),
    replicas=st.integers(1, 2),
    kv_bytes=st.integers(100, 3000),
    name=st.sampled_from(["fifo", "lpt", "edf", "sjf"]),
)
def test_no_schedule_beats_its_bounds(
    rows: list[tuple[int, int, int]],
    batching: Batching,
    seats: int,
    replicas: int,
    kv_bytes: int,
    name: str,
) -> None:
    columns = columns_of(
        [
            profiled(f"r{i}", prompt_tokens=s, output=o, deadline_s=due / 10)
            for i, (s, o, due) in enumerate(rows)
        ]
    )
    under = replace(conditions(batching, seats, STEP, kv_bytes), replicas=replicas, start_s=1.0)
    arranged = SCHEDULERS.build(name).arrange(columns, under)
    columns = columns.take(np.sort(arranged.order))
    if not len(columns):
        return
    arranged = SCHEDULERS.build(name).arrange(columns, under)
    lengths = np.rint(columns.p50).astype(np.int64)
    outcomes = simulate(columns, arranged, lengths, under)
    assert outcomes.makespan_s >= makespan_bound_s(columns, lengths, under) - 1e-9
    assert breaks_promise(columns, outcomes, lengths).sum() >= late_bound(columns, lengths, under)


def test_a_full_machine_comes_near_the_bound_of_its_makespan() -> None:
    random = Random(1)
    columns = columns_of(
        [profiled(f"r{i}", output=random.randint(5, 60), prompt_tokens=20) for i in range(400)]
    )
    under = conditions(Batching.IN_FLIGHT, rows=16, step=STEP)
    lengths = np.rint(columns.p50).astype(np.int64)
    arranged = SCHEDULERS.build("uellm").arrange(columns, under)
    makespan_s = simulate(columns, arranged, lengths, under).makespan_s
    assert makespan_s <= 1.05 * makespan_bound_s(columns, lengths, under)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 25)), max_size=6))
def test_the_fewest_late_of_one_machine_are_those_of_the_best_order(rows: Rows) -> None:
    def late_in(order: Sequence[tuple[int, int]]) -> int:
        done, count = 0, 0
        for work, due in order:
            done += work
            count += done > due
        return count

    work = np.array([float(w) for w, _ in rows])
    due = np.array([float(d) for _, d in rows])
    assert fewest_late(work, due) == min(late_in(order) for order in permutations(rows))


@settings(max_examples=30, deadline=None)
@given(small_cases.filter(lambda rows: len(rows) <= 5), st.integers(1, 2))
def test_the_exact_solutions_are_those_of_trying_everything(rows: Rows, seats: int) -> None:
    columns = columns_of(requests_of(rows))
    lengths = np.rint(columns.p50).astype(np.int64)
    due = np.array([float(d) for _, d in rows])
    ones = np.ones(len(rows))
    every = [columns.take(np.array(order)) for order in permutations(range(len(rows)))]

    def fewest(under: Conditions, *sizes: int) -> int:
        counts = []
        for ordered in every:
            drawn = np.rint(ordered.p50).astype(np.int64)
            outcomes = simulate(ordered, in_order(ordered, *sizes), drawn, under)
            counts.append(int(breaks_promise(ordered, outcomes, drawn).sum()))
        return min(counts)

    flying = least_late_in_flight(lengths, due, ones, seats)
    assert flying == pytest.approx(fewest(conditions(Batching.IN_FLIGHT, rows=seats)), abs=1e-6)
    cuts = _sizes(len(rows), seats)
    static = min(fewest(conditions(Batching.STATIC, rows=seats), *sizes) for sizes in cuts)
    assert least_late_static(lengths, due, ones, seats) == pytest.approx(static, abs=1e-6)


def _sizes(requests: int, most: int) -> list[tuple[int, ...]]:
    """All ways to cut so many requests into batches of at most `most`."""
    if requests == 0:
        return [()]
    return [
        (size, *rest)
        for size in range(1, min(most, requests) + 1)
        for rest in _sizes(requests - size, most)
    ]


def test_the_work_of_all_is_the_makespan_of_a_full_machine() -> None:
    columns = columns_of([profiled(f"r{i}", output=50, prompt_tokens=20) for i in range(160)])
    under = conditions(Batching.IN_FLIGHT, rows=16, step=STEP)
    machine = fluid(columns, columns.mean, under)
    lengths = np.full(160, 50)
    makespan_s = simulate(columns, in_order(columns), lengths, under).makespan_s
    assert machine.work_s.sum() == pytest.approx(makespan_s, rel=0.05)
    assert machine.seats == 16
    assert len(QUANTILE_LEVELS) == columns.quantiles.shape[1]
    assert IN_FLIGHT.replicas == 1


def test_a_batch_is_split_where_its_longest_makes_the_others_late() -> None:
    # Three of one step and due after it, two due after the second, and one that is hopeless:
    # full batches of three are late all together.
    rows = [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (2, 1)]
    assert late(columns_of(requests_of(rows)), "uellm", conditions(Batching.STATIC, rows=3)) == 1


def test_first_tokens_that_are_promised_are_in_time_in_static_batches_too() -> None:
    random = Random(5)
    requests = [
        structs.replace(
            profiled(f"r{i}", output=random.randint(5, 60)), slo=SLO(ttft_s=random.uniform(10, 150))
        )
        for i in range(24)
    ]
    columns = columns_of(requests)
    under = conditions(Batching.STATIC, rows=4)
    assert late(columns, "uellm", under) <= late(columns, "edf", under)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), batching=st.sampled_from(list(Batching)))
def test_requests_that_differ_in_their_answers_only_have_one_order(
    seed: int, batching: Batching
) -> None:
    requests = [
        structs.replace(profiled(f"r{i}", output=10), rounds=1 + i % 6, max_tokens=100 + i // 6)
        for i in range(12)
    ]
    shuffled = list(requests)
    Random(seed).shuffle(shuffled)
    under = conditions(batching, rows=4)
    expected = order_of(schedule("uellm", requests, under))
    assert order_of(schedule("uellm", shuffled, under)) == expected
