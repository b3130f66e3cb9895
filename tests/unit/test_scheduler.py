from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.builders import ONE_SECOND_STEPS, ROOMY, profiled
from tests.unit.scheduling_cases import STATIC, conditions, order_of, schedule
from uellm_cli.columns import columns_of
from uellm_cli.errors import UsageError
from uellm_cli.scheduler import SCHEDULERS
from uellm_cli.scheduler.s3 import first_fit
from uellm_cli.types import (
    SLO,
    Batching,
    Budget,
    Conditions,
    ProfiledRequest,
    Schedule,
    Source,
    StepTimes,
)

# A worked example of 25 requests, r01 to r25. A candidate joins the open batch of size n, whose
# largest value is m, when n < 10 and (value - m)·(n + 1)·1.2 <= 15000.
LENGTHS = [100] * 12 + [4266, 7391, 9892, 16142, 20309] + [20400] * 8
# SLO = 30000 - length, so that deadlines run against lengths; but r25, long, is due last.
DEADLINES_S = [30000 - length for length in LENGTHS[:-1]] + [30000]
EXAMPLE = [
    profiled(f"r{i:02d}", output=length, deadline_s=deadline_s)
    for i, (length, deadline_s) in enumerate(zip(LENGTHS, DEADLINES_S, strict=True), start=1)
]


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"r{number:02d}" for number in numbers)


def batches_of(schedule: Schedule) -> list[tuple[str, ...]]:
    return [batch.custom_ids for batch in schedule.batches]


def run(name: str, requests: Sequence[ProfiledRequest], **options: object) -> Schedule:
    return schedule(name, requests, STATIC, **options)


def test_odbs_as_published_gives_the_batches_worked_out_by_hand() -> None:
    assert batches_of(run("odbs", EXAMPLE, variant="code")) == [
        ids(*range(1, 11)),  # ten of length 100: full
        # r13: (4266 - 100)·3·1.2 = 14997.6, joins; r14: (7391 - 4266)·4·1.2 = 15000, joins;
        # r15: (9892 - 7391)·5·1.2 = 15006, does not
        ids(11, 12, 13, 14),
        # r16: (16142 - 9892)·2·1.2 = 15000, joins; r17: (20309 - 16142)·3·1.2 = 15001.2, does not
        ids(15, 16),
        ids(*range(17, 26)),  # r18: 91·2·1.2, joins; then equal lengths
    ]


def test_slo_dbs_as_published_gives_the_batches_worked_out_by_hand() -> None:
    # In order of SLO: r18-r24 9600, r17 9691, r16 13858, r15 20108, r14 22609, r13 25734,
    # r01-r12 29900, r25 30000.
    assert batches_of(run("slo-dbs", EXAMPLE, variant="code")) == [
        # r17: 91·8·1.2 = 873.6, joins; r16: 4167·9·1.2 = 45003.6, does not
        ids(*range(18, 25), 17),
        # r15: 6250·2·1.2 = 15000; r14: 2501·3·1.2 = 9003.6; r13: 3125·4·1.2 = 15000: all join;
        # r01: 4166·5·1.2 = 24996, does not
        ids(16, 15, 14, 13),
        ids(*range(1, 11)),
        ids(11, 12, 25),  # r25: 100·3·1.2 = 360, joins
    ]


def test_slo_odbs_as_published_gives_the_batches_worked_out_by_hand() -> None:
    # Keys SLO + length/2: 30000 - length/2 but for r25, 40200. So longest first, r25 last; and a
    # shorter candidate always joins, its difference being negative.
    assert batches_of(run("slo-odbs", EXAMPLE, variant="code")) == [
        ids(*range(18, 25), 17, 16, 15),
        ids(14, 13, *range(1, 9)),
        ids(9, 10, 11, 12),  # r25: (20400 - 100)·5·1.2 = 121800, does not join
        ids(25),
    ]


def test_slo_dbs_as_printed_closes_a_batch_by_its_latency_term() -> None:
    requests = [profiled(f"r{i:02d}", deadline_s=1000) for i in range(1, 6)]
    # Joining one of n equals: T_l = (n + 1)·(1000 + 1000)·(n + 1)·1.2 = 2400·(n + 1)²:
    # 9600 for the second, 21600 for the third.
    assert batches_of(run("slo-dbs", requests, variant="paper")) == [ids(1, 2), ids(3, 4), ids(5)]


