from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.builders import chat
from uellm_cli.errors import PredictorError
from uellm_cli.profiler.learning.adapt import LEAST_EXAMPLES, adapt
from uellm_cli.profiler.learning.metrics import coverage
from uellm_cli.profiler.lengths.adapted import Adapted, AdaptedModel, Base
from uellm_cli.profiler.lengths.bounds import MEDIAN, Quantiles
from uellm_cli.profiler.lengths.ngram import read_model
from uellm_cli.types import QUANTILE_LEVELS, Example, Request

SPREAD = np.linspace(-1.6, 1.6, len(QUANTILE_LEVELS))


class ByNumber:
    """Takes the number in a prompt for the median of its answer, and a spread of e^±1.6."""

    source = "by-number"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        numbers = [float(request.messages[0].content.split()[0]) for request in requests]
        quantiles: Quantiles = np.asarray(numbers)[:, None] * np.exp(SPREAD)
        return quantiles


def answers(
    count: int, truth: Callable[[float], float], seed: int, noise: float = 0.3, words: str = ""
) -> list[Example]:
    """Prompts with a number, answered with `truth` of it, and ten times that for `words`."""
    drawn = random.Random(seed)
    rows = []
    for i in range(count):
        number = drawn.lognormvariate(4.5, 0.8)
        extra = drawn.choice(["plain thing", words]) if words else "plain thing"
        tokens = truth(number) * (10 if words and extra == words else 1)
        length = max(1, round(tokens * drawn.lognormvariate(0, noise)))
        rows.append(Example(chat(str(i), f"{number:.0f} {extra} please"), 5, length))
    return rows


def adapted(rows: Sequence[Example]) -> AdaptedModel:
    return adapt(Base("by-number"), ByNumber(), rows, 0)


def said(model: AdaptedModel | Adapted, rows: Sequence[Example]) -> Quantiles:
    return model.quantiles([row.request for row in rows], [row.prompt_tokens for row in rows])


def relative_error(model: AdaptedModel, rows: Sequence[Example]) -> float:
    tokens = np.array([row.output_tokens for row in rows])
    return float(np.median(np.abs(np.log(said(model, rows)[:, MEDIAN] / tokens))))


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_a_model_that_says_a_few_times_as_much_is_met_by_a_small_pilot(factor: float) -> None:
    pilot = answers(40, lambda number: factor * number, seed=1)
    unseen = answers(400, lambda number: factor * number, seed=2)
    assert relative_error(adapted(pilot), unseen) < 0.35


@pytest.mark.parametrize("rows", [24, 100, 300])
def test_nine_tenths_of_new_answers_are_covered_after_a_pilot(rows: int) -> None:
    covered = []
    for seed in range(12):
        pilot = answers(rows, lambda number: 3 * number, seed, noise=0.5)
        unseen = answers(300, lambda number: 3 * number, 1000 + seed, noise=0.5)
        tokens = np.array([float(row.output_tokens) for row in unseen])
        covered.append(coverage(said(adapted(pilot), unseen), tokens, np.zeros(300, dtype=bool)))
    assert 0.86 <= np.mean(covered) <= 0.95


def test_a_base_that_knows_nothing_is_replaced_by_the_answers_own_distribution() -> None:
    drawn = random.Random(5)
    rows = [
        Example(chat(str(i), f"{drawn.randint(1, 1000)} x"), 5, drawn.randint(90, 110))
        for i in range(100)
    ]
    model = adapted(rows)
    assert model.adaptation.constant is not None
    assert model.source == "constant + 100 answers"
    assert said(model, rows)[:, MEDIAN] == pytest.approx(100, rel=0.1)


def test_what_the_words_decide_is_learnt_from_a_larger_pilot() -> None:
    def truth(number: float) -> float:
        return number

    model = adapted(answers(300, truth, seed=1, words="tell everything about it"))
    assert model.weights is not None
    unseen = answers(300, truth, seed=2, words="tell everything about it")
    # A tenfold difference of half of the rows is 1.15 in log tokens from the middle of both.
    assert relative_error(model, unseen) < 0.6


def test_a_base_that_misleads_is_replaced_by_a_model_of_the_answers(tmp_path: Path) -> None:
    """What is asked decides, and not the number that the base goes by."""
    drawn = random.Random(2)
    kinds = {"name a city": 5, "describe a city": 80, "tell all about a city": 600}

    def rows(count: int) -> list[Example]:
        made = []
        for i in range(count):
            text, tokens = drawn.choice(list(kinds.items()))
            length = round(tokens * drawn.lognormvariate(0, 0.2))
            made.append(Example(chat(str(i), f"{drawn.randint(2, 2000)} {text}"), 5, length))
        return made

    model = adapted(rows(150))
    assert model.own is not None
    assert model.adaptation.own_share > 0
    unseen = rows(200)
    assert relative_error(model, unseen) < 0.3
    model.own.write(tmp_path)
    read = replace(model, own=read_model(tmp_path))
    assert said(read, unseen) == pytest.approx(said(model, unseen), rel=0.05)


def test_a_base_that_is_right_is_left_alone() -> None:
    model = adapted(answers(200, lambda number: number, seed=3, noise=0.8))
    assert model.weights is None
    assert model.adaptation.constant is None
    assert model.adaptation.slope == pytest.approx(1.0, abs=0.15)


def test_a_few_answers_change_nothing() -> None:
    rows = answers(LEAST_EXAMPLES - 1, lambda number: 9 * number, seed=0)
    as_it_is = ByNumber().quantiles([row.request for row in rows], [])
    assert said(adapted(rows), rows) == pytest.approx(as_it_is)


def test_answers_that_were_cut_do_not_pull_predictions_down() -> None:
    full = answers(200, lambda number: 4 * number, seed=1)
    cut = [
        Example(row.request, 5, min(row.output_tokens, 300), row.output_tokens > 300)
        for row in full
    ]
    believed = [Example(row.request, 5, row.output_tokens) for row in cut]
    large = [chat("x", "400 plain thing please")]
    aware, naive = (adapted(rows).quantiles(large, [5])[0, -1] for rows in (cut, believed))
    assert aware > 1.5 * naive


def test_an_adapted_predictor_is_written_and_read_again(tmp_path: Path) -> None:
    rows = answers(300, lambda number: number, seed=1, words="tell everything about it")
    requests = [row.request for row in rows]
    prompts = [row.prompt_tokens for row in rows]
    from uellm_cli.profiler.lengths.constant import Constant

    model = adapt(Base("constant"), Constant(), rows, 0)
    model.write(tmp_path)
    read = Adapted(tmp_path)
    assert read.source == model.source
    assert read.quantiles(requests, prompts) == pytest.approx(
        model.quantiles(requests, prompts), rel=1e-5
    )


def test_adapted_without_a_folder_says_where_there_is_one() -> None:
    with pytest.raises(PredictorError, match="RUN_DIR/predictor"):
        Adapted().quantiles([], [])


def test_a_damaged_adapted_predictor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adaptation.json").write_text("{}")
    with pytest.raises(PredictorError, match=str(tmp_path)):
        Adapted(tmp_path).quantiles([chat("a", "b")], [1])
