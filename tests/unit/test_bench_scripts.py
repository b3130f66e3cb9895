"""What `benchmarks/` and the table make of what is measured."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.gpu import MOST_ROUNDS, _rounds
from benchmarks.scheduling import SCHEDULING, Round, Watch, figures
from uellm_cli.bench.agreement import Check
from uellm_cli.cli.bench import _percent, comparison


def test_a_step_goes_to_the_next_forward_pass_and_what_is_not_model_or_drawing_is_scheduling() -> (
    None
):
    watch = Watch(None)
    # Begin, end, seconds of drawing, rows that decode: prompts, three whole steps, one that is not.
    watch.steps = [
        (0.0, 9.0, 0.0, 0),
        (10.0, 18.0, 1.0, 4),
        (20.0, 28.0, 1.0, 4),
        (30.0, 38.0, 1.0, 4),
        (50.0, 58.0, 1.0, 3),
    ]
    assert watch.round(rows=4) == Round(step_s=10.0, forward_s=8.0, draw_s=1.0)
    found = figures([Round(10.0, 8.0, 1.0), Round(20.0, 17.0, 1.0), Round(10.0, 7.0, 1.0)])
    scheduling = found[SCHEDULING]
    assert (scheduling.median_s, scheduling.least_s, scheduling.most_s) == (2.0, 1.0, 2.0)
    assert scheduling.share == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("seconds_a_round", "rounds"), [(1.0, MOST_ROUNDS), (3.0, 3), (6.0, 1), (100.0, 1)]
)
def test_rounds_go_on_while_another_would_end_in_time_and_there_is_one_at_least(
    seconds_a_round: float, rounds: int
) -> None:
    done: list[tuple[int, int]] = []
    counts: Sequence[int] = (512, 128)

    def now() -> float:
        return len(done) * seconds_a_round / len(counts)

    for number, count in _rounds(counts, until=10.0, now=now):
        done.append((number, count))
    assert done == [(number + 1, count) for number in range(rounds) for count in counts]


def test_what_same_means_is_said_below_the_table_or_why_there_is_nothing() -> None:
    assert comparison(Check(16, 900, {})).endswith("the first 16 requests of each round")
    assert "not asked for" in comparison(None)
    assert "failed: no memory" in comparison(Check(16, 0, {}, failure="no memory"))
    assert [_percent(share) for share in (1.0, 0.9999, 0.5)] == ["100.0%", "99.9%", "50.0%"]
