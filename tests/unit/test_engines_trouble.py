"""Engines when something goes wrong: scores that are no numbers, memory, a stop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from tests.unit.engine_cases import (
    HOT,
    REAL_ENGINES,
    RealEngine,
    answers,
    break_at,
    each_engine,
    in_batches,
    model_work,
    no_numbers,
    raising,
    real_engine,
    static_engine,
    texts,
)
from uellm_cli.engines import unwatched
from uellm_cli.engines.memory import MemoryLimit, footprint
from uellm_cli.engines.padded import RowScores, RowStops
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.engines.static import StaticEngine
from uellm_cli.types import Budget, EngineBatch, EngineRequest, SamplingParams

# No token of the requests or of the bundled model's answers to them.
ODD = 700


@pytest.fixture(params=REAL_ENGINES)
def engine(request: pytest.FixtureRequest, tiny_llm: str) -> RealEngine:
    """A new one for each test, to be broken."""
    return real_engine(request.param, tiny_llm)


@pytest.fixture
def static(tiny_llm: str) -> StaticEngine:
    """A new one for each test: an engine remembers what its memory did not hold."""
    return static_engine(tiny_llm)


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    return model_work(tiny_llm)


# --- One request's fault -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lambda: RuntimeError("odd"), "engine_error"),
        (lambda: IndexError("odd"), "engine_error"),
        (torch.OutOfMemoryError, "out_of_memory"),
    ],
)
@pytest.mark.parametrize("in_prompt", [True, False])
def test_what_breaks_the_model_fails_and_costs_no_other_its_answer(
    error: Callable[[], Exception],
    code: str,
    in_prompt: bool,
    engine: RealEngine,
    work: list[EngineRequest],
) -> None:
    free = answers(engine, work)
    break_at(engine, ODD, raising(error))
    odd = replace(work[0], custom_id="odd", sampling=SamplingParams(logit_bias=((ODD, 1e4),)))
    if in_prompt:
        odd = replace(work[0], custom_id="odd", prompt_token_ids=(ODD,) * 40)
    again = [replace(request, custom_id=f"again {request.custom_id}") for request in work]
    found = answers(engine, [*work[:2], odd, *work[2:]], again)
    failure = found.pop("odd").failure
    assert failure is not None
    assert failure.code == code
    assert {name: texts(completion) for name, completion in found.items()} == {
        name: texts(free[name[-1]]) for name in found
    }
    assert len(found) == 8


@pytest.mark.parametrize("sampling", [SamplingParams(), HOT, replace(HOT, n=2)])
@pytest.mark.parametrize("in_prompt", [True, False])
def test_a_row_whose_numbers_are_lost_fails_alone_and_leaves_no_trace(
    sampling: SamplingParams, in_prompt: bool, engine: RealEngine, work: list[EngineRequest]
) -> None:
    free = answers(engine, work)
    break_at(engine, ODD, no_numbers)
    odd = replace(
        work[0], custom_id="odd", sampling=replace(sampling, logit_bias=((ODD, 10_000.0),))
    )
    if in_prompt:
        odd = replace(odd, prompt_token_ids=(ODD, *work[3].prompt_token_ids))
    again = [replace(request, custom_id=f"again {request.custom_id}") for request in work]
    found = answers(engine, [*work[:2], odd, *work[2:]], again)
    done = found.pop("odd")
    assert done.answers == ()
    assert done.failure is not None
    assert done.failure.code == "engine_error"
    made = 0 if in_prompt else 1
    assert f"not finite numbers after {made} tokens" in done.failure.message
    for name, completion in found.items():
        assert texts(completion) == texts(free[name[-1]])


# --- Scores that are no numbers ------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("sampling", [SamplingParams(), HOT])
def test_a_row_without_usable_scores_fails_as_if_its_neighbours_were_alone(
    value: float,
    sampling: SamplingParams,
    static: StaticEngine,
    work: list[EngineRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = [replace(request, sampling=sampling) for request in work]
    whole = answers(static, batch)
    calls = poison(static, monkeypatch, row=1, value=value, from_call=3)
    found = answers(static, batch)
    failure = found["1"].failure
    assert failure is not None
    assert failure.code == "engine_error"
    assert "not finite numbers after 2 tokens" in failure.message
    assert found["1"].answers == ()
    for name in ("0", "2", "3"):
        assert texts(found[name]) == texts(whole[name])
    # Not again in halves: that a row is broken is known without.
    assert len(calls) == max(completion.output_tokens for completion in whole.values())


def test_numbers_that_fail_in_a_later_round_leave_no_half_of_the_answers(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [replace(r, sampling=replace(HOT, n=2), max_tokens=3) for r in work[:2]]
    whole = answers(static, batch)
    poison(static, monkeypatch, row=0, value=float("nan"), from_call=5)
    found = answers(static, batch)
    assert found["0"].failure is not None
    assert found["0"].answers == ()
    assert texts(found["1"]) == texts(whole["1"])


def test_one_score_that_is_no_number_is_enough(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(static, monkeypatch, row=0, value=float("nan"), from_call=1, token=77)
    found = answers(static, work[:2])
    assert found["0"].failure is not None
    assert found["1"].failure is None


def poison(
    static: StaticEngine,
    monkeypatch: pytest.MonkeyPatch,
    row: int,
    value: float,
    from_call: int,
    token: int | None = None,
) -> list[int]:
    """From a forward pass on (from 1), a row's scores are `value`; the rows of each pass."""
    calls: list[int] = []
    forward = static.model.forward

    def poisoned(*positional: Any, **named: Any) -> Any:
        outputs = forward(*positional, **named)
        calls.append(len(outputs.logits))
        if len(calls) >= from_call:
            outputs.logits[row, :, slice(None) if token is None else token] = value
        return outputs

    monkeypatch.setattr(static.model, "forward", poisoned)
    return calls


