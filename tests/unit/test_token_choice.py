"""What the next token is: chance, limits, penalties and ends, row by row and whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.unit.engine_cases import HOT, PROMPTS, answers, model_work, static_engine, texts
from uellm_cli.engines import scores as scores_module
from uellm_cli.engines.jobs import Job, JobMaker
from uellm_cli.engines.rows import Row, cut_at_stop
from uellm_cli.engines.sampling import (
    BLOCK,
    RowSampling,
    chances,
    draw,
    draw_from_best,
    pick,
    resolve_sampling,
    row_seed,
)
from uellm_cli.engines.scores import choose
from uellm_cli.engines.static import StaticEngine
from uellm_cli.types import (
    Answer,
    EngineRequest,
    FinishReason,
    RequestTiming,
    SamplingParams,
)

GREEDY = RowSampling(0.0, 1.0, 0)
DEFAULT = SamplingParams()


@pytest.fixture(scope="module")
def static(tiny_llm: str) -> StaticEngine:
    return static_engine(tiny_llm)


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    return model_work(tiny_llm)


# --- Chance --------------------------------------------------------------------------------------


def test_chances_are_spread_evenly_over_seeds_and_over_places() -> None:
    many = 20_000
    for numbers in (
        chances(range(many), [0] * many),
        chances([7] * many, range(many)),
        chances([2**64 - 1 - i for i in range(many)], [3] * many),
    ):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        # The largest gap to the even distribution (Kolmogorov, at one in ten thousand).
        gap = np.abs(np.sort(numbers) - np.arange(many) / many).max()
        assert gap < 2.23 / math.sqrt(many)
        assert len(np.unique(numbers)) == many


def test_neighbouring_chances_know_nothing_of_each_other() -> None:
    grid = chances(np.repeat(np.arange(200), 200).tolist(), list(range(200)) * 200)
    grid = grid.reshape(200, 200)
    for one, other in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(one.size)


def test_a_chance_is_its_seed_s_and_place_s_whatever_else_is_asked_for() -> None:
    together = chances([5, 6, 5], [0, 9, 4])
    assert together.tolist() == [float(chances([s], [t])[0]) for s, t in ((5, 0), (6, 9), (5, 4))]


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), None])
def test_any_64_bit_seed_gives_each_answer_its_own(seed: int | None) -> None:
    request = EngineRequest("a", (1,), 5, SamplingParams(seed=seed))
    seeds = [row_seed(request, 0, answer) for answer in range(5)]
    assert seeds == [row_seed(request, 0, answer) for answer in range(5)]
    assert len(set(seeds)) == 5
    assert all(0 <= number < 2**64 for number in seeds)
    chances(seeds, range(5))


def test_a_request_without_a_seed_has_one_of_the_run_and_its_id() -> None:
    named = [EngineRequest(name, (1,), 5, SamplingParams()) for name in "ab"]
    seeds = {row_seed(request, run_seed) for request in named for run_seed in (0, 1)}
    assert len(seeds) == 4


# --- The draw ------------------------------------------------------------------------------------

SCORES = torch.tensor([0.0, 3.0, 1.0, 2.0])


def drawn(row: RowSampling, times: int = 300, scores: torch.Tensor = SCORES) -> torch.Tensor:
    return draw(scores.expand(times, -1), [row] * times, chances(range(times), [0] * times))


def kept(row: RowSampling, scores: torch.Tensor = SCORES) -> set[int]:
    return set(drawn(row, scores=scores).tolist())


def test_top_k_keeps_the_k_best() -> None:
    assert kept(RowSampling(5.0, 1.0, 2)) == {1, 3}


def test_top_p_keeps_the_fewest_that_reach_it_and_always_one() -> None:
    # Probabilities at temperature 1: 0.644, 0.237, 0.087, 0.032.
    assert kept(RowSampling(1.0, 0.7, 0)) == {1, 3}
    assert kept(RowSampling(1.0, 0.01, 0)) == {1}


def test_top_p_is_of_what_top_k_leaves() -> None:
    # The two best are 0.731 and 0.269 of each other: the first alone reaches 0.7.
    assert kept(RowSampling(1.0, 0.7, 2)) == {1}


def test_min_p_keeps_what_is_that_share_of_the_likeliest() -> None:
    # At temperature 1 they are 1, e^-1, e^-2 and e^-3 = 0.0498 of the likeliest; at 2, 0.223.
    assert kept(RowSampling(1.0, 1.0, 0, min_p=0.2)) == {1, 3}
    assert kept(RowSampling(2.0, 1.0, 0, min_p=0.2)) == {0, 1, 2, 3}
    assert kept(RowSampling(5.0, 1.0, 0, min_p=1.0)) == {1}
    assert kept(RowSampling(5.0, 0.99, 3, min_p=0.9)) == {1}


def test_tokens_that_tie_with_the_last_to_stay_stay_too() -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    assert kept(RowSampling(2.0, 1.0, 3), scores) == {0, 1, 2, 3, 4}
    assert kept(RowSampling(2.0, 1.0, 2), scores) == {1, 3}


@pytest.mark.parametrize(
    "row",
    [RowSampling(1.0, 1.0, 0), RowSampling(2.5, 1.0, 0), RowSampling(1.0, 0.9, 0, 0.05)],
)
def test_every_token_that_stays_is_drawn_about_as_often_as_its_probability(
    row: RowSampling,
) -> None:
    counts = torch.bincount(drawn(row, 4000), minlength=4) / 4000
    # Four standard deviations of a share of 4,000 draws are 0.032 at most.
    assert (counts - torch.softmax(warped(SCORES, row), 0)).abs().max() < 0.032


def warped(scores: torch.Tensor, row: RowSampling) -> torch.Tensor:
    """transformers' scores for it, -inf for what does not stay."""
    warpers: list[Any] = [TemperatureLogitsWarper(row.temperature)]
    if row.top_k:
        warpers.append(TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        warpers.append(TopPLogitsWarper(row.top_p))
    if row.min_p:
        warpers.append(MinPLogitsWarper(row.min_p))
    made = LogitsProcessorList(warpers)(torch.zeros(1, 0, dtype=torch.long), scores[None])[0]
    assert isinstance(made, torch.Tensor)
    return made


SAMPLINGS = st.builds(
    RowSampling,
    temperature=st.floats(0.1, 5),
    top_p=st.just(1.0) | st.floats(0.05, 0.999),
    top_k=st.just(0) | st.integers(1, 400),
    min_p=st.just(0.0) | st.floats(0.001, 1),
)


@given(
    st.lists(SAMPLINGS, min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.integers(1, 400),
    st.integers(1, 8),
)
def test_rows_together_draw_what_transformers_leaves_where_the_chance_falls(
    rows: list[RowSampling], seed: int, width: int, candidates: int
) -> None:
    scores = torch.randn(len(rows), width, generator=torch.Generator().manual_seed(seed)) * 3
    numbers = chances([seed] * len(rows), range(len(rows)))
    ids = draw(scores, rows, numbers)
    for count in (candidates, width):
        few, settled = draw_from_best(scores, rows, numbers, count)
        assert count < width or settled.all()
        assert not settled[few != ids].any()
    for row, own, token, chance in zip(rows, scores, ids.tolist(), numbers, strict=True):
        ends = torch.softmax(warped(own, row).double(), 0).cumsum(0).numpy()
        # The last digits of a sum may decide between neighbours.
        near = {int(np.searchsorted(ends, chance + by, "right")) for by in (-1e-5, 0, 1e-5)}
        if min(abs(end - row.top_p) for end in cumulated(own, row)) > 1e-5:
            assert token in near


def cumulated(scores: torch.Tensor, row: RowSampling) -> list[float]:
    """Sums of the likeliest probabilities, of what top-k leaves."""
    scaled = warped(scores, RowSampling(row.temperature, 1.0, row.top_k))
    sums = torch.softmax(scaled.double(), 0).sort(descending=True).values.cumsum(0)
    return [float(end) for end in sums if row.top_p < 1] or [2.0]


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.25, 1.0, 1e4]), min_size=1, max_size=3 * BLOCK),
    st.sampled_from([0.0, 1e-12, 0.3, 0.9999999, 1 - 2**-52]),
)
def test_a_chance_falls_where_the_sum_of_weights_passes_it(
    weights: list[float], chance: float
) -> None:
    index = int(pick(torch.tensor([weights]), torch.tensor([chance], dtype=torch.float64)))
    assert 0 <= index < len(weights)
    if any(weights):
        assert weights[index] > 0
        ends = np.cumsum(np.array(weights, np.float32).astype(np.float64))
        before = ends[index] - np.float32(weights[index])
        assert before <= (chance + 1e-6) * ends[-1]
        assert ends[index] >= (chance - 1e-6) * ends[-1]