def test_odbs_as_printed_closes_a_batch_by_its_output_term() -> None:
    requests = [profiled(f"r{i:02d}", output=1000) for i in range(1, 6)]
    # As above with w2 = 0.5: 1200·(n + 1)²: 10800 for the third, 19200 for the fourth.
    assert batches_of(run("odbs", requests, variant="paper")) == [ids(1, 2, 3), ids(4, 5)]


def test_slo_odbs_as_printed_adds_both_terms_and_sorts_by_deadline() -> None:
    requests = [
        profiled("r01", output=1000, deadline_s=1000),
        profiled("r02", output=1000, deadline_s=900),
        profiled("r03", output=1000, deadline_s=800),
    ]
    # r02 after r03: T_l = ((800 + 800) + (900 + 800))·2·1.2 = 7920,
    # T_o = (2000 + 2000)·2·1.2 = 9600, 7920 + 0.5·9600 = 12720: joins.
    # r01: T_l = ((800+900) + (900+900) + (1000+900))·3·1.2 = 19440 alone is too much.
    assert batches_of(run("slo-odbs", requests, variant="paper")) == [ids(3, 2), ids(1)]


def test_requests_without_a_deadline_come_after_those_with_one() -> None:
    requests = [profiled("r01"), profiled("r02", deadline_s=3600), profiled("r03", deadline_s=60)]
    assert batches_of(run("slo-dbs", requests)) == [ids(3, 2), ids(1)]


def test_fifo_keeps_the_order_of_arrival() -> None:
    requests = [profiled("r01", arrival_s=5), profiled("r02"), profiled("r03")]
    found = schedule("fifo", requests, conditions(Batching.STATIC, rows=2))
    assert batches_of(found) == [ids(2, 3), ids(1)]


@pytest.mark.parametrize("name", ["slo-dbs", "slo-odbs"])
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_a_far_deadline_still_comes_before_none_at_all(name: str, variant: str) -> None:
    week_s = 7 * 86_400
    requests = [profiled("r01"), profiled("r02", deadline_s=week_s), profiled("r03")]
    order = [c for batch in batches_of(run(name, requests, variant=variant)) for c in batch]
    assert order == ["r02", "r01", "r03"]


def test_a_batch_s_padded_prompts_stay_within_what_one_pass_computes() -> None:
    requests = [
        profiled(f"r{i:02d}", prompt_tokens=tokens)
        for i, tokens in enumerate([400, 500, 600, 5000], start=1)
    ]
    under = replace(STATIC, budget=replace(ROOMY, prefill_tokens=1000))
    # 2·500 fits, 3·600 does not; a prompt that is too long for company runs alone.
    assert batches_of(schedule("fifo", requests, under)) == [ids(1, 2), ids(3), ids(4)]


def test_an_option_that_means_nothing_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'odbs' has no option 'treshold'.*threshold"):
        SCHEDULERS.build("odbs", {"treshold": "3"})


# --- The other baselines -------------------------------------------------------------------------


def with_slo(request: ProfiledRequest, slo: SLO) -> ProfiledRequest:
    return structs.replace(request, slo=slo)


def outputs(*tokens: int, **more: Any) -> list[ProfiledRequest]:
    return [profiled(f"r{i:02d}", output=t, **more) for i, t in enumerate(tokens, start=1)]


def test_the_earliest_deadline_is_first_and_a_first_token_is_one_too() -> None:
    requests = [
        profiled("r01", deadline_s=50),
        profiled("r02"),
        profiled("r03", deadline_s=30),
        with_slo(profiled("r04"), SLO(ttft_s=10)),
    ]
    assert order_of(run("edf", requests)) == ["r04", "r03", "r01", "r02"]


def test_shortest_and_longest_first_go_by_expected_lengths() -> None:
    requests = outputs(5, 9, 2, 7)
    assert order_of(run("sjf", requests)) == list(ids(3, 1, 4, 2))
    assert order_of(run("lpt", requests)) == list(ids(2, 4, 1, 3))


