"""The schedulers' bench: honest cases, the same for all, and figures that can be checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from tests.builders import unheard
from tests.unit.scheduling_cases import conditions
from uellm_cli.bench.scheduler_cases import (
    Order,
    Prediction,
    WorkSet,
    case_of,
    promised_shares,
    stored_sets,
    synthetic_sets,
)
from uellm_cli.bench.schedulers import (
    SchedulerBench,
    conditions_of,
    contests,
    mean_of,
    measured,
    run_cases,
    standings,
)
from uellm_cli.clock import SystemClock
from uellm_cli.columns import LEVELS
from uellm_cli.errors import UsageError
from uellm_cli.scheduler.bounds import makespan_bound_s
from uellm_cli.types import Batching

HEAVY = synthetic_sets()[1]
BENCH = SchedulerBench(
    sets=[HEAVY],
    schedulers=["fifo", "edf", "uellm"],
    batchings=[Batching.IN_FLIGHT],
    tightness=[0.7],
    predictions=[Prediction.ORACLE],
    orders=[Order.ADVERSARIAL],
    requests=40,
    seeds=3,
    rows=4,
    kv_tokens=50_000,
)
UNDER = conditions_of(BENCH, Batching.IN_FLIGHT)


def quantiles_of(prediction: Prediction, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """What is predicted, and the truth."""
    case = case_of(HEAVY, count, 1.0, prediction, Order.SHUFFLED, 0, UNDER, 1.0)
    return case.columns.quantiles, case.output_tokens


def test_an_oracle_says_the_truth_and_a_constant_the_same_of_all() -> None:
    quantiles, truth = quantiles_of(Prediction.ORACLE)
    assert (quantiles == truth[:, None]).all()
    quantiles, _ = quantiles_of(Prediction.CONSTANT)
    assert (quantiles == quantiles[0]).all()


def test_what_is_predicted_tells_about_half_and_is_calibrated() -> None:
    quantiles, truth = quantiles_of(Prediction.PREDICTED, 4000)
    tau = kendalltau(quantiles[:, 3], truth).statistic
    assert 0.4 < tau < 0.55
    for level, column in zip(LEVELS, quantiles.T, strict=True):
        assert (truth <= column).mean() == pytest.approx(level, abs=0.03)


def test_promises_are_those_of_uellm_s_repository_scaled_to_the_work() -> None:
    shares = promised_shares(np.random.default_rng(0), 100) * 250
    for first, (low, high) in zip(
        range(0, 100, 20), [(220, 250), (180, 220), (150, 180), (100, 120), (90, 100)], strict=True
    ):
        assert ((shares[first : first + 20] >= low) & (shares[first : first + 20] <= high)).all()
    case = case_of(HEAVY, 50, 0.5, Prediction.ORACLE, Order.ADVERSARIAL, 1, UNDER, 1.0)
    least_s = makespan_bound_s(case.columns, case.output_tokens, UNDER)
    assert 0.4 * least_s < case.columns.finish_by_s.max() <= 0.5 * least_s
    assert (np.diff(case.columns.finish_by_s[::10]) < 0).all()


def test_all_schedulers_get_the_same_case() -> None:
    one, other = (
        case_of(HEAVY, 30, 1.0, Prediction.PREDICTED, Order.SHUFFLED, 4, UNDER, 1.0)
        for _ in range(2)
    )
    assert (one.columns.quantiles == other.columns.quantiles).all()
    assert (one.columns.finish_by_s == other.columns.finish_by_s).all()
    assert (one.output_tokens == other.output_tokens).all()


def test_figures_of_one_case_are_those_worked_out_by_hand() -> None:
    # Three answers of 4, 2 and 2 tokens, one at a time, a second a step: 4, 6 and 8 s.
    work = WorkSet("three", np.array([1, 1, 1]), np.array([4, 2, 2]))
    under = conditions(Batching.IN_FLIGHT, rows=1)
    case = case_of(work, 3, 1.0, Prediction.ORACLE, Order.SHUFFLED, 0, under, 1.0)
    dated = replace(case.columns, finish_by_s=np.array([1.0, 100.0, 100.0]))
    found = measured("fifo", replace(case, columns=dated), under, SystemClock())
    assert found.makespan_s == 8.0
    assert found.over_bound == 1.0
    assert found.tokens_per_s == 1.0
    assert found.effective_rows == 1.0
    assert found.late == pytest.approx(1 / 3)
    # The late one ends at 4, or at 2 where it is drawn as one of the short ones.
    assert found.tardiness_s in (1.0, 1 / 3)
    assert found.late_bound == pytest.approx(1 / 3)


def test_means_have_student_s_interval() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    # t = 4.303 with two degrees of freedom, and a standard error of 1/sqrt(3).
    assert mean.mean == 2.0
    assert mean.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert mean_of([1.0]).half_width == math.inf


def test_the_default_is_compared_with_the_best_other_seed_by_seed() -> None:
    found = list(run_cases(BENCH, SystemClock(), unheard))
    assert len(found) == 9
    (contest,) = contests(found)
    late = {row.scheduler: row.late.mean for row in standings(found)}
    assert contest.other == min(late["fifo"], late["edf"])
    assert contest.ours == late["uellm"] <= contest.other
    assert contest.difference.mean == pytest.approx(contest.ours - contest.other)
    assert all(row.late_bound.mean <= row.late.mean + 1e-9 for row in standings(found))


def test_sets_of_others_are_read_and_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(UsageError, match=r"has no traces/\*.parquet"):
        stored_sets(tmp_path)
    (tmp_path / "traces").mkdir()
    (tmp_path / "lengths").mkdir()
    table = {"trace": ["a", "b", "a"], "in_tokens": [5, 6, 7], "out_tokens": [1, 2, 9999]}
    pq.write_table(pa.table(table), tmp_path / "traces" / "all.parquet")
    row = {"prompt": "eight ch", "response_tokens_qwen2": 12}
    (tmp_path / "lengths" / "some.jsonl").write_text(json.dumps(row) + "\n")
    first, second, third = stored_sets(tmp_path)
    assert (first.name, first.prompt_tokens.tolist(), first.output_tokens.tolist()) == (
        "a",
        [5, 7],
        [1, 4096],
    )
    assert second.name == "b"
    assert (third.name, third.prompt_tokens.tolist(), third.output_tokens.tolist()) == (
        "some",
        [2],
        [12],
    )


def test_the_command_shows_tables_and_writes_one_line(
    uellm: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--requests", 10, "--seeds", 2, "--tightness", 1, "--scheduler", "uellm")
    code = uellm("bench", "schedulers", *arguments, "--scheduler", "lpt", "--rows", 4)
    captured = capsys.readouterr()
    assert code == 0
    report = json.loads(captured.out)
    assert report["benchmark"] == "schedulers"
    # Two sets, two ways of batching, three predictions, two orders, two schedulers.
    assert len(report["standings"]) == 48
    assert len(report["contests"]) == 24
    for heading in ("static: late % by prediction", "inflight: late % by prediction"):
        assert heading in captured.err
    assert "heavy tail:" in captured.err
    assert max(map(len, captured.err.splitlines())) <= 80


def test_a_cache_without_room_for_any_request_is_said(
    uellm: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert uellm("bench", "schedulers", "--kv-tokens", 1, "--requests", 5, "--seeds", 2) == 2
    assert "give it more --kv-tokens" in capsys.readouterr().err


def test_a_scheduler_that_is_not_there_is_named(
    uellm: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert uellm("bench", "schedulers", "--scheduler", "best") == 2
    assert "there is no scheduler called 'best'" in capsys.readouterr().err