# --- Memory --------------------------------------------------------------------------------------

OUT_OF_MEMORY = pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        MemoryError,
    ],
)


@OUT_OF_MEMORY
def test_what_memory_does_not_hold_at_once_is_computed_in_parts(
    error: Callable[[], Exception],
    engine: RealEngine,
    work: list[EngineRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = answers(engine, work)
    forward = engine.loaded.model.forward
    broken: list[int] = []

    def limited(*positional: Any, **named: Any) -> Any:
        tokens = named["input_ids"].numel()
        # Two of the prompts at once, not four.
        if tokens > 25:
            broken.append(tokens)
            raise error()
        return forward(*positional, **named)

    monkeypatch.setattr(engine.loaded.model, "forward", limited)
    again = [replace(request, custom_id=f"again {request.custom_id}") for request in work]
    found = answers(engine, work, again)
    assert len(broken) in (1, 2)
    for name, completion in found.items():
        assert texts(completion) == texts(free[name[-1]])


def limit_memory(
    static: StaticEngine,
    monkeypatch: pytest.MonkeyPatch,
    tokens: float,
    error: Callable[[], Exception] = torch.OutOfMemoryError,
    from_attempt: int = 1,
) -> list[int]:
    """Makes batches of a larger footprint fail; the rows of each attempt from here on."""
    attempts: list[int] = []
    generate = static.model.generate

    def limited(prompts: torch.Tensor, **named: Any) -> Any:
        attempts.append(len(prompts))
        longest = prompts.shape[1] + named["generation_config"].max_new_tokens
        if len(attempts) >= from_attempt and len(prompts) * longest > tokens:
            raise error()
        return generate(prompts, **named)

    monkeypatch.setattr(static.model, "generate", limited)
    return attempts


@OUT_OF_MEMORY
def test_what_memory_did_not_hold_is_not_tried_again(
    error: Callable[[], Exception],
    static: StaticEngine,
    work: list[EngineRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = answers(static, work)
    attempts = limit_memory(static, monkeypatch, footprint(work) // 2, error)
    again = [replace(request, custom_id=f"again {request.custom_id}") for request in work]
    found = answers(static, work, again)
    # Four rows are too many once; two are not.
    assert attempts == [4, 2, 2, 2, 2]
    for name, completion in free.items():
        assert texts(found[name]) == texts(found[f"again {name}"]) == texts(completion)


def test_the_limit_is_lowered_by_each_failure(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_row = max(footprint([request]) for request in work)
    attempts = limit_memory(static, monkeypatch, one_row)
    found = answers(static, work, [replace(r, custom_id=f"again {r.custom_id}") for r in work])
    # Four and two are tried once each; the first two rows taught that two are too many.
    assert attempts == [4, 2, *[1] * 8]
    assert all(completion.failure is None for completion in found.values())


def test_a_row_that_does_not_fit_alone_is_out_of_memory_and_its_neighbours_are_not(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(work[0], custom_id="long", max_tokens=500)
    limit_memory(static, monkeypatch, 400)
    found = answers(static, [*work, long], [replace(long, custom_id="long again")])
    for name in ("long", "long again"):
        failure = found.pop(name).failure
        assert failure is not None
        assert failure.code == "out_of_memory"
    assert {texts(completion)[0] != "" for completion in found.values()} == {True}


def test_answers_of_earlier_rounds_are_kept_when_a_later_one_runs_out_of_memory(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [replace(request, sampling=replace(HOT, n=2)) for request in work]
    free = answers(static, batch)
    attempts = limit_memory(static, monkeypatch, footprint(work) // 2, from_attempt=2)
    found = answers(static, batch)
    assert attempts == [4, 4, 2, 2]
    assert {name: texts(c) for name, c in found.items()} == {
        name: texts(c) for name, c in free.items()
    }


def test_another_error_is_no_matter_of_memory(
    static: StaticEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = limit_memory(static, monkeypatch, footprint(work) // 2, lambda: RuntimeError("odd"))
    answers(static, work, [replace(request, custom_id="b" + request.custom_id) for request in work])
    assert attempts == [4, 2, 2] * 2


def test_a_footprint_counts_padding_and_room_for_the_longest_answer() -> None:
    requests = [EngineRequest("a", (1,) * 10, 5, SamplingParams())]
    requests.append(EngineRequest("b", (1,) * 3, 50, SamplingParams()))
    assert footprint(requests) == 2 * (10 + 50)
    limit = MemoryLimit()
    assert limit.allows(requests)
    limit.ran_out(requests)
    assert not limit.allows(requests)
    limit.ran_out([*requests, *requests])
    assert limit.tokens == 120
    assert limit.allows([replace(requests[0], max_tokens=1000)])


def test_memory_of_what_broke_is_free_before_the_next_try(
    engine: RealEngine, work: list[EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Ballast]] = []
    seen: list[int] = []

    def out_of_memory(*_: object, **__: object) -> None:
        seen.append(sum(ref() is not None for ref in alive))
        ballast = Ballast()
        alive.append(weakref.ref(ballast))
        raise torch.OutOfMemoryError(f"{ballast}")

    monkeypatch.setattr(engine.loaded.model, "forward", out_of_memory)
    found = answers(engine, work)
    assert seen == [0] * 6  # four rows, two of them, and each alone
    assert {c.failure.code for c in found.values() if c.failure} == {"out_of_memory"}
    assert len(found) == 4


class Ballast:
    """Stands for a batch's KV cache."""


# --- Stop ----------------------------------------------------------------------------------------


def stopped_after(name: str, model: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> RealEngine:
    """An engine that is told to stop in its `steps`th forward pass, and makes none after it."""
    made: list[int] = []
    engine = real_engine(name, model, stop=lambda: len(made) >= steps)
    forward = engine.loaded.model.forward

    def counted(*positional: Any, **named: Any) -> Any:
        assert len(made) < steps, "a step after the stop"
        made.append(1)
        return forward(*positional, **named)

    monkeypatch.setattr(engine.loaded.model, "forward", counted)
    return engine


@each_engine
def test_a_stop_hands_back_what_has_ended_and_nothing_else(
    name: str, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = answers(real_engine(name, tiny_llm), work)
    lengths = {name: completion.output_tokens for name, completion in free.items()}
    steps = sorted(lengths.values())[1]
    assert steps < max(lengths.values())
    engine = stopped_after(name, tiny_llm, steps, monkeypatch)
    found = answers(engine, work)
    assert set(found) == {name for name, length in lengths.items() if length <= steps}
    assert 2 <= len(found) < 4
    for name, completion in found.items():
        assert completion.answers == free[name].answers


@each_engine
def test_nothing_is_pulled_after_a_stop(
    name: str, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for these four and no more; the first of them has two tokens.
    budget = Budget(kv_bytes=2**30, max_sequences=4, prefill_tokens=512)
    made: list[int] = []
    engine = real_engine(name, tiny_llm, stop=lambda: len(made) >= 2, budget=budget)
    forward = engine.loaded.model.forward

    def counted(*positional: Any, **named: Any) -> Any:
        made.append(1)
        return forward(*positional, **named)

    monkeypatch.setattr(engine.loaded.model, "forward", counted)

    def batches() -> Iterator[EngineBatch]:
        for batch in in_batches(work, [replace(work[0], custom_id="next")]):
            assert len(made) < 2
            yield batch

    assert [completion.custom_id for completion in engine.run(batches())] == ["2"]


def test_a_request_that_lacks_an_answer_when_stopped_is_not_handed_back(
    static: StaticEngine,
    work: list[EngineRequest],
    tiny_llm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No end token: every answer has its cap's length. One round takes 4 steps.
    endless = replace(HOT, logit_bias=((2, -10_000.0),))
    one, two, greedy = (
        replace(work[i], sampling=sampling, max_tokens=4)
        for i, sampling in enumerate(
            [endless, replace(endless, n=2), replace(endless, temperature=0.0, n=3)]
        )
    )
    free = answers(static, [one, two, greedy])
    for steps, done in ((3, set()), (4, {"0", "2"}), (7, {"0", "2"}), (8, {"0", "1", "2"})):
        with monkeypatch.context() as patch:
            engine = stopped_after("static", tiny_llm, steps, patch)
            found = answers(engine, [one, two, greedy])
        assert set(found) == done
        for name, completion in found.items():
            assert completion.answers == free[name].answers


@each_engine
def test_a_stop_while_a_step_breaks_ends_it_without_another_try(
    name: str, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []
    engine = real_engine(name, tiny_llm, stop=lambda: bool(attempts))

    def broken(**named: Any) -> None:
        attempts.append(named["input_ids"].numel())
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine.loaded.model, "forward", broken)
    assert answers(engine, work) == {}
    assert len(attempts) == 1


@each_engine
def test_a_stop_is_asked_for_once_a_decode_step(
    name: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return False

    found = answers(real_engine(name, tiny_llm, stop=stop), [work[3], work[0]])
    steps = found["3"].output_tokens
    assert steps <= len(asked) <= steps + 4  # and before a batch is pulled, or a round begun


def test_a_step_that_generate_makes_after_the_stop_gives_no_row_a_token() -> None:
    # It does so on some devices, where it looks at the end of the batch one step late.
    request = EngineRequest("a", (1,), 2, SamplingParams())
    row = Row(request, RowSampling(0.0, 1.0, 0), seed=0)
    scores = RowScores([row])
    stops = RowStops([row], scores, str, lambda: 0.0, lambda: True, unwatched)
    for _ in range(2):
        chosen = scores(torch.tensor([[1]]), torch.tensor([[0.0, 1.0, 7.0, 3.0]])).argmax(-1)
        assert chosen.tolist() == [2]
        assert stops(chosen[:, None], None).tolist() == [True]
    assert row.tokens == [2]
    assert row.end is None
