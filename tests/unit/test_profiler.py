from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.builders import WordTokenizer, chat, model_spec
from tests.unit.predictor_cases import asking, ready_predictors
from uellm_cli.errors import UsageError
from uellm_cli.models.files import samples_by_default
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.profiler.lengths.bounds import MEDIAN, estimates
from uellm_cli.profiler.lengths.prompt_length import PromptLength, fit
from uellm_cli.profiler.profile import Profiler
from uellm_cli.profiler.table import write_profile
from uellm_cli.types import QUANTILE_LEVELS, LengthPredictor

CONSTANT = LENGTH_PREDICTORS.build("constant", {"tokens": [1, 2, 3, 4, 5, 6, 7, 8]})


def test_a_profile_holds_tokens_cap_quantiles_and_cache() -> None:
    profile = Profiler(WordTokenizer(), model_spec(), CONSTANT).profile(
        [chat("a", "one two three")]
    )
    (request,) = profile.requests
    assert request.prompt_tokens == 3
    assert request.max_tokens == 1024 - 3  # what the context leaves
    assert list(request.output.tokens) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert request.kv_bytes == (3 + 6) * 4  # p90 is 6; four layers, a byte a token and layer


@pytest.mark.parametrize(
    ("own", "default", "cap"),
    [(None, None, 1021), (7, None, 7), (7, 5, 7), (None, 5, 5), (5000, 5, 1021)],
)
def test_a_cap_is_the_request_s_own_then_the_run_s_and_never_beyond_the_context(
    own: int | None, default: int | None, cap: int
) -> None:
    request = chat("a", "one two three", max_tokens=own)
    profile = Profiler(WordTokenizer(), model_spec(), CONSTANT, default).profile([request])
    assert profile.requests[0].max_tokens == cap
    assert profile.requests[0].output.tokens[-1] <= cap


def test_a_prompt_that_fills_the_context_is_an_invalid_request_that_says_so() -> None:
    requests = [chat("long", "word " * 10), chat("short", "word " * 9), chat("empty", "")]
    model = model_spec(context_tokens=10)
    profile = Profiler(WordTokenizer(), model, CONSTANT).profile(requests)
    assert [request.custom_id for request in profile.requests] == ["short"]
    reasons = {invalid.custom_id: invalid.reason for invalid in profile.invalid}
    assert "10 tokens leave no room" in reasons["long"]
    assert "no tokens" in reasons["empty"]


def test_a_conversation_that_the_template_refuses_costs_only_itself() -> None:
    requests = [chat("a", "fine"), chat("b", "forbidden"), chat("c", "fine too")]
    profile = Profiler(WordTokenizer(), model_spec(), CONSTANT).profile(requests)
    assert [request.custom_id for request in profile.requests] == ["a", "c"]
    assert [(i.custom_id, i.field) for i in profile.invalid] == [("b", "messages")]


def test_the_profile_table_has_a_column_for_every_quantile(tmp_path: Path) -> None:
    profile = Profiler(WordTokenizer(), model_spec(), CONSTANT).profile([chat("a", "one two")])
    write_profile(tmp_path / "profile.parquet", profile)
    (row,) = pq.read_table(tmp_path / "profile.parquet").to_pylist()
    assert row["custom_id"] == "a"
    assert row["deadline_s"] is None
    assert [row[f"output_tokens_p{round(q * 100):02d}"] for q in QUANTILE_LEVELS] == [
        1, 2, 3, 4, 5, 6, 7, 8,
    ]  # fmt: skip


def test_a_line_fitted_to_a_power_law_finds_it_again() -> None:
    prompts = [10, 20, 40, 80, 160]
    line = fit(prompts, [round(3 * prompt**1.0) for prompt in prompts])
    assert line.slope == pytest.approx(1.0)
    assert math.exp(line.intercept) == pytest.approx(3.0)
    assert line.quantiles([chat("a", "")], [100])[0, MEDIAN] == pytest.approx(300)


def test_a_line_needs_two_different_prompt_lengths() -> None:
    with pytest.raises(ValueError, match="two different"):
        fit([5, 5], [1, 2])


@pytest.mark.parametrize("quantiles", [[1, 2], [8, 7, 6, 5, 4, 3, 2, 1]])
def test_a_constant_that_is_no_distribution_is_refused(quantiles: list[int]) -> None:
    with pytest.raises(UsageError, match="quantiles"):
        LENGTH_PREDICTORS.build("constant", {"tokens": quantiles})


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LengthPredictor]:
    return ready_predictors(tmp_path_factory.mktemp("predictors"))


@pytest.mark.parametrize("name", LENGTH_PREDICTORS.names())
@given(rows=st.lists(st.tuples(st.integers(1, 100_000), st.integers(1, 5000)), max_size=20))
def test_every_predictor_s_quantiles_ascend_within_one_and_the_cap(
    name: str, predictors: dict[str, LengthPredictor], rows: list[tuple[int, int]]
) -> None:
    requests = [asking(str(i), "say text") for i, _ in enumerate(rows)]
    prompts, caps = [prompt for prompt, _ in rows], [cap for _, cap in rows]
    made = estimates(predictors[name], requests, prompts, caps)
    assert len(made) == len(rows)
    for estimate, cap in zip(made, caps, strict=True):
        assert list(estimate.tokens) == sorted(estimate.tokens)
        assert 1 <= estimate.tokens[0] <= estimate.tokens[-1] <= cap
        assert estimate.source == predictors[name].source


