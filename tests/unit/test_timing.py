from __future__ import annotations

import pytest

from tests.builders import ONE_SECOND_STEPS, profiled
from uellm_cli.timing.simulator import alone_s, judge, simulate_static, static_batch_times
from uellm_cli.types import Batch, ProfiledRequest, Schedule

# With steps of one second an answer of n tokens takes n seconds: one prefill, n - 1 decode steps.


def test_a_static_batch_runs_to_its_longest_answer() -> None:
    times = static_batch_times([10, 20], [3, 8], ONE_SECOND_STEPS)
    assert (times.first_token_s, times.finished_s) == (1.0, 8.0)


def test_batches_run_one_after_another_and_hand_back_all_their_answers_at_once() -> None:
    requests = {name: profiled(name, output=out) for name, out in [("a", 3), ("b", 8), ("c", 2)]}
    finished = simulate_static(
        [Batch(0, ("a", "b")), Batch(1, ("c",))], requests, _length, ONE_SECOND_STEPS, start_s=100
    )
    assert finished == {"a": 108.0, "b": 108.0, "c": 110.0}


def test_a_verdict_counts_the_late_by_class_and_names_the_first() -> None:
    requests = [
        profiled("a", output=3, deadline_s=4, slo_class="fast"),  # at 3 s: in time
        profiled("b", output=8, deadline_s=10, slo_class="fast"),  # at 11 s: late
        profiled("c", output=2, deadline_s=6, slo_class="slow"),  # at 13 s: late, due first
        profiled("d", output=1, slo_class="slow"),  # never late
    ]
    schedule = Schedule("test", tuple(Batch(i, (r.custom_id,)) for i, r in enumerate(requests)))
    verdict = judge(schedule, requests, ONE_SECOND_STEPS)
    assert (verdict.makespan_s, verdict.late, verdict.first_late) == (14.0, 2, "c")
    assert [(c.name, c.requests, c.late) for c in verdict.classes] == [
        ("fast", 2, 1),
        ("slow", 2, 1),
    ]


def test_a_request_that_fits_no_batch_is_late_if_it_was_due_at_all() -> None:
    requests = [profiled("a", deadline_s=1000), profiled("b")]
    verdict = judge(Schedule("test", (), oversized=("a", "b")), requests, ONE_SECOND_STEPS)
    assert (verdict.late, verdict.first_late, verdict.makespan_s) == (1, "a", 0.0)


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (1, 1.0), (5, 5.0)])
def test_alone_a_request_takes_a_step_a_token(tokens: int, seconds: float) -> None:
    assert alone_s(profiled("a"), tokens, ONE_SECOND_STEPS) == seconds


def _length(request: ProfiledRequest) -> int:
    return round(request.output.p50)
