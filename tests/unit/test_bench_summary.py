"""From rounds to rows: medians, ratios and who is whose measure, in round numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from uellm_cli.bench.agreement import Check, Reference
from uellm_cli.bench.summary import Row, Showing, fault, summarise
from uellm_cli.bench.workers import Entrant, Round

NOTHING = Reference(Check(0, 0, {}))


def shown(
    engine: str, *seconds: float, is_peer: bool = False, is_longest_first: bool = False
) -> Showing:
    """An entrant with a round of two answers, 100 tokens together, for each of `seconds`."""
    rounds = [Round(s, [60, 40], ttft_s=[s / 10, s / 5], tokens=[[1], [2]]) for s in seconds]
    return Showing(Entrant(engine, (), is_peer, is_longest_first), rounds=rounds)


def rows(
    *showings: Showing, floor_s: float | None = 1.0, reference: Reference = NOTHING
) -> dict[str, Row]:
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    return {row.engine: row for row in summarise(showings, floor_s, reference, decode)}


def test_a_row_is_of_the_median_round_and_tells_the_spread() -> None:
    row = rows(shown("static", 4.0, 2.0, 5.0))["static"]
    assert (row.median_s, row.least_s, row.most_s) == (4.0, 2.0, 5.0)
    assert row.round_s == (4.0, 2.0, 5.0)
    assert row.tokens_per_s == 25.0
    assert row.times_floor == 4.0
    # All rounds' first tokens together: 0.2, 0.4, 0.4, 0.5, 0.8, 1.0.
    assert (row.ttft_p50_s, row.ttft_p99_s) == (0.4, 1.0)


def test_speed_is_told_against_our_default_engine_round_by_round() -> None:
    found = rows(
        shown("static", 8.0, 8.0, 80.0),
        shown("inflight", 2.0, 2.0, 20.0),
        shown("peer", 1.0, 1.0, 40.0, is_peer=True),
    )
    # The busy third round made everybody slow; the peer is twice as fast in two of three.
    assert found["inflight"].relative == 1.0
    assert found["static"].relative == 0.25
    assert found["peer"].relative == 2.0


def test_speed_is_told_against_ours_in_the_same_order_of_requests_only() -> None:
    peer = shown("peer", 2.0, is_peer=True)
    sorted_peer = shown("peer", 1.0, is_peer=True, is_longest_first=True)
    plain, sorted_ours = shown("inflight", 4.0), shown("inflight", 3.0, is_longest_first=True)
    found = rows(peer, sorted_peer, plain, sorted_ours)
    assert found["peer"].relative == 2.0
    assert found["peer:longest-first"].relative == 3.0
    assert found["inflight"].relative == found["inflight:longest-first"].relative == 1.0
    # Without ours in that order there is nothing to be told against; no other is.
    assert rows(sorted_peer, plain)["peer:longest-first"].relative is None
    assert rows(peer, sorted_ours)["peer"].relative is None
    assert rows(shown("static", 1.0))["static"].relative is None


def test_agreement_is_with_the_reference_whatever_the_engine() -> None:
    reference = Reference(Check(2, 3, {}), ((1, 5), (2,)))
    peer = shown("peer", 1.0, is_peer=True)
    peer.rounds[0] = Round(1.0, [2, 1], tokens=[[1, 4], [2]])
    row = rows(peer, shown("inflight"), reference=reference)["peer"]
    assert row.agreement == pytest.approx(2 / 3)
    assert rows(peer)["peer"].agreement is None


def test_who_is_out_has_a_row_with_the_reason_and_is_nobody_s_measure() -> None:
    out = shown("inflight", 1.0)
    out.failure = "ended with code 9"
    found = rows(out, shown("static", 2.0), Showing(Entrant("peer", (), True), failure="gone"))
    assert found["inflight"].failure == "ended with code 9"
    assert found["static"].relative is None
    assert found["peer"].median_s is None
    assert found["peer"].relative is None


def test_without_a_floor_or_first_tokens_there_are_none_to_show() -> None:
    silent = shown("peer", 2.0, is_peer=True)
    silent.rounds[0] = Round(2.0, [60, 40])
    row = rows(silent, floor_s=None)["peer"]
    assert (row.times_floor, row.ttft_p50_s, row.agreement, row.relative) == (None,) * 4
    assert row.tokens_per_s == 50.0


@pytest.mark.parametrize(
    ("told", "forced", "wrong"),
    [
        (Round(1.0, [5, 3]), True, None),
        (Round(1.0, [5, 2]), False, None),
        (Round(1.0, [5, 2]), True, "made 2 tokens for request 1, where 3 were asked for"),
        (Round(1.0, [6, 3]), False, "made 6 tokens for request 0, where 5 were asked for"),
        (Round(1.0, [5]), False, "answered 1 of 2 requests"),
        (Round(1.0, [5, 3], texts=["a"]), True, "answered"),
        (Round(0.0, [5, 3]), True, "took 0.0 s"),
    ],
)
def test_only_the_tokens_that_were_asked_for_count(
    told: Round, forced: bool, wrong: str | None
) -> None:
    found = fault(told, [5, 3], forced)
    assert found == wrong if wrong is None else wrong in (found or "")
