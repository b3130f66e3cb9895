"""Engines through their Protocol: the bundled model, and a virtual clock."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.builders import ONE_SECOND_STEPS, chat, exactly
from uellm_cli.clock import SystemClock, VirtualClock
from uellm_cli.engines import ENGINES, EngineContext
from uellm_cli.engines.sampling import (
    RowSampling,
    cut_at_stop,
    draw,
    resolve_sampling,
    row_generator,
)
from uellm_cli.engines.simulated import drawn_length
from uellm_cli.engines.static import StaticEngine, within_mask
from uellm_cli.errors import EngineError, ModelError
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.types import (
    QUANTILE_LEVELS,
    Completion,
    EngineBatch,
    EngineRequest,
    FinishReason,
    LengthEstimate,
    SamplingParams,
)

PROMPTS = ["Count from 3 to 9.", "Spell the word cat.", "Is 7 even?", "Count from 3 to 200."]


def context(model: str, clock: SystemClock | VirtualClock) -> EngineContext:
    return EngineContext(
        model=model,
        device_map={"": "cpu"},
        visible_devices=None,
        clock=clock,
        started_s=clock.now_s(),
        step_times=ONE_SECOND_STEPS,
        loading_s=3.0,
        seed=0,
    )


@pytest.fixture(scope="module")
def static(tiny_llm: str) -> StaticEngine:
    engine = ENGINES.build("static").start(context(tiny_llm, SystemClock()))
    assert isinstance(engine, StaticEngine)
    return engine


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    ids = load_tokenizer(tiny_llm).encode([chat(str(i), text) for i, text in enumerate(PROMPTS)])
    return [
        EngineRequest(str(i), tuple(prompt), 30, SamplingParams(), exactly(5))
        for i, prompt in enumerate(ids)
    ]


def answers(engine: StaticEngine, requests: Sequence[EngineRequest]) -> dict[str, Completion]:
    return {c.custom_id: c for c in engine.run(iter([EngineBatch(0, tuple(requests))]))}


# --- Static --------------------------------------------------------------------------------------


def test_a_batch_s_greedy_answers_equal_generate_s_one_by_one(
    static: StaticEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    batch = answers(static, work)
    for request in work:
        prompt = torch.tensor([request.prompt_token_ids])
        made = model.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :]
        answer = batch[request.custom_id]
        assert answer.answers[0].text == tokenizer.decode(made, skip_special_tokens=True)
        assert answer.output_tokens == len(made)


def test_an_answer_ends_by_itself_or_at_its_own_cap(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    free = answers(static, work)
    assert free["2"].finish_reason is FinishReason.STOP
    assert free["2"].output_tokens < 30
    assert free["3"].finish_reason is FinishReason.LENGTH
    assert free["3"].output_tokens == 30
    capped = answers(static, [replace(work[3], max_tokens=3), replace(work[0], max_tokens=1)])
    assert [capped["3"].output_tokens, capped["0"].output_tokens] == [3, 1]
    assert free["3"].answers[0].text.startswith(capped["3"].answers[0].text)


def test_moments_are_in_order_and_a_batch_is_handed_back_at_once(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    batch = answers(static, work)
    timings = [completion.timing for completion in batch.values()]
    assert len({timing.finished_s for timing in timings if timing}) == 1
    for timing in timings:
        assert timing is not None
        assert timing.prefill_s < timing.first_token_s <= timing.answered_s <= timing.finished_s
    short, long = batch["2"].timing, batch["3"].timing
    assert short is not None
    assert long is not None
    assert short.answered_s < long.answered_s


def test_an_answer_stops_before_its_stop_string(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    whole = answers(static, [work[3]])["3"].answers[0].text
    stop = whole[8:11]
    request = replace(work[3], sampling=SamplingParams(stop=("never there", stop)))
    # Beside others, so that its row ends while theirs go on.
    stopped = answers(static, [request, work[0]])["3"]
    assert stopped.answers[0].text == whole[: whole.index(stop)]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.output_tokens < 30


def test_a_seed_gives_the_same_answer_whatever_the_batch(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    # So hot that even a sure model wavers.
    hot = SamplingParams(temperature=8.0, seed=11)
    request = replace(work[1], sampling=hot)
    alone = answers(static, [request])["1"]
    beside = answers(static, [work[0], request, work[3]])["1"]
    assert beside.answers[0].text == alone.answers[0].text
    others = {
        answers(static, [replace(request, sampling=replace(hot, seed=seed))])["1"].answers[0].text
        for seed in range(5)
    }
    assert len(others) > 1


def test_greedy_rows_are_not_touched_by_a_neighbour_that_samples(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    hot = replace(work[1], sampling=SamplingParams(temperature=2.0))
    assert (
        answers(static, [work[0], hot])["0"].answers[0].text
        == answers(static, [work[0]])["0"].answers[0].text
    )


def test_a_batch_that_breaks_costs_only_the_request_that_breaks_it(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    vocabulary = static.model.config.vocab_size
    broken = replace(work[1], custom_id="bad", prompt_token_ids=(vocabulary + 5,))
    found = answers(static, [work[0], broken, work[2], work[3]])
    assert set(found) == {"0", "bad", "2", "3"}
    assert found["bad"].failure is not None
    assert found["bad"].failure.code == "engine_error"
    assert found["0"].answers[0].text == answers(static, [work[0]])["0"].answers[0].text


def test_a_folder_without_weights_is_a_model_error_that_names_it(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        ENGINES.build("static").start(context(str(tmp_path), SystemClock()))


def test_what_a_model_s_generation_config_would_cut_short_is_not_cut(
    work: list[EngineRequest], tiny_llm: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llm, tmp_path / "model")
    config = tmp_path / "model" / "generation_config.json"
    hurried = {"max_time": 1e-4, "max_length": 3, "min_new_tokens": 9, "num_beams": 2}
    config.write_text(json.dumps(json.loads(config.read_text()) | hurried))
    engine = ENGINES.build("static").start(context(str(tmp_path / "model"), SystemClock()))
    plain = ENGINES.build("static").start(context(tiny_llm, SystemClock()))
    for request in work:
        (hurried_answer,) = engine.run(iter([EngineBatch(0, (request,))]))
        (answer,) = plain.run(iter([EngineBatch(0, (request,))]))
        assert hurried_answer.answers[0].text == answer.answers[0].text
        assert hurried_answer.finish_reason == answer.finish_reason


def test_memory_of_a_broken_batch_is_free_before_its_halves_run(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Ballast]] = []
    seen: list[int] = []

    def out_of_memory(*_: object, **__: object) -> None:
        seen.append(sum(ref() is not None for ref in alive))
        ballast = Ballast()
        alive.append(weakref.ref(ballast))
        raise torch.OutOfMemoryError(f"{ballast}")

    monkeypatch.setattr(static.model, "generate", out_of_memory)
    found = answers(static, work)
    assert seen == [0] * 7  # four rows, two halves, four alone
    assert {c.failure.code for c in found.values() if c.failure} == {"out_of_memory"}
    assert len(found) == 4


class Ballast:
    """Stands for a batch's KV cache."""


