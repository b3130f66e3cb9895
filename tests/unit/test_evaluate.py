from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.builders import chat
from uellm_cli.errors import PredictorError, UsageError
from uellm_cli.profiler.learning.evaluate import (
    CEILING,
    CONSTANT,
    PER_TASK,
    PROMPT_LENGTH,
    Contestant,
    evaluate,
    prompt_numbers,
    transfer,
)
from uellm_cli.profiler.learning.metrics import (
    coverage,
    kendall_tau,
    mean_absolute_error,
    other_medians,
    pinball,
)
from uellm_cli.profiler.learning.tally import Evaluation, Line, Truth
from uellm_cli.profiler.lengths.bounds import Quantiles, repeated
from uellm_cli.profiler.lengths.constant import Constant
from uellm_cli.profiler.lengths.oracle import Oracle
from uellm_cli.types import Example, LengthPredictor, Request


def quiet(_: str) -> None:
    pass


def example(name: str, tokens: int, task: str = "", censored: bool = False) -> Example:
    request = replace(chat(name, name), metadata={"output_tokens": tokens})
    return Example(request, 10 + len(name), tokens, censored, task)


def lognormal(count: int, seed: int = 0, median: float = 100) -> list[Example]:
    draw = np.random.default_rng(seed)
    return [
        example(f"prompt {seed} {i}", max(1, round(median * draw.lognormal(0, 0.7))))
        for i in range(count)
    ]


def two_tasks(count: int) -> list[Example]:
    draw = np.random.default_rng(0)
    medians = {"short": 10, "long": 400}
    return [
        example(f"{task} {i}", max(1, round(medians[task] * draw.lognormal(0, 0.4))), task)
        for i in range(count // 2)
        for task in medians
    ]


def by_name(found: Evaluation) -> dict[str, Line]:
    return {line.name: line for line in found.lines}


def mean(value: object) -> float:
    return float(getattr(value, "mean", math.nan))


ORACLE = Contestant("oracle", lambda _examples, _seed: Oracle())


# --- Metrics -------------------------------------------------------------------------------------


def test_errors_are_what_one_works_out_by_hand() -> None:
    said, true = np.array([10.0, 20.0, 30.0]), np.array([12.0, 20.0, 20.0])
    assert mean_absolute_error(said, true) == pytest.approx((2 + 0 + 10) / 3)
    # 0.9 for each token too few, 0.1 for each too many.
    assert pinball(said, true, 0.9) == pytest.approx((0.9 * 2 + 0 + 0.1 * 10) / 3)


def test_tau_is_one_for_the_right_order_and_nothing_for_a_constant() -> None:
    true = np.array([1.0, 5.0, 3.0, 4.0])
    assert kendall_tau(10 * true, true) == pytest.approx(1)
    assert kendall_tau(-true, true) == pytest.approx(-1)
    assert kendall_tau(np.full(4, 7.0), true) is None


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30))
def test_coverage_of_whole_answers_is_the_plain_share(rows: list[tuple[int, int]]) -> None:
    tokens = np.array([float(length) for length, _ in rows])
    quantiles = np.array([[float(said)] * 8 for _, said in rows])
    uncut = np.zeros(len(rows), dtype=bool)
    share = sum(length <= said for length, said in rows) / len(rows)
    assert coverage(quantiles, tokens, uncut) == pytest.approx(share)


def test_coverage_allows_for_what_cut_answers_would_have_been() -> None:
    draw = np.random.default_rng(0)
    true = np.round(100 * draw.lognormal(0, 0.7, 5000))
    caps = draw.choice([60.0, 150.0, 1e9], 5000)  # a cap says nothing of what it cuts
    tokens, censored = np.minimum(true, caps), true > caps
    quantiles = np.full((5000, 8), 245.2)  # the true 0.9 quantile: 100·exp(0.7·1.2816)
    assert np.mean(tokens <= 245.2) > 0.93
    assert coverage(quantiles, tokens, censored) == pytest.approx(0.9, abs=0.015)


def test_the_others_of_a_group_say_nothing_of_one_alone() -> None:
    medians = other_medians(np.array([1.0, 5.0, 9.0, 7.0]), np.array([0, 1, 0, 0]))
    assert medians[[0, 2, 3]].tolist() == [8.0, 4.0, 5.0]
    assert np.isnan(medians[1])


# --- One set -------------------------------------------------------------------------------------


def test_answers_to_one_prompt_alone_are_refused() -> None:
    same = [example("the prompt", 10 + i) for i in range(100)]
    with pytest.raises(PredictorError, match="at least 2 prompts"):
        evaluate(same, [ORACLE], range(2), quiet)
    two = [*same, *(example("another", 20 + i) for i in range(100))]
    assert by_name(evaluate(two, [], range(2), quiet))[CONSTANT].failure is None