def test_multi_bin_sends_a_bin_off_when_it_is_full() -> None:
    # Two bins, up to 10 and above; two a batch. In arrival order: r01 short, r02 long, r03 long:
    # the long bin is full first; r04 short fills the other; r05 is left.
    requests = outputs(1, 50, 60, 2, 3)
    found = schedule("multi-bin", requests, conditions(Batching.STATIC, rows=2), bins=2)
    assert batches_of(found) == [ids(2, 3), ids(1, 4), ids(5)]


def test_sorted_f_makes_batches_as_large_as_pays() -> None:
    # By length 1, 1, 1, 100: Σ/size² is 1, 1/2, 1/3 and 103/16: three, then the long one alone.
    assert batches_of(run("sorted-f", outputs(1, 100, 1, 1))) == [ids(1, 3, 4), ids(2)]


def test_s3_fits_the_largest_first_into_what_is_left() -> None:
    # Prompts of 10, one class of length each: 110, 70, 40 and 30 bytes into memory of 150.
    requests = outputs(100, 60, 30, 20)
    found = schedule("s3", requests, conditions(Batching.IN_FLIGHT, kv_bytes=150), buckets=10)
    # 110 and 40 are together, then 70 and 30.
    assert order_of(found) == list(ids(1, 3, 2, 4))


def test_s3_reserves_what_the_longest_of_a_class_may_take() -> None:
    # Two classes up to 60 and 120. Classes take 70 and 130 bytes each, so that of 140 bytes
    # nothing of the second class has company.
    requests = outputs(120, 10, 61)
    found = schedule("s3", requests, conditions(Batching.IN_FLIGHT, kv_bytes=140), buckets=2)
    assert order_of(found) == list(ids(1, 3, 2))


def test_a_bin_of_first_fit_has_no_more_requests_than_seats() -> None:
    sizes = np.array([5.0, 1.0, 1.0, 1.0, 1.0])
    assert first_fit(sizes, Budget(100, 2, 1000)).tolist() == [0, 0, 1, 1, 2]
    assert first_fit(sizes, Budget(6, 9, 1000)).tolist() == [0, 0, 1, 1, 1]


def test_s3_as_uellm_imitates_it_takes_the_shortest_up_to_a_sum() -> None:
    found = run("s3-uellm", outputs(500, 400, 300, 900, 100))
    # 100 + 300 + 400 = 800; 500 more is beyond 1024; 500 alone, since 900 more is.
    assert batches_of(found) == [ids(5, 3, 2), ids(1), ids(4)]


def test_morphling_finds_the_configuration_that_is_fastest_and_says_what_that_took() -> None:
    # A row costs nothing, so that the most rows are the fastest; requests stay as they come.
    columns = columns_of(outputs(5, 6, 7, 8))
    under = conditions(Batching.IN_FLIGHT, rows=4)
    arranged = SCHEDULERS.build("morphling").arrange(columns, under)
    assert arranged.order.tolist() == [0, 1, 2, 3]
    assert arranged.budget == under.budget
    # Rows 4, 2 and 1: 8, 7 + 8 - ... seconds each, with three sizes of step each.
    assert arranged.tuning_s == 3 * (8 + 14 + 26)