@pytest.mark.parametrize(
    ("wanted", "mask", "visible"),
    [
        ("0,1", None, "0,1"),
        ("1,0", "3,5", "5,3"),
        ("0", "GPU-abc", "GPU-abc"),
        ("GPU-def", "3,5", "GPU-def"),
    ],
)
def test_gpus_are_counted_among_those_that_the_user_lets_us_see(
    wanted: str, mask: str | None, visible: str
) -> None:
    assert within_mask(wanted, mask) == visible


# --- Sampling ------------------------------------------------------------------------------------

SCORES = torch.tensor([0.0, 3.0, 1.0, 2.0])


def drawn(row: RowSampling, times: int = 300) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    return {draw(SCORES, row, generator) for _ in range(times)}


def test_top_k_keeps_the_k_best() -> None:
    assert drawn(RowSampling(temperature=5.0, top_p=1.0, top_k=2)) == {1, 3}


def test_top_p_keeps_the_fewest_that_reach_it_and_always_one() -> None:
    # Probabilities at temperature 1: 0.644, 0.237, 0.087, 0.032.
    assert drawn(RowSampling(1.0, 0.7, 0)) == {1, 3}
    assert drawn(RowSampling(1.0, 0.01, 0)) == {1}


def test_without_limits_every_token_is_drawn_about_as_often_as_its_probability() -> None:
    generator = torch.Generator().manual_seed(1)
    row = RowSampling(1.0, 1.0, 0)
    counts = torch.bincount(torch.tensor([draw(SCORES, row, generator) for _ in range(4000)]))
    # Four standard deviations of a share of 4,000 draws are 0.032 at most.
    assert (counts / 4000 - torch.softmax(SCORES, 0)).abs().max() < 0.032


