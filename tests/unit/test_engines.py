"""Engines through their Protocol: the bundled model, and a virtual clock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.builders import exactly
from tests.unit.engine_cases import (
    HOT,
    REAL_ENGINES,
    RealEngine,
    answers,
    context,
    each_engine,
    in_batches,
    model_work,
    real_engine,
    static_engine,
    texts,
)
from uellm_cli.clock import SystemClock, VirtualClock
from uellm_cli.engines import ENGINES
from uellm_cli.engines.loading import within_mask
from uellm_cli.engines.simulated import drawn_length, drawn_lengths
from uellm_cli.engines.static import StaticEngine
from uellm_cli.errors import EngineError, ModelError
from uellm_cli.types import (
    QUANTILE_LEVELS,
    EngineBatch,
    EngineRequest,
    FinishReason,
    LengthEstimate,
    RequestTiming,
    SamplingParams,
)


@pytest.fixture(scope="module", params=REAL_ENGINES)
def engine(request: pytest.FixtureRequest, tiny_llm: str) -> RealEngine:
    return real_engine(request.param, tiny_llm)


@pytest.fixture(scope="module")
def static(tiny_llm: str) -> StaticEngine:
    return static_engine(tiny_llm)


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    return model_work(tiny_llm)


# --- With a model --------------------------------------------------------------------------------


def test_a_batch_s_greedy_answers_equal_generate_s_one_by_one(
    engine: RealEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    batch = answers(engine, work)
    for request in work:
        prompt = torch.tensor([request.prompt_token_ids])
        made = model.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :]
        answer = batch[request.custom_id]
        assert answer.answers[0].text == tokenizer.decode(made, skip_special_tokens=True)
        assert answer.output_tokens == len(made)


def test_an_answer_ends_by_itself_or_at_its_own_cap(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    free = answers(engine, work)
    assert free["2"].finish_reason is FinishReason.STOP
    assert free["2"].output_tokens < 30
    assert free["3"].finish_reason is FinishReason.LENGTH
    assert free["3"].output_tokens == 30
    capped = answers(engine, [replace(work[3], max_tokens=3), replace(work[0], max_tokens=1)])
    assert [capped["3"].output_tokens, capped["0"].output_tokens] == [3, 1]
    assert free["3"].answers[0].text.startswith(capped["3"].answers[0].text)


def test_moments_are_in_order_and_a_short_answer_is_made_before_a_long_one(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    batch = answers(engine, work)
    for completion in batch.values():
        timing = completion.timing
        assert timing is not None
        assert timing.prefill_s < timing.first_token_s <= timing.answered_s <= timing.finished_s
    short, long = batch["2"].timing, batch["3"].timing
    assert short is not None
    assert long is not None
    assert short.answered_s < long.answered_s


def test_a_static_batch_is_handed_back_at_once(
    static: StaticEngine, work: list[EngineRequest]
) -> None:
    timings = [completion.timing for completion in answers(static, work).values()]
    assert len({timing.finished_s for timing in timings if timing}) == 1


def test_an_answer_stops_before_its_stop_string(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    whole = answers(engine, [work[3]])["3"].answers[0].text
    stop = whole[8:11]
    request = replace(work[3], sampling=SamplingParams(stop=("never there", stop)))
    # Beside others, so that its row ends while theirs go on.
    stopped = answers(engine, [request, work[0]])["3"]
    assert stopped.answers[0].text == whole[: whole.index(stop)]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.output_tokens < 30


def test_a_seed_gives_the_same_answer_whatever_the_batch(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    request = replace(work[1], sampling=HOT)
    alone = answers(engine, [request])["1"]
    beside = answers(engine, [work[0], request, work[3]])["1"]
    assert beside.answers[0].text == alone.answers[0].text
    others = {
        answers(engine, [replace(request, sampling=replace(HOT, seed=seed))])["1"].answers[0].text
        for seed in range(5)
    }
    assert len(others) > 1


def test_greedy_rows_are_not_touched_by_a_neighbour_that_samples(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    hot = replace(work[1], sampling=SamplingParams(temperature=2.0))
    assert (
        answers(engine, [work[0], hot])["0"].answers[0].text
        == answers(engine, [work[0]])["0"].answers[0].text
    )


def test_a_batch_that_breaks_costs_only_the_request_that_breaks_it(
    engine: RealEngine, work: list[EngineRequest]
) -> None:
    vocabulary = engine.loaded.model.config.vocab_size
    broken = replace(work[1], custom_id="bad", prompt_token_ids=(vocabulary + 5,))
    found = answers(engine, [work[0], broken, work[2], work[3]])
    assert set(found) == {"0", "bad", "2", "3"}
    assert found["bad"].failure is not None
    assert found["bad"].failure.code == "engine_error"
    assert found["0"].answers[0].text == answers(engine, [work[0]])["0"].answers[0].text


@each_engine
def test_a_folder_without_weights_is_a_model_error_that_names_it(name: str, tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        real_engine(name, str(tmp_path))


@each_engine
def test_what_a_model_s_generation_config_would_cut_short_is_not_cut(
    name: str, work: list[EngineRequest], tiny_llm: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llm, tmp_path / "model")
    config = tmp_path / "model" / "generation_config.json"
    hurried = {"max_time": 1e-4, "max_length": 3, "min_new_tokens": 9, "num_beams": 2}
    config.write_text(json.dumps(json.loads(config.read_text()) | hurried))
    engine, plain = real_engine(name, str(tmp_path / "model")), real_engine(name, tiny_llm)
    for request in work:
        (hurried_answer,) = answers(engine, [request]).values()
        (answer,) = answers(plain, [request]).values()
        assert hurried_answer.answers[0].text == answer.answers[0].text
        assert hurried_answer.finish_reason == answer.finish_reason


@each_engine
@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_s_own_code_is_run_only_where_it_is_trusted(
    name: str, trusted: bool, tiny_llm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_llm, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE)
    if trusted:
        engine = real_engine(name, str(folder), trust_remote_code=True)
        assert type(engine.loaded.model).__name__ == "OwnModel"
    else:
        with pytest.raises(ModelError, match="trust_remote_code"):
            real_engine(name, str(folder))


AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "unheard_of"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@each_engine
def test_weights_are_read_from_safetensors_only(name: str, tiny_llm: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_llm, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    weights = AutoModelForCausalLM.from_pretrained(tiny_llm).state_dict()
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        real_engine(name, str(tmp_path / "model"))


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


def test_simulated_answers_are_made_one_after_the_other_each_of_its_own_length() -> None:
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    engine = ENGINES.build("simulated", {"load_s": 0}).start(context("none", clock))
    spread = LengthEstimate((5, 10, 25, 50, 75, 90, 95, 99), "test")
    three = EngineRequest("a", (1, 2), 90, SamplingParams(n=3), spread)
    one = EngineRequest("b", (1,), 100, SamplingParams(), exactly(7))
    found = answers(engine, [three, one])
    lengths = drawn_lengths(three, seed=0)
    assert [answer.output_tokens for answer in found["a"].answers] == lengths
    assert lengths[0] == drawn_length(three, seed=0)
    assert len(set(lengths)) == 3
    # Steps of one second: a round takes as many as its longest answer has tokens.
    first_round_s = max(lengths[0], 7)
    assert found["b"].timing == RequestTiming(0.0, 1.0, 7.0, first_round_s)
    end_s = first_round_s + lengths[1] + lengths[2]
    assert found["a"].timing == RequestTiming(0.0, 1.0, end_s, end_s)
    assert clock.now_s() == end_s


def test_a_simulated_greedy_answer_is_made_once_and_given_as_often_as_asked() -> None:
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    engine = ENGINES.build("simulated", {"load_s": 0}).start(context("none", clock))
    greedy = EngineRequest("a", (1,), 100, SamplingParams(temperature=0, n=3), exactly(7))
    completion = answers(engine, [greedy])["a"]
    assert [answer.output_tokens for answer in completion.answers] == [7, 7, 7]
    assert clock.now_s() == 7.0


# --- Every engine --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES.names())
def test_an_engine_that_is_stopped_pulls_no_further_batch(
    name: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    virtual = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    factory = ENGINES.build(name)
    pulled: list[int] = []
    stopped = Event()
    clock = virtual if factory.in_virtual_time else SystemClock()
    engine = factory.start(context(tiny_llm, clock, stop=stopped.is_set))

    def batches() -> Iterator[EngineBatch]:
        for batch in in_batches(work[:1], work[1:2], work[2:]):
            pulled.append(batch.batch_id)
            yield batch

    # Some engines pull what they have room for, before they have answered what they have.
    pulled_by_then: list[int] = []
    for completion in engine.run(batches()):
        if completion.batch_id == 1 and not stopped.is_set():
            pulled_by_then = pulled.copy()
            stopped.set()
    assert pulled == pulled_by_then
    assert name == "inflight" or pulled == [0, 1]
    assert list(engine.run(batches())) == []
    assert pulled == pulled_by_then


@pytest.mark.parametrize("name", ENGINES.names())
def test_an_engine_makes_as_many_answers_as_asked(
    name: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    virtual = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    factory = ENGINES.build(name)
    engine = factory.start(context(tiny_llm, virtual if factory.in_virtual_time else SystemClock()))
    asked = {"0": 1, "1": 3, "2": 2}
    batch = [replace(work[int(i)], sampling=replace(HOT, n=n)) for i, n in asked.items()]
    assert {i: len(texts(c)) for i, c in answers(engine, batch).items()} == asked