def test_the_constant_is_the_measure_and_the_truth_has_no_error() -> None:
    lines = by_name(evaluate(lognormal(400), [ORACLE], range(3), quiet))
    assert mean(lines[CONSTANT].mae) == 1.0
    assert mean(lines[CONSTANT].pinball) == 1.0
    assert lines[CONSTANT].tau is None
    assert mean(lines["oracle"].mae) == 0.0
    assert mean(lines["oracle"].tau) == pytest.approx(1)
    assert mean(lines["oracle"].coverage) == 1.0


def test_figures_are_ratios_of_plain_errors_on_the_rows_that_were_drawn() -> None:
    examples = lognormal(200)
    seen: list[Sequence[Example]] = []

    def learn(train: Sequence[Example], _seed: int) -> LengthPredictor:
        seen.append(train)
        return Constant((50.0,) * 8)

    found = evaluate(examples, [Contestant("fifty", learn)], [5], quiet)
    train = seen[0]
    test = [each for each in examples if each not in train]
    assert (len(train), len(test)) == (160, 40)
    median = sorted(each.output_tokens for each in train)[79]  # half of 160 are no longer
    error = np.mean([abs(each.output_tokens - 50) for each in test])
    reference = np.mean([abs(each.output_tokens - median) for each in test])
    assert found.reference_mae.mean == pytest.approx(reference)
    assert mean(by_name(found)["fifty"].mae) == pytest.approx(error / reference)


def test_another_seed_draws_another_test_and_the_same_one_the_same() -> None:
    examples = lognormal(200)
    one, same, other = (evaluate(examples, [], [seed], quiet) for seed in (1, 1, 2))
    assert one == same
    assert one.reference_mae != other.reference_mae


def test_spread_is_over_the_seeds() -> None:
    examples = lognormal(200)
    apart = [mean(evaluate(examples, [], [seed], quiet).reference_mae) for seed in range(4)]
    found = evaluate(examples, [], range(4), quiet).reference_mae
    assert found.mean == pytest.approx(np.mean(apart))
    assert found.sd == pytest.approx(np.std(apart, ddof=1))
    assert evaluate(examples, [], [0], quiet).reference_mae.sd == 0.0


def test_a_task_s_constant_is_judged_only_where_there_are_tasks() -> None:
    lines = by_name(evaluate(two_tasks(400), [], range(3), quiet))
    assert mean(lines[PER_TASK].mae) < 0.5
    assert mean(lines[PER_TASK].tau) > 0.5
    assert 0.85 < mean(lines[PER_TASK].coverage) < 0.95
    assert PER_TASK not in by_name(evaluate(lognormal(100), [], [0], quiet))


def test_a_task_that_was_not_seen_gets_the_constant_of_all() -> None:
    examples = [*lognormal(100), example("alone", 100, "rare")]
    found = by_name(evaluate(examples, [], range(20), quiet))  # it is in some of the tests
    assert mean(found[PER_TASK].mae) == pytest.approx(1.0, abs=0.05)


def test_answers_to_one_prompt_are_on_one_side_and_make_a_ceiling() -> None:
    draw = np.random.default_rng(0)
    examples = [
        example(f"prompt {i}", max(1, round(mean_ * draw.lognormal(0, 0.2))))
        for i, mean_ in enumerate(100 * draw.lognormal(0, 1, 100))
        for _ in range(4)
    ]
    sides: list[set[str]] = []

    def learn(train: Sequence[Example], _seed: int) -> LengthPredictor:
        sides.append({each.request.custom_id for each in train})
        return Oracle()

    found = evaluate(examples, [Contestant("spy", learn)], range(3), quiet)
    for side in sides:
        assert len(side) == 80
    ceiling = by_name(found)[CEILING]
    assert 0.1 < mean(ceiling.mae) < 0.4
    assert mean(ceiling.tau) > 0.7
    assert ceiling.coverage is None
    assert ceiling.rows == 80
    assert CEILING not in by_name(evaluate(lognormal(200), [], [0], quiet))


def test_prompts_are_the_same_by_all_that_is_said() -> None:
    rows = [example("a", 1), example("b", 1), example("a", 9)]
    assert prompt_numbers(rows).tolist() == [0, 1, 0]


def test_cut_answers_are_in_no_error_and_are_told() -> None:
    whole = lognormal(300)
    wild = [example(f"cut {i}", 10_000, censored=True) for i in range(30)]
    found = evaluate([*whole, *wild], [ORACLE], range(5), quiet)
    assert (found.rows, found.censored) == (330, 30)
    assert found.test_rows == 66
    assert 2 < found.test_censored < 12
    line = by_name(found)["oracle"]
    assert line.rows == pytest.approx(66 - found.test_censored)
    assert found.reference_mae.mean < 200  # with them it would be close to a thousand