# --- What a row asks for -------------------------------------------------------------------------


def test_defaults_come_from_the_model_only_where_it_samples_itself() -> None:
    greedy = GenerationConfig(do_sample=False, repetition_penalty=1.3)
    sampling = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1)
    assert resolve_sampling(SamplingParams(), greedy) == RowSampling(0.0, 1.0, 0, 0.0, 1.3)
    assert resolve_sampling(SamplingParams(), sampling) == RowSampling(0.6, 0.9, 20, 0.1)
    own = SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.0, repetition_penalty=1.0)
    assert resolve_sampling(own, sampling) == RowSampling(0.0, 0.5, 3)
    assert resolve_sampling(own, greedy).repetition_penalty == 1.0


def test_a_temperature_next_to_zero_is_greedy_and_no_error() -> None:
    tiny = resolve_sampling(SamplingParams(temperature=1e-39), GenerationConfig())
    assert tiny.temperature == 0.0


def row(
    params: SamplingParams = DEFAULT,
    tokens: Sequence[int] = (),
    prompt: tuple[int, ...] = (1,),
    max_tokens: int = 50,
    eos_ids: frozenset[int] = frozenset({0}),
    name: str = "a",
) -> Row:
    request = EngineRequest(name, prompt, max_tokens, params)
    sampling = resolve_sampling(params, GenerationConfig())
    return Row(request, sampling, row_seed(request, 0), eos_ids, tokens=list(tokens))