def test_morphling_takes_fewer_rows_where_they_cost_more_than_they_bring() -> None:
    # Nothing is shared, and memory of static batches is padded: fewer at a time are as fast, and
    # a short answer does not wait for a long one.
    columns = columns_of(outputs(100, 1, 100, 1))
    step = StepTimes(0.0, 0.0, 1.0, 0.0, Source.ASSUMED)
    under = conditions(Batching.STATIC, rows=4, step=step)
    arranged = SCHEDULERS.build("morphling").arrange(columns, under)
    assert arranged.budget is not None
    assert arranged.budget.max_sequences == 1


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("multi-bin", {"bins": 0}, "at least one bin"),
        ("s3", {"buckets": 0}, "at least one class"),
        ("morphling", {"trials": 31}, "between 1 and 30"),
        ("morphling", {"stress": 0}, "at least one request"),
    ],
)
def test_options_that_make_no_sense_are_named(
    name: str, options: dict[str, int], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        SCHEDULERS.build(name, options)


# --- Every scheduler -----------------------------------------------------------------------------

OF_UELLM = ("odbs", "slo-dbs", "slo-odbs")
VARIANTS: list[tuple[str, dict[str, str]]] = [
    (name, options)
    for name in SCHEDULERS.names()
    for options in ([{"variant": "code"}, {"variant": "paper"}] if name in OF_UELLM else [{}])
]
requests_strategy = st.lists(
    st.tuples(
        st.integers(1, 5000),
        st.integers(1, 2000),
        st.none() | st.floats(0.5, 100_000),
        st.sampled_from([0.0, 1.5]),
    ),
    max_size=40,
)
RowsOfRequests = list[tuple[int, int, float | None, float]]


def built(rows: RowsOfRequests) -> list[ProfiledRequest]:
    return [
        profiled(f"r{i:02d}", output=out, prompt_tokens=prompt, deadline_s=due, arrival_s=arrival)
        for i, (out, prompt, due, arrival) in enumerate(rows)
    ]


@pytest.mark.parametrize("batching", list(Batching))
@pytest.mark.parametrize(("name", "options"), VARIANTS)
@settings(max_examples=10)
@given(rows=requests_strategy, kv_bytes=st.integers(1, 20_000), rows_at_a_time=st.integers(1, 12))
def test_every_scheduler_places_each_request_once_and_keeps_the_budget(
    name: str,
    options: dict[str, str],
    batching: Batching,
    rows: RowsOfRequests,
    kv_bytes: int,
    rows_at_a_time: int,
) -> None:
    requests = built(rows)
    by_id = {request.custom_id: request for request in requests}
    budget = Budget(kv_bytes, rows_at_a_time, prefill_tokens=8000)
    under = Conditions(budget, ONE_SECOND_STEPS, batching)
    found = schedule(name, requests, under, **options)

    placed = order_of(found)
    assert sorted([*placed, *found.oversized]) == sorted(by_id)
    assert [batch.batch_id for batch in found.batches] == list(range(len(found.batches)))
    for batch in found.batches:
        members = [by_id[custom_id] for custom_id in batch.custom_ids]
        prompt = max(member.prompt_tokens for member in members)
        answer = max(member.output.p90 for member in members)
        assert 0 < len(members) <= rows_at_a_time
        assert len(members) * (prompt + answer) <= kv_bytes  # one byte a token
        assert len(members) == 1 or len(members) * prompt <= 8000
    for custom_id in found.oversized:
        assert by_id[custom_id].kv_bytes > kv_bytes


@pytest.mark.parametrize("batching", list(Batching))
@pytest.mark.parametrize(("name", "options"), VARIANTS)
@settings(max_examples=10)
@given(rows=requests_strategy, seed=st.integers(0, 1000))
def test_every_scheduler_goes_by_what_requests_are_not_by_their_names(
    name: str, options: dict[str, str], batching: Batching, rows: RowsOfRequests, seed: int
) -> None:
    requests = built(rows)
    names = [f"x{i}" for i in range(len(requests))]
    Random(seed).shuffle(names)
    new_name = {request.custom_id: name for request, name in zip(requests, names, strict=True)}
    renamed = [structs.replace(r, custom_id=new_name[r.custom_id]) for r in requests]
    under = conditions(batching)
    expected = [
        tuple(new_name[custom_id] for custom_id in batch)
        for batch in batches_of(schedule(name, requests, under, **options))
    ]
    assert batches_of(schedule(name, renamed, under, **options)) == expected


different = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(1, 100_000)),
    max_size=30,
    unique_by=(lambda row: row[0], lambda row: row[1]),
)


@pytest.mark.parametrize("batching", list(Batching))
@pytest.mark.parametrize(("name", "options"), VARIANTS)
@settings(max_examples=10)
@given(rows=different, seed=st.integers(0, 1000))
def test_no_scheduler_goes_by_a_request_s_place_in_the_file(
    name: str, options: dict[str, str], batching: Batching, rows: list[tuple[int, int]], seed: int
) -> None:
    # Of like requests the first is first, so all are different here; and arrive one by one, for
    # those that take them as they come.
    requests = [
        profiled(f"r{i:02d}", output=output, deadline_s=due, arrival_s=i / 1000)
        for i, (output, due) in enumerate(rows)
    ]
    shuffled = list(requests)
    Random(seed).shuffle(shuffled)
    under = conditions(batching, rows=4)
    expected = batches_of(schedule(name, requests, under, **options))
    assert batches_of(schedule(name, shuffled, under, **options)) == expected
