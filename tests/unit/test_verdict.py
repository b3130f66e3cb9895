from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from tests.builders import exactly, profiled
from tests.unit.scheduling_cases import IN_FLIGHT, STATIC, conditions, in_order
from uellm_cli.columns import Arrangement, columns_of
from uellm_cli.scheduler.remedies import remedies
from uellm_cli.timing.scenarios import (
    FEWEST,
    MOST,
    drawn_lengths,
    how_many,
    lengths_at_level,
)
from uellm_cli.timing.verdict import outlook, verdict_of
from uellm_cli.types import (
    SLO,
    Batching,
    Cause,
    Conditions,
    LateRequest,
    LengthEstimate,
    ProfiledRequest,
    RemedyKind,
    Verdict,
)

SPREAD = LengthEstimate((2.0, 3.0, 6.0, 10.0, 18.0, 30.0, 45.0, 80.0), "test")


def spread_out(count: int, cap: int = 100) -> list[ProfiledRequest]:
    return [structs.replace(profiled(f"r{i}"), output=SPREAD, max_tokens=cap) for i in range(count)]


# --- Scenarios -----------------------------------------------------------------------------------


def test_drawn_lengths_follow_their_prediction_and_keep_the_cap() -> None:
    columns = columns_of(spread_out(4000, cap=40))
    drawn = np.concatenate(list(drawn_lengths(columns, 8, seed=1, correlation=0.0)))
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx([3, 10, 30], rel=0.05)
    assert drawn.min() >= 1
    assert drawn.max() == 40