def decode(ids: Sequence[int]) -> str:
    """Token 1 is "a", and so on."""
    return "".join(chr(96 + token) for token in ids)


# --- Choosing ------------------------------------------------------------------------------------


def test_plain_rows_get_their_best_token_and_a_broken_one_fails_alone() -> None:
    scores = torch.randn(5, 30)
    scores[1, 7] = math.nan
    scores[2] = -math.inf
    scores[3, 9] = math.inf
    rows = [row() for _ in range(5)]
    best = scores.argmax(-1).tolist()
    assert choose(rows, scores) == [best[0], None, None, None, best[4]]
    for broken in rows[1:4]:
        assert broken.failure is not None
        assert "not finite numbers after 0 tokens" in broken.failure.message


@pytest.mark.parametrize("at_once", [1, 100, 2**23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_every_kind_choose_together_what_each_chooses_alone(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(scores_module, "CANDIDATES", 2)
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=2.0, top_k=5, logprobs=2),
        SamplingParams(temperature=1.0, min_p=0.1, presence_penalty=1.0),
        SamplingParams(repetition_penalty=1.5, logprobs=3),
        SamplingParams(logit_bias=((3, 5.0),)),
        SamplingParams(min_tokens=4),
        SamplingParams(stop_token_ids=(3,), frequency_penalty=-1.0, temperature=1.0, top_p=0.99),
        SamplingParams(logit_bias=((99, 5.0),)),
        SamplingParams(logprobs=40),
    ]
    logits = (torch.randn(len(kinds), 30, generator=torch.Generator().manual_seed(1)) * 2).to(dtype)
    logits[:, 0] += 3
    given_logits = logits.clone()

    def rows() -> list[Row]:
        return [row(kind, [4, 4, 9], (1, 2), name=str(i)) for i, kind in enumerate(kinds)]

    together, single = rows(), rows()
    tokens = choose(together, logits)
    assert tokens == [choose([one], logits[i : i + 1])[0] for i, one in enumerate(single)]
    assert [token is None for token in tokens] == [i == 9 for i in range(len(kinds))]
    for one, other in zip(together, single, strict=True):
        assert [s.token for s in one.scores] == [s.token for s in other.scores]
        assert len(one.scores) == (one.request.sampling.logprobs is not None)
    assert len(together[10].scores[0].top) == 30  # no more than there are
    assert torch.equal(logits, given_logits)


def test_the_repetition_penalty_is_transformers_over_prompt_and_answer() -> None:
    scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    prompt, tokens = (3, 3, 8, 20), [5, 9, 5]
    ids = torch.tensor([[*prompt, *tokens]])
    for penalty in (0.5, 1.2, 30.0):
        own = row(SamplingParams(repetition_penalty=penalty, logprobs=0), tokens, prompt)
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
        assert changed(own, scores[0]) == pytest.approx(expected[0].tolist(), rel=1e-6)
        assert choose([own], scores) == expected.argmax(-1).tolist()


def changed(one: Row, scores: torch.Tensor) -> list[float]:
    made = scores.clone()[None]
    scores_module._change(made, [one])
    return [float(score) for score in made[0]]


def test_presence_and_frequency_penalties_are_openai_s_over_the_answer() -> None:
    scores = torch.zeros(6)
    own = row(
        SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), [2, 4, 2, 2], prompt=(1, 2)
    )
    # Token 2 is there three times, 4 once; 1 only in the prompt.
    assert changed(own, scores) == [0, 0, -(0.5 + 3 * 0.25), 0, -(0.5 + 0.25), 0]
    own.take(5, 0.0, decode)
    assert changed(own, scores) == [0, 0, -1.25, 0, -0.75, -0.75]
    negative = row(SamplingParams(frequency_penalty=-2.0), [2, 2])
    assert changed(negative, scores) == [0, 0, 4, 0, 0, 0]