def test_defaults_come_from_the_model_only_where_it_samples_itself() -> None:
    greedy = GenerationConfig(do_sample=False)
    sampling = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    assert resolve_sampling(SamplingParams(), greedy) == RowSampling(0.0, 1.0, 0)
    assert resolve_sampling(SamplingParams(), sampling) == RowSampling(0.6, 0.9, 20)
    own = SamplingParams(temperature=0.0, top_p=0.5, top_k=3)
    assert resolve_sampling(own, sampling) == RowSampling(0.0, 0.5, 3)


@pytest.mark.parametrize("seed", [0, -1, 2**63, -(2**63), None])
def test_any_64_bit_seed_makes_a_generator(seed: int | None) -> None:
    request = EngineRequest("a", (1,), 5, SamplingParams(seed=seed))
    first, second = (torch.rand(3, generator=row_generator(request, 0)) for _ in range(2))
    assert torch.equal(first, second)


@given(
    st.text(max_size=20),
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
)
def test_a_cut_text_holds_no_stop_string(text: str, stops: list[str]) -> None:
    cut = cut_at_stop(text, stops)
    assert text.startswith(cut)
    assert not any(stop in cut for stop in stops)
    assert cut == text or any(text[len(cut) :].startswith(stop) for stop in stops)


def test_a_temperature_next_to_zero_is_greedy_and_no_error() -> None:
    tiny = resolve_sampling(SamplingParams(temperature=1e-39), GenerationConfig())
    assert tiny.temperature == 0.0


# --- Simulated -----------------------------------------------------------------------------------


def test_the_simulated_engine_moves_its_clock_by_the_time_model() -> None:
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC), now_s=50.0)
    engine = ENGINES.build("simulated", {"load_s": 7}).start(context("none", clock))
    requests = tuple(
        EngineRequest(name, (1, 2), 100, SamplingParams(), exactly(tokens))
        for name, tokens in [("a", 3), ("b", 8)]
    )
    first, second = engine.run(iter([EngineBatch(4, requests)]))
    # Steps of one second: loaded at 7, first token at 8, the longest answer done at 7 + 8.
    assert first.timing is not None
    assert (first.timing.prefill_s, first.timing.first_token_s) == (7.0, 8.0)
    assert (first.timing.answered_s, first.timing.finished_s) == (10.0, 15.0)
    assert second.timing is not None
    assert second.timing.finished_s == 15.0
    assert (first.batch_id, first.output_tokens, second.output_tokens) == (4, 3, 8)
    assert clock.now_s() == 65.0


def test_the_simulated_engine_refuses_real_time() -> None:
    with pytest.raises(EngineError, match="virtual clock"):
        ENGINES.build("simulated").start(context("none", SystemClock()))


def test_simulated_lengths_follow_the_prediction_and_stay_below_the_cap() -> None:
    estimate = LengthEstimate((5, 10, 25, 50, 75, 90, 95, 99), "test")
    requests = [EngineRequest(f"r{i}", (1,), 60, SamplingParams(), estimate) for i in range(2000)]
    lengths = sorted(drawn_length(request, seed=0) for request in requests)
    assert lengths == sorted(drawn_length(request, seed=0) for request in reversed(requests))
    assert lengths[-1] == 60  # the cap
    assert lengths[0] == 5
    assert sum(n <= 25 for n in lengths) / 2000 == pytest.approx(QUANTILE_LEVELS[2], abs=0.05)
    assert drawn_length(replace(requests[0], output=None), seed=0) == 60