@pytest.mark.parametrize("name", LENGTH_PREDICTORS.names())
def test_every_predictor_says_the_same_of_a_request_whatever_is_asked_beside_it(
    name: str, predictors: dict[str, LengthPredictor]
) -> None:
    requests = [asking(str(i), f"say {'word ' * i}") for i in range(9)]
    prompts = [3 + i for i in range(9)]
    together = predictors[name].quantiles(requests, prompts)
    backwards = predictors[name].quantiles(requests[::-1], prompts[::-1])[::-1]
    alone = [
        predictors[name].quantiles([request], [prompt])[0]
        for request, prompt in zip(requests, prompts, strict=True)
    ]
    assert together == pytest.approx(backwards, rel=1e-4)
    assert together == pytest.approx(np.array(alone), rel=1e-4)


def test_a_slope_moves_the_prediction_with_the_prompt() -> None:
    predictor = PromptLength(intercept=0.0, slope=1.0, residuals=(0.0,) * 8)
    short, long = predictor.quantiles([chat("a", ""), chat("b", "")], [10, 1000])[:, MEDIAN]
    assert short == pytest.approx(10)
    assert long == pytest.approx(1000)


@pytest.mark.parametrize(
    ("temperature", "samples_by_default", "rounds"),
    [(None, True, 4), (None, False, 1), (0.0, True, 1), (0.7, False, 4)],
)
def test_several_answers_take_as_many_rounds_unless_they_are_all_the_same(
    temperature: float | None, samples_by_default: bool, rounds: int
) -> None:
    asked = chat("a", "one two")
    asked = replace(asked, sampling=replace(asked.sampling, n=4, temperature=temperature))
    profiler = Profiler(
        WordTokenizer(), model_spec(), CONSTANT, samples_by_default=samples_by_default
    )
    assert profiler.profile([asked]).requests[0].rounds == rounds


@pytest.mark.parametrize(
    ("content", "expected"),
    [('{"do_sample": true}', True), ('{"do_sample": false}', False), ("{}", False), ("[", False)],
)
def test_a_model_samples_by_default_where_its_generation_config_says_so(
    content: str, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    assert samples_by_default(str(tmp_path)) is expected


def test_a_longer_cap_is_given_within_the_context_and_never_takes_away() -> None:
    profiler = Profiler(WordTokenizer(), model_spec(context_tokens=20), CONSTANT)
    request = chat("a", "one two three", max_tokens=4)
    (first,) = profiler.profile([request]).requests
    caps = [profiler.with_longer_cap(first, request, cap).max_tokens for cap in (2, 6, 100)]
    assert caps == [4, 6, 17]
    longer = profiler.with_longer_cap(first, request, 6)
    assert longer.output.tokens[-1] == 6
    assert (longer.custom_id, longer.prompt_tokens, longer.slo) == ("a", 3, first.slo)


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        ({"min_tokens": 4}, [4, 4, 4, 4, 5, 6, 7, 8]),
        ({"min_tokens": 30}, [10] * 8),  # the cap wins
        ({"ignore_eos": True}, [10] * 8),
        # Something else may still end these.
        ({"ignore_eos": True, "stop": ("x",)}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"ignore_eos": True, "stop_token_ids": (3,), "min_tokens": 2}, [2, 2, 3, 4, 5, 6, 7, 8]),
        ({"ignore_eos": True, "min_tokens": 9, "json_schema": "{}"}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_an_answer_is_predicted_to_be_as_long_as_it_was_asked_to_be(
    sampling: dict[str, Any], tokens: list[int]
) -> None:
    asked = chat("a", "one two")
    asked = replace(asked, sampling=replace(asked.sampling, max_tokens=10, **sampling))
    (request,) = Profiler(WordTokenizer(), model_spec(), CONSTANT).profile([asked]).requests
    assert list(request.output.tokens) == tokens
    assert request.kv_bytes == (2 + tokens[5]) * 4


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"logit_bias": ((3, 1.0), (10**6, 1.0))}, "logit_bias.1000000"),
        ({"stop_token_ids": (3, 10**6)}, "stop_token_ids"),
    ],
)
def test_a_token_that_the_model_does_not_have_is_refused_before_anything_loads(
    sampling: dict[str, Any], field: str
) -> None:
    asked = chat("a", "one two")
    asked = replace(asked, sampling=replace(asked.sampling, **sampling))
    (refused,) = Profiler(WordTokenizer(), model_spec(), CONSTANT).profile([asked]).invalid
    assert refused.field == field
    assert refused.reason.startswith("1000000 is no token of the model, which has ")


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ('{"type": "object"}', None),
        ('{"$ref": "#/nope"}', "'/nope' does not exist"),
        ('{"type": "nothing"}', "Invalid type: nothing"),
        ('{"type": "string", "pattern": "("}', "regex"),
    ],
)
def test_a_schema_that_no_answer_can_follow_is_refused_before_anything_loads(
    schema: str, problem: str | None
) -> None:
    asked = chat("a", "one two")
    asked = replace(asked, sampling=replace(asked.sampling, json_schema=schema))
    profile = Profiler(WordTokenizer(), model_spec(), CONSTANT).profile([asked])
    if problem is None:
        assert len(profile.requests) == 1
    else:
        (refused,) = profile.invalid
        assert refused.field == "response_format"
        assert problem in refused.reason
        assert not refused.reason.endswith(":")