def test_a_bias_comes_after_the_penalties() -> None:
    own = row(SamplingParams(repetition_penalty=2.0, logit_bias=((1, 3.0),)), [1])
    assert changed(own, torch.tensor([1.0, 4.0, 1.0])) == [1.0, 4.0 / 2 + 3, 1.0]


@given(st.lists(st.integers(0, 500), max_size=400), st.integers(0, 400))
def test_penalties_count_on_from_wherever_they_were(tokens: list[int], already: int) -> None:
    params = SamplingParams(frequency_penalty=1.0)
    own = row(params, tokens[:already], max_tokens=1000, eos_ids=frozenset())
    changed(own, torch.zeros(501))
    for token in tokens[already:]:
        own.take(token, 0.0, decode)
    expected = -torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=501)
    assert changed(own, torch.zeros(501)) == expected.tolist()


def test_a_row_whose_every_token_is_ruled_out_fails_alone() -> None:
    scores = torch.full((2, 4), -math.inf)
    scores[:, 0] = 1.0  # the end token
    rows = [row(SamplingParams(min_tokens=2)), row()]
    assert choose(rows, scores) == [None, 0]
    assert rows[0].failure is not None
    assert "rules out every token" in rows[0].failure.message


@given(st.data())
def test_rows_that_are_interrupted_and_go_on_in_other_company_draw_the_same_tokens(
    data: st.DataObject,
) -> None:
    width, made = 60, 12
    kinds = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_p=0.8, frequency_penalty=0.5),
        SamplingParams(temperature=3.0, top_k=9, min_p=0.01),
        SamplingParams(temperature=1.0, min_tokens=4, stop_token_ids=(5,)),
        SamplingParams(repetition_penalty=1.4),
    ]

    def fresh(i: int, tokens: Sequence[int] = ()) -> Row:
        return row(kinds[i], tokens, max_tokens=made, eos_ids=frozenset({0}), name=str(i))

    def logits(one: Row) -> torch.Tensor:
        # A model of what a row has said: the same for the same text.
        told = [int(one.request.custom_id), *one.tokens]
        seed = hash(tuple(told)) % 2**31
        return torch.randn(width, generator=torch.Generator().manual_seed(seed)) * 2

    def step(some: list[Row]) -> None:
        chosen = choose(some, torch.stack([logits(one) for one in some]))
        for one, token in zip(some, chosen, strict=True):
            assert token is not None
            one.take(token, 0.0, decode)

    whole = [fresh(i) for i in range(len(kinds))]
    while still := [one for one in whole if one.is_open]:
        step(still)
    broken = [fresh(i) for i in range(len(kinds))]
    while still := [one for one in broken if one.is_open]:
        some = data.draw(st.lists(st.sampled_from(still), min_size=1, unique_by=id))
        step(some)
        for i in data.draw(st.lists(st.integers(0, len(kinds) - 1), max_size=2)):
            if broken[i].is_open:
                broken[i] = fresh(i, broken[i].tokens)
    assert [one.tokens for one in broken] == [one.tokens for one in whole]
    assert [one.end for one in broken] == [one.end for one in whole]


