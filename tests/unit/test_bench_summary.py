"""From rounds to rows: medians, ratios and agreement, in round numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from uellm_cli.bench.summary import Row, Showing, fault, summarise
from uellm_cli.bench.workers import Entrant, Round


def shown(
    name: str, *seconds: float, tokens: list[list[int]] | None = None, is_peer: bool = False
) -> Showing:
    """An entrant with a round of two answers, 100 tokens together, for each of `seconds`."""
    rounds = [
        Round(s, [60, 40], ttft_s=[s / 10, s / 5], tokens=tokens or [[1], [2]]) for s in seconds
    ]
    return Showing(Entrant(name, (), is_peer), rounds=rounds)


def rows(*showings: Showing, floor_s: float | None = 1.0, dtype: str = "float32") -> dict[str, Row]:
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    return {row.engine: row for row in summarise(showings, floor_s, dtype, decode)}


def test_a_row_is_of_the_median_round_and_tells_the_spread() -> None:
    row = rows(shown("static", 4.0, 2.0, 5.0))["static"]
    assert (row.median_s, row.least_s, row.most_s) == (4.0, 2.0, 5.0)
    assert row.round_s == (4.0, 2.0, 5.0)
    assert row.tokens_per_s == 25.0
    assert row.times_floor == 4.0
    # All rounds' first tokens together: 0.2, 0.4, 0.4, 0.5, 0.8, 1.0.
    assert (row.ttft_p50_s, row.ttft_p99_s) == (0.4, 1.0)


def test_speed_is_told_against_the_best_of_ours_round_by_round() -> None:
    found = rows(
        shown("static", 8.0, 8.0, 80.0),
        shown("inflight", 2.0, 2.0, 20.0),
        shown("peer", 1.0, 1.0, 40.0, is_peer=True),
    )
    # The busy third round made everybody slow; the peer is twice as fast in two of three.
    assert found["inflight"].relative == 1.0
    assert found["static"].relative == 0.25
    assert found["peer"].relative == 2.0


def test_agreement_is_of_whole_answers_with_transformers_and_in_float32_only() -> None:
    reference = shown("transformers_static", 1.0, tokens=[[1, 2], [3]], is_peer=True)
    other = shown("peer", 1.0, tokens=[[1, 2], [4]], is_peer=True)
    ours = shown("static", 1.0)
    ours.rounds[0] = Round(1.0, [60, 40], texts=["1 2", "3"])
    found = rows(other, ours, reference)
    assert found["transformers_static"].agreement == 1.0
    assert found["static"].agreement == 1.0
    assert found["peer"].agreement == 0.5
    assert rows(other, ours, reference, dtype="bfloat16")["peer"].agreement is None
    # Without transformers' own, our static engine is it; without either, nothing is compared.
    assert rows(other, ours)["peer"].agreement == 0.5
    assert rows(other)["peer"].agreement is None


def test_who_is_out_has_a_row_with_the_reason_and_is_nobody_s_measure() -> None:
    out = shown("inflight", 1.0)
    out.failure = "ended with code 9"
    found = rows(out, shown("static", 2.0), Showing(Entrant("peer", (), True), failure="gone"))
    assert found["inflight"].failure == "ended with code 9"
    assert found["static"].relative == 1.0
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