def test_correlated_lengths_are_long_or_short_together_and_each_is_as_predicted() -> None:
    columns = columns_of(spread_out(500))
    apart = [each.mean() for each in drawn_lengths(columns, 16, seed=2, correlation=0.0)]
    together = [each.mean() for each in drawn_lengths(columns, 16, seed=2, correlation=0.5)]
    assert np.std(together) > 5 * np.std(apart)
    assert np.mean(together) == pytest.approx(np.mean(apart), rel=0.1)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    columns = columns_of(spread_out(50))
    first, again, other = (
        np.array(list(drawn_lengths(columns, 3, seed, 0.3))) for seed in (5, 5, 6)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_a_length_that_is_certain_is_drawn_every_time() -> None:
    columns = columns_of([profiled("a", output=7)])
    assert {int(each[0]) for each in drawn_lengths(columns, 16, 0, 0.3)} == {7}


def test_a_correlation_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        list(drawn_lengths(columns_of(spread_out(2)), 1, 0, 1.5))


def test_the_more_requests_the_fewer_scenarios() -> None:
    counts = [how_many(requests) for requests in (0, 10, 10_000, 40_000, 10**6)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (MOST, FEWEST)


# --- Verdicts ------------------------------------------------------------------------------------


def verdict(
    requests: list[ProfiledRequest], under: Conditions, *sizes: int, count: int = 1
) -> Verdict:
    columns = columns_of(requests)
    arranged = in_order(columns, *sizes)
    drawn = drawn_lengths(columns, count, 0, 0.0)
    return verdict_of(columns, arranged, outlook(columns, arranged, drawn, under), under)


def first_late(found: Verdict) -> LateRequest:
    assert found.first_late is not None
    return found.first_late


def test_a_verdict_counts_the_late_by_class_and_names_the_first() -> None:
    requests = [
        profiled("a", output=3, deadline_s=4, slo_class="fast"),  # at 3 s: in time
        profiled("b", output=8, deadline_s=10, slo_class="fast"),  # at 11 s: late
        profiled("c", output=2, deadline_s=6, slo_class="slow"),  # at 13 s: late, due first
        profiled("d", output=1, slo_class="slow"),  # never late
    ]
    found = verdict(requests, STATIC, 1, 1, 1, 1)
    assert (found.makespan_s.mean, found.late.mean) == (14.0, 2.0)
    assert [
        (c.name, c.requests, c.promised, c.late.mean, c.begin_s, c.end_s) for c in found.classes
    ] == [
        ("fast", 2, 2, 1.0, 0.0, 11.0),
        ("slow", 2, 1, 1.0, 11.0, 14.0),
    ]
    late = first_late(found)
    assert (late.custom_id, late.cause, late.due_s, late.end_s) == ("c", Cause.QUEUED, 6.0, 13.0)


def test_figures_over_scenarios_have_their_spread() -> None:
    requests = [structs.replace(request, slo=SLO(deadline_s=20.0)) for request in spread_out(40)]
    found = verdict(requests, IN_FLIGHT, count=16)
    assert found.scenarios == 16
    for figure in (found.makespan_s, found.late):
        assert figure.low < figure.mean < figure.high


@pytest.mark.parametrize(
    ("slo", "cause"),
    [
        (SLO(deadline_s=5.0), Cause.ALONE),  # ten steps of a second
        (SLO(deadline_s=11.0), Cause.QUEUED),  # it begins at 2
        (SLO(ttft_s=2.5), Cause.BEGIN),
        (SLO(tpot_s=0.5), Cause.PACE),
    ],
)
def test_a_late_request_has_its_cause(slo: SLO, cause: Cause) -> None:
    requests = [profiled("first", output=2), structs.replace(profiled("late", output=10), slo=slo)]
    found = verdict(requests, STATIC, 1, 1)
    assert first_late(found).custom_id == "late"
    assert first_late(found).cause is cause
    assert first_late(found).share == 1.0


def test_a_request_that_fits_no_batch_is_late_if_it_was_due_at_all() -> None:
    columns = columns_of([profiled("a", deadline_s=1000), profiled("b")])
    none = np.array([], dtype=np.int64)
    arranged = Arrangement(none, none, np.array([0, 1]))
    seen = outlook(columns, arranged, [np.array([3, 3])], replace(STATIC, start_s=7.0))
    found = verdict_of(columns, arranged, seen, STATIC)
    assert (found.late.mean, found.makespan_s.mean) == (1.0, 7.0)
    assert first_late(found).cause is Cause.NO_ROOM


def test_nobody_late_names_nobody() -> None:
    assert verdict([profiled("a", deadline_s=100)], STATIC).first_late is None


def test_an_outlook_without_a_scenario_is_refused() -> None:
    columns = columns_of([profiled("a")])
    with pytest.raises(ValueError, match="at least one scenario"):
        outlook(columns, in_order(columns), [], STATIC)


# --- What would help -----------------------------------------------------------------------------


def found_remedies(requests: list[ProfiledRequest], under: Conditions) -> dict[RemedyKind, float]:
    columns = columns_of(requests)
    found = remedies(columns, [lengths_at_level(columns, 0.5)], under)
    return {remedy.kind: remedy.amount for remedy in found}


def test_time_copies_and_caps_that_would_do_are_found() -> None:
    # One seat, 8 requests of 10 s, all due after 50 s: they take 80.
    requests = [profiled(f"r{i}", output=10, deadline_s=50) for i in range(8)]
    found = found_remedies(requests, conditions(Batching.IN_FLIGHT, rows=1))
    assert 30 <= found[RemedyKind.TIME] < 31
    assert found[RemedyKind.DEVICES] == 2
    assert found[RemedyKind.CAP] == 6  # 8 times 6 s
    assert RemedyKind.CLASS not in found


def test_the_class_that_matters_least_is_the_one_to_move() -> None:
    requests = [profiled(f"r{i}", output=10, deadline_s=50, slo_class="gold") for i in range(4)]
    requests = [structs.replace(r, slo=SLO("gold", 50, weight=10)) for r in requests]
    requests += [profiled(f"n{i}", output=10, deadline_s=50, slo_class="night") for i in range(4)]
    columns = columns_of(requests)
    under = conditions(Batching.IN_FLIGHT, rows=1)
    (moved,) = [
        remedy
        for remedy in remedies(columns, [lengths_at_level(columns, 0.5)], under)
        if remedy.kind is RemedyKind.CLASS
    ]
    assert (moved.slo_class, moved.amount) == ("night", 4)


def test_what_no_single_change_mends_has_no_remedy() -> None:
    # A cap does, down to one token; more time does not help a first token that takes a second.
    requests = [
        structs.replace(profiled("a", output=10), slo=SLO(tpot_s=0.5), output=exactly(10)),
    ]
    found = found_remedies(requests, conditions(Batching.IN_FLIGHT, rows=1))
    assert RemedyKind.TIME not in found
    assert RemedyKind.DEVICES not in found