# --- Taking --------------------------------------------------------------------------------------


def taken(one: Row, *tokens: int) -> FinishReason | None:
    for token in tokens:
        assert one.is_open
        one.take(token, 1.0, decode)
    return None if one.end is None else one.end.reason


def test_a_row_ends_with_the_model_s_end_token_its_own_or_its_cap() -> None:
    assert taken(row(), 5, 6, 0) is FinishReason.STOP
    assert taken(row(max_tokens=3), 5, 6, 7) is FinishReason.LENGTH
    assert taken(row(max_tokens=3), 5, 6, 0) is FinishReason.STOP
    assert taken(row(SamplingParams(stop_token_ids=(6, 9))), 5, 6) is FinishReason.STOP
    assert taken(row(SamplingParams(stop_token_ids=(6, 9))), 5, 0) is FinishReason.STOP


def test_an_end_token_that_is_ignored_ends_nothing() -> None:
    ignoring = SamplingParams(ignore_eos=True)
    one = row(ignoring, max_tokens=4)
    assert taken(one, 5, 0, 0, 0) is FinishReason.LENGTH
    assert one.content == [5, 0, 0, 0]
    both = row(replace(ignoring, stop_token_ids=(6,)))
    assert taken(both, 0, 6) is FinishReason.STOP
    assert both.content == [0]


def test_what_ended_a_row_is_no_part_of_its_content() -> None:
    one = row(SamplingParams(stop=("c",)))
    assert taken(one, 1, 2, 3) is FinishReason.STOP
    assert one.content == [1, 2, 3]  # a stop string is cut from the text
    one = row()
    taken(one, 1, 0)
    assert (one.tokens, one.content) == ([1, 0], [1])


def test_no_end_token_is_chosen_before_min_tokens_and_one_may_be_after() -> None:
    one = row(SamplingParams(min_tokens=3, stop_token_ids=(4,)))
    # The model likes its end best, then the row's stop token, then 2.
    scores = torch.tensor([[9.0, 0.0, 5.0, 1.0, 7.0]])
    tokens = []
    while one.is_open:
        (token,) = choose([one], scores)
        assert token is not None
        tokens.append(token)
        one.take(token, 0.0, decode)
    assert tokens == [2, 2, 2, 0]
    assert one.is_plain
    assert taken(row(SamplingParams(min_tokens=9), max_tokens=2), 5, 6) is FinishReason.LENGTH


def test_a_stop_string_that_is_whole_before_min_tokens_is_text() -> None:
    stops = SamplingParams(stop=("bc", "d"), min_tokens=4)
    one = row(stops)
    assert taken(one, 1, 2, 3) is None
    assert taken(one, 5) is None
    assert taken(one, 2, 3) is FinishReason.STOP
    text = cut_at_stop(decode(one.content), stops.stop, one.first_stop_from(decode))
    assert text == "abce"
    # With the token that makes as many, it counts.
    one = row(stops)
    assert taken(one, 2, 3, 2, 3) is FinishReason.STOP
    assert cut_at_stop("bcbc", stops.stop, one.first_stop_from(decode)) == "bc"


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(0, 8),
)
def test_a_row_ends_at_the_first_stop_string_that_is_whole_at_min_tokens_or_later(
    text: str, stops: list[str], min_tokens: int
) -> None:
    one = row(SamplingParams(stop=tuple(stops), min_tokens=min_tokens), max_tokens=100)
    for character in text:
        if one.is_open:
            one.take(ord(character) - 96, 0.0, decode)
    ends = [n for n in range(max(1, min_tokens), len(text) + 1) if text[:n].endswith(tuple(stops))]
    assert len(one.tokens) == (ends[0] if ends else len(text))
    assert one.is_open == (not ends)
    cut = cut_at_stop(text, stops, one.first_stop_from(decode))
    assert (cut != text) == bool(ends)