def test_what_cannot_learn_is_out_with_its_reason_and_the_others_stay() -> None:
    def refuses(_examples: Sequence[Example], _seed: int) -> LengthPredictor:
        raise PredictorError("too few of them")

    lines = by_name(evaluate(lognormal(100), [Contestant("choosy", refuses), ORACLE], [0], quiet))
    assert lines["choosy"].failure == "too few of them"
    assert lines["choosy"].mae is None
    assert lines["oracle"].failure is None
    same_length = [Example(each.request, 10, each.output_tokens) for each in lognormal(100)]
    line = by_name(evaluate(same_length, [], [0], quiet))[PROMPT_LENGTH]
    assert line.failure == "a line needs two different prompt lengths"


def test_too_few_answers_are_no_judgement() -> None:
    cut = [example(f"cut {i}", 10, censored=True) for i in range(100)]
    with pytest.raises(PredictorError, match="at least 50 answers that were not cut; there are 49"):
        evaluate([*lognormal(49), *cut], [], [0], quiet)


def test_a_kind_learns_and_beats_the_constant_where_there_is_something_to_learn() -> None:
    history = Contestant.kind("history", {"folds": "4"})
    lines = by_name(evaluate(two_tasks(400), [history], range(2), quiet))
    assert mean(lines["history"].mae) < 0.5
    assert 0.83 < mean(lines["history"].coverage) < 0.97


def test_kinds_and_predictors_go_by_their_names() -> None:
    with pytest.raises(UsageError, match="no trainable predictor called 'constant'"):
        Contestant.kind("constant", {})
    assert Contestant.saved("oracle").name == "oracle, as it is"
    with pytest.raises(UsageError, match="no length predictor called 'nobody'"):
        Contestant.saved("nobody")


# --- From one set to another ---------------------------------------------------------------------


class Halved:
    """Knows every length, and says half of it."""

    source = "halved"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        return Oracle().quantiles(requests, prompt_tokens) / 2


HALVED = Contestant("halved", lambda _examples, _seed: Halved())


def line_of(found: Evaluation, name: str, pilot: int) -> Line:
    (line,) = (line for line in found.lines if (line.name, line.pilot) == (name, pilot))
    return line


def test_a_pilot_mends_what_another_model_says_twice_as_long() -> None:
    there = lognormal(100, median=50)
    here = lognormal(400, seed=1)
    found = transfer(there, here, [HALVED], [0, 24, 100], range(3), quiet)
    assert mean(line_of(found, "halved", 0).tau) == pytest.approx(1)
    assert mean(line_of(found, "halved", 0).mae) > 0.5
    assert mean(line_of(found, "halved", 24).mae) < 0.2
    assert mean(line_of(found, "halved", 100).mae) < 0.2


def test_every_pilot_is_judged_on_the_same_rows_that_no_pilot_has() -> None:
    judged: list[frozenset[str]] = []

    class Spy(Halved):
        def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
            judged.append(frozenset(request.custom_id for request in requests))
            return super().quantiles(requests, prompt_tokens)

    here = lognormal(200, seed=1)
    found = transfer(
        lognormal(60), here, [Contestant("spy", lambda *_: Spy())], [0, 30], [0], quiet
    )
    tests = {names for names in judged if len(names) == 170}
    pilots = {names for names in judged if len(names) == 30}
    assert len(tests) == 1
    assert len(pilots) == 1
    assert not tests.pop() & pilots.pop()
    assert {line.rows for line in found.lines} == {170.0}


def test_the_pilot_s_own_constant_stands_beside_and_none_beats_the_best() -> None:
    there, here = lognormal(100, median=900), lognormal(500, seed=1, median=100)
    found = transfer(there, here, [], [0, 100], range(8), quiet)
    # Without a pilot it is the other set's: 900 for a median of 100.
    assert mean(line_of(found, CONSTANT, 0).mae) > 8
    assert 1.0 <= mean(line_of(found, CONSTANT, 100).mae) < 1.1
    assert 0.85 < mean(line_of(found, CONSTANT, 100).coverage) < 0.95


def test_a_pilot_that_leaves_too_few_is_refused() -> None:
    with pytest.raises(PredictorError, match="after a pilot of 300 rows at least 50 answers"):
        transfer(lognormal(100), lognormal(340), [], [0, 300], [0], quiet)


def test_a_base_that_cannot_learn_is_out_for_every_pilot() -> None:
    history = Contestant.kind("history", {})

    def too_late(examples: Sequence[Example], seed: int) -> LengthPredictor:
        return history.learn(examples[:3], seed)

    contestants = [Contestant("late", too_late)]
    found = transfer(lognormal(60), lognormal(100), contestants, [0, 24], [0], quiet)
    for pilot in (0, 24):
        assert "at least 20 answers" in (line_of(found, "late", pilot).failure or "")


# --- Truth ---------------------------------------------------------------------------------------


def test_a_reference_without_any_error_leaves_ratios_out() -> None:
    examples = [example(f"p {i}", 7) for i in range(10)]
    truth = Truth.of(examples, repeated((7.0,) * 8, 10))
    figures = truth.figures(repeated((8.0,) * 8, 10))
    assert (figures.mae, figures.pinball, figures.coverage) == (None, None, 1.0)