def test_a_plain_row_is_never_decoded() -> None:
    def never(ids: Sequence[int]) -> str:
        raise AssertionError(ids)

    one = row(max_tokens=100)
    for _ in range(100):
        one.take(3, 0.0, never)
    assert one.end is not None


@given(
    st.text(max_size=20),
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
    st.integers(0, 20),
)
def test_a_cut_text_holds_no_stop_string_but_what_ends_early(
    text: str, stops: list[str], after: int
) -> None:
    cut = cut_at_stop(text, stops, after)
    assert text.startswith(cut)
    for stop in stops:
        places = [i for i in range(len(text)) if text.startswith(stop, i)]
        assert all(i + len(stop) <= after for i in places if i < len(cut))
    assert cut == text or any(text[len(cut) :].startswith(stop) for stop in stops)


# --- Jobs ----------------------------------------------------------------------------------------


def test_answers_may_come_in_any_order_and_keep_their_numbers() -> None:
    request = EngineRequest("a", (1,), 5, SamplingParams(n=3, temperature=1.0))
    timings = [
        RequestTiming(1.0, 2.0, 3.0, 3.5, (0.5,), 1),
        RequestTiming(1.5, 2.5, 9.0, 9.5, (), 0),
        RequestTiming(0.5, 2.8, 4.0, 4.5, (0.1, 0.2), 2),
    ]
    made = [Answer(str(i), 1, FinishReason.STOP) for i in range(3)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        job = Job(4, request, RowSampling(1.0, 1.0, 0))
        for number in order:
            assert not job.is_done
            job.add(number, made[number], timings[number])
        completion = job.completion()
        assert completion.answers == tuple(made)
        timing = completion.timing
        assert timing is not None
        assert sorted(timing.gaps_s) == [0.1, 0.2, 0.5]
        assert replace(timing, gaps_s=()) == RequestTiming(0.5, 2.8, 9.0, 9.5, (), 3)


def test_a_greedy_job_wants_one_answer_and_gives_it_n_times() -> None:
    job = Job(0, EngineRequest("a", (1,), 5, SamplingParams(n=3)), GREEDY)
    assert job.wanted == 1
    job.add(0, Answer("x", 1, FinishReason.STOP), RequestTiming(0, 1, 2, 2))
    assert job.is_done
    assert [answer.text for answer in job.completion().answers] == ["x"] * 3


def test_every_row_of_a_job_has_its_own_seed_and_grammar(static: StaticEngine) -> None:
    maker = JobMaker(static.loaded, run_seed=3)
    sampling = SamplingParams(n=2, temperature=1.0, json_schema='{"type": "integer"}')
    job = maker.job(0, EngineRequest("a", (1,), 5, sampling))
    first, second = (maker.row(job, number) for number in range(job.wanted))
    assert first.seed != second.seed
    assert first.grammar is not second.grammar
    assert first.eos_ids == static.loaded.eos_ids


# --- Through the static engine -------------------------------------------------------------------


def asked(request: EngineRequest, **sampling: Any) -> EngineRequest:
    return replace(request, sampling=SamplingParams(**sampling))


def test_an_ignored_end_token_lets_an_answer_run_to_its_cap(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    free = answers(static, work)
    found = answers(static, [asked(r, ignore_eos=True, logprobs=0) for r in work])
    for name, completion in found.items():
        (answer,) = completion.answers
        assert (answer.output_tokens, answer.finish_reason) == (30, FinishReason.LENGTH)
        assert len(answer.logprobs or ()) == 30
        assert answer.text.startswith(texts(free[name])[0])


def test_an_answer_has_at_least_its_min_tokens(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    free = answers(static, work)["2"]
    assert free.output_tokens < 12
    for params in ({}, {"temperature": 1.0, "seed": 4}):
        found = answers(static, [asked(work[2], min_tokens=12, **params), work[0]])["2"]
        assert found.output_tokens > 12
    capped = replace(asked(work[2], min_tokens=12), max_tokens=9)
    assert answers(static, [capped])["2"].output_tokens == 9


def test_an_answer_ends_before_a_stop_token(
    static: StaticEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    whole = texts(answers(static, [work[0]])["0"])[0]
    ids = tokenizer.encode(whole)
    request = asked(work[0], stop_token_ids=(ids[4],), logprobs=0)
    (answer,) = answers(static, [request, work[3]])["0"].answers
    before = ids.index(ids[4])
    assert answer.text == tokenizer.decode(ids[:before])
    assert answer.finish_reason is FinishReason.STOP
    assert answer.output_tokens == before + 1
    assert len(answer.logprobs or ()) == before


def test_a_stop_token_that_does_not_exist_fails_its_own_request_only(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    vocabulary = static.model.config.vocab_size
    found = answers(static, [asked(work[0], stop_token_ids=(3, vocabulary)), work[2]])
    failure = found["0"].failure
    assert failure is not None
    assert (failure.code, failure.field) == ("invalid_request", "stop_token_ids")
    assert str(vocabulary) in failure.message
    assert texts(found["2"]) == texts(answers(static, [work[2]])["2"])


def test_penalties_change_what_a_counting_model_says(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    free = texts(answers(static, [work[3]])["3"])
    for penalty in (
        {"repetition_penalty": 3.0},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "logit_bias": ((5, 1.0),)},
    ):
        request = asked(work[3], **penalty)
        alone = texts(answers(static, [request])["3"])
        assert alone != free
        assert texts(answers(static, [work[0], request, work[1]])["3"]) == alone
    assert texts(answers(static, [asked(work[3], repetition_penalty=1.0)])["3"]) == free


def test_a_schema_outranks_min_tokens_and_an_ignored_end_token(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    schema = '{"const": 7}'
    for params in ({"min_tokens": 9}, {"ignore_eos": True}):
        (answer,) = answers(static, [asked(work[0], json_schema=schema, **params)])["0"].answers
        assert (answer.text, answer.finish_reason) == ("7", FinishReason.STOP)
    # An integer could always go on, so there an end token is put off, and one day taken.
    (end,) = static.loaded.eos_ids
    eager = asked(
        work[0], json_schema='{"type": "integer"}', min_tokens=5, logit_bias=((end, 10_000.0),)
    )
    for request in (eager, replace(eager, sampling=replace(eager.sampling, ignore_eos=True))):
        (answer,) = answers(static, [request])["0"].answers
        assert answer.output_tokens == 6
        assert answer.finish_reason is FinishReason.STOP
        assert len(answer.text) >= 5


def test_min_p_narrows_what_a_hot_row_draws(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    greedy = texts(answers(static, [work[0]])["0"])
    narrow = replace(work[0], sampling=replace(HOT, min_p=1.0))
    assert texts(answers(static, [narrow])["0"]) == greedy
    assert texts(answers(static, [replace(work[0], sampling=HOT)])["0"]) != greedy


def test_seeds_give_the_same_answers_whatever_the_batch(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.5, "seed": 1},
        {"temperature": 2.0, "top_p": 0.9, "presence_penalty": 1.0},
        {"temperature": 3.0, "top_k": 30, "n": 2},
        {"temperature": 1.0, "min_p": 0.05, "min_tokens": 10},
    ]
    batch = [asked(request, **kind) for request, kind in zip(work, kinds, strict=True)]
    together = answers(static, batch)
    for i in range(len(PROMPTS)):
        alone = answers(static, [batch[i]])[str(i)]
        assert texts(alone) == texts(together[str(i)])
    pairs = answers(static, batch[2:], batch[:2])
    assert {name: texts(c) for name, c in pairs.items()} == {
        name: texts(c) for name, c in together.items()
    }
