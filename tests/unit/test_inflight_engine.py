"""The in-flight engine on the bundled model: who is computed when, and what that changes (nothing).

One token's keys and values are 5,120 bytes: 4 layers, 5 heads, 32 + 32 numbers of 4 bytes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.builders import exactly
from tests.unit.engine_cases import (
    HOT,
    answers,
    break_at,
    in_batches,
    inflight_engine,
    model_work,
    no_numbers,
    raising,
    static_engine,
    texts,
)
from uellm_cli.clock import VirtualClock
from uellm_cli.engines.inflight.engine import FEWEST_STEP_TOKENS, InflightEngine
from uellm_cli.engines.inflight.step import Step
from uellm_cli.engines.scores import choose
from uellm_cli.errors import EngineError
from uellm_cli.types import (
    Answer,
    Budget,
    Completion,
    EngineBatch,
    EngineRequest,
    RequestTiming,
    SamplingParams,
)

TOKEN_BYTES = 4 * 5 * (32 + 32) * 4
PAGE = 8
# No token of the requests or of the bundled model's answers to them.
ODD = 700
EXAMPLES = int(os.environ.get("UELLM_EXAMPLES", "12"))


def room(pages: int = 1000, rows: int = 64, step_tokens: int = 512) -> Budget:
    """For so many pages of `PAGE` tokens, and not all of another one."""
    return Budget(pages * PAGE * TOKEN_BYTES + TOKEN_BYTES, rows, step_tokens)


# Steps that begin before the tokens of the last are known: a GPU's, and right on any device.
each_pace = pytest.mark.parametrize("ahead", [False, True], ids=["known", "ahead"])


def start(model: str, budget: Budget, ahead: bool = False, **options: object) -> InflightEngine:
    engine = inflight_engine(model, {"page_tokens": PAGE, **options}, budget=budget)
    engine.lookahead = ahead
    return engine


@pytest.fixture(scope="module")
def roomy(tiny_llm: str) -> InflightEngine:
    """An engine that has room for everything."""
    return start(tiny_llm, room())


@pytest.fixture(scope="module")
def work(tiny_llm: str) -> list[EngineRequest]:
    return model_work(tiny_llm)


def of_length(request: EngineRequest, tokens: int, custom_id: str | None = None) -> EngineRequest:
    """An answer of exactly so many tokens, which is predicted."""
    return replace(
        request,
        custom_id=custom_id or request.custom_id,
        max_tokens=tokens,
        sampling=replace(request.sampling, ignore_eos=True),
        output=exactly(tokens),
    )


def watch(
    engine: InflightEngine, monkeypatch: pytest.MonkeyPatch, look: Callable[[Step], None]
) -> None:
    """Shows each step before it is computed."""
    logits = engine.packed.logits

    def watched(step: Step) -> torch.Tensor:
        look(step)
        return logits(step)

    monkeypatch.setattr(engine.packed, "logits", watched)


def count_tokens(engine: InflightEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each step from here on."""
    counted: list[int] = []
    watch(engine, monkeypatch, lambda step: counted.append(step.token_ids.numel()))
    return counted


def timing_of(completion: Completion) -> RequestTiming:
    assert completion.timing is not None
    return completion.timing


def alike(one: Answer, other: Answer) -> bool:
    """The same but for rounding, which shows in log probabilities only."""
    told = (one.logprobs or (), other.logprobs or ())
    return (
        replace(one, logprobs=None) == replace(other, logprobs=None)
        and len(told[0]) == len(told[1])
        and all(
            a.raw == b.raw and a.logprob == pytest.approx(b.logprob, abs=1e-3)
            for a, b in zip(*told, strict=True)
        )
    )


# --- In and out ----------------------------------------------------------------------------------


@each_pace
def test_a_row_enters_as_another_leaves_and_is_handed_back_as_it_ends(
    ahead: bool, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(rows=2), ahead)
    batch = [of_length(work[i], tokens) for i, tokens in enumerate((30, 2, 3, 2))]
    done = list(engine.run(in_batches(batch[:3], batch[3:])))
    assert [completion.custom_id for completion in done] == ["1", "2", "3", "0"]
    assert [completion.batch_id for completion in done] == [0, 0, 1, 0]
    moments = [timing_of(completion) for completion in done]
    assert [m.finished_s for m in moments] == sorted(m.finished_s for m in moments)
    long = moments.pop()
    for before, after in pairwise(moments):
        assert before.finished_s <= after.prefill_s
    assert moments[-1].finished_s < long.answered_s


def test_never_more_rows_than_the_budget_has_or_tokens_than_a_step_may_have(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room(rows=3, step_tokens=20))
    seen: list[tuple[int, int]] = []
    watch(engine, monkeypatch, lambda step: seen.append((step.rows, step.token_ids.numel())))
    answers(engine, [replace(r, custom_id=f"{i}{r.custom_id}") for i in range(3) for r in work])
    assert max(rows for rows, _ in seen) == 3
    assert max(tokens for _, tokens in seen) == 20


def test_an_option_may_make_steps_smaller_than_the_budget_does(tiny_llm: str) -> None:
    assert start(tiny_llm, room(step_tokens=100)).flights.limits.step_tokens == 100
    assert start(tiny_llm, room(), step_tokens=30).flights.limits.step_tokens == 30
    assert start(tiny_llm, room(step_tokens=20), step_tokens=30).flights.limits.step_tokens == 20


@each_pace
def test_rows_enter_in_the_schedule_s_order_whatever_their_lengths(
    ahead: bool, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room(pages=9, rows=3, step_tokens=16), ahead, share_prefixes=False)
    lengths = [(30, 20), (3, 9), (60, 4), (1, 5), (2, 3), (40, 8), (5, 2), (5, 30)]
    requests = [
        of_length(replace(work[0], prompt_token_ids=tuple(range(50, 50 + prompt))), made, str(i))
        for i, (prompt, made) in enumerate(lengths)
    ]
    entered: dict[str, None] = {}

    def look(_: Step) -> None:
        running = sorted(engine.flights.running, key=lambda flight: flight.order)
        entered.update(dict.fromkeys(flight.row.request.custom_id for flight in running))

    watch(engine, monkeypatch, look)
    answers(engine, requests[:3], requests[3:6], requests[6:])
    assert list(entered) == [request.custom_id for request in requests]


def test_no_more_work_is_pulled_than_there_are_seats_for(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(rows=2))
    pulled: list[int] = []

    def batches() -> Iterator[EngineBatch]:
        for batch in in_batches(*([of_length(work[0], 3, str(i))] for i in range(5))):
            pulled.append(batch.batch_id)
            yield batch

    for done, _ in enumerate(engine.run(batches()), 1):
        assert len(pulled) <= done + 1
    assert len(pulled) == 5


def test_an_answer_that_outgrows_its_prediction_is_expected_to_grow_on(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room())
    left: list[int] = []

    def look(_: Step) -> None:
        left.extend(f.expected - len(f.row.tokens) for f in engine.flights.running)

    watch(engine, monkeypatch, look)
    answers(engine, [replace(of_length(work[0], 20), output=exactly(5))])
    assert left == [5, 4, 3, 2, *[1] * 16]


# --- Preemption ----------------------------------------------------------------------------------

WORDY = '{"type": "object", "properties": {"a": {"type": "string", "minLength": 25}}, \
"required": ["a"], "additionalProperties": false}'


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(ignore_eos=True),
        replace(HOT, ignore_eos=True),
        SamplingParams(ignore_eos=True, temperature=0.7, seed=3, logprobs=2),
        SamplingParams(ignore_eos=True, stop=("never there", "16")),
        SamplingParams(json_schema=WORDY, logprobs=0),
        SamplingParams(ignore_eos=True, repetition_penalty=1.3, frequency_penalty=0.5),
    ],
    ids=["greedy", "sampled", "logprobs", "stop", "schema", "penalties"],
)
@pytest.mark.parametrize("kernels", ["auto", "torch"])
@each_pace
def test_an_answer_that_lost_its_memory_is_the_one_that_nothing_disturbed(
    ahead: bool,
    kernels: str,
    sampling: SamplingParams,
    roomy: InflightEngine,
    work: list[EngineRequest],
    tiny_llm: str,
) -> None:
    # Each is thought to end at once; in the end each takes 6 of 8 pages.
    requests = [replace(r, sampling=sampling, max_tokens=34, output=exactly(1)) for r in work]
    free = answers(roomy, requests)
    engine = start(tiny_llm, room(pages=8), ahead, kernels=kernels)
    crowded = answers(engine, requests)
    assert sum(timing_of(completion).preemptions for completion in free.values()) == 0
    assert sum(timing_of(completion).preemptions for completion in crowded.values()) > 0
    assert timing_of(crowded["0"]).preemptions == 0, "the first of all is never disturbed"
    for name, completion in crowded.items():
        assert completion.failure is None
        assert all(map(alike, completion.answers, free[name].answers))
    # No more is kept of them than one whole page of each prompt.
    assert len(engine.flights.prefixes) <= 4
    assert_no_page_is_lost(engine)


def assert_no_page_is_lost(engine: InflightEngine) -> None:
    engine.flights.prefixes.clear()
    assert all(pool.free == pool.count for pool in engine.flights.pools)


# --- Moments -------------------------------------------------------------------------------------


class Ticking(VirtualClock):
    """A second passes whenever somebody looks."""

    def now_s(self) -> float:
        self.advance(1.0)
        return super().now_s()


def ticking(model: str, budget: Budget) -> InflightEngine:
    clock = Ticking(datetime(2026, 1, 1, tzinfo=UTC))
    return inflight_engine(model, {"page_tokens": PAGE}, clock=clock, budget=budget)


def test_moments_are_those_of_the_steps_that_made_them(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    # The clock is looked at when a step begins, and when it has ended.
    engine = ticking(tiny_llm, room())
    (done,) = answers(engine, [of_length(work[0], 4)]).values()
    assert done.timing == RequestTiming(1.0, 2.0, 8.0, 8.0, gaps_s=(2.0, 2.0, 2.0))


def test_a_prompt_in_parts_begins_with_the_first_and_has_its_token_with_the_last(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = ticking(tiny_llm, room(step_tokens=5))
    (done,) = answers(engine, [of_length(work[0], 2)]).values()  # 12 tokens in three steps
    assert done.timing == RequestTiming(1.0, 6.0, 8.0, 8.0, gaps_s=(2.0,))


@pytest.mark.parametrize("pages", [8, 1000])
@each_pace
def test_gaps_lie_between_the_first_token_and_the_last(
    ahead: bool, pages: int, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(pages=pages), ahead)
    requests = [replace(of_length(request, 30), output=exactly(1)) for request in work]
    requests[2] = of_length(work[2], 1)
    for completion in answers(engine, requests).values():
        moments = timing_of(completion)
        assert moments.prefill_s <= moments.first_token_s <= moments.answered_s
        assert moments.answered_s <= moments.finished_s
        assert len(moments.gaps_s) == completion.output_tokens - 1
        between_s = moments.answered_s - moments.first_token_s
        assert sum(moments.gaps_s) == pytest.approx(between_s, abs=1e-4)


def test_moments_of_several_answers_reach_from_the_first_to_the_last(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = ticking(tiny_llm, room(rows=2))
    three = replace(of_length(work[0], 3), sampling=replace(HOT, n=3, ignore_eos=True))
    (done,) = answers(engine, [three]).values()
    # Two at once, and then the third: it begins at 7.
    assert done.timing == RequestTiming(1.0, 2.0, 12.0, 12.0, gaps_s=(2.0,) * 6)


# --- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [6, 7, 20])
def test_no_more_memory_is_held_than_the_budget_has(
    pages: int, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = room(pages=pages)
    engine = start(tiny_llm, budget)
    cache = engine.packed.cache
    assert budget.kv_bytes - PAGE * TOKEN_BYTES < cache.total_bytes <= budget.kv_bytes
    assert cache.held_bytes == 0
    held: list[int] = []
    watch(engine, monkeypatch, lambda _: held.append(cache.held_bytes))
    requests = [replace(r, output=exactly(1)) for r in work]
    found = answers(engine, requests, [replace(r, custom_id=f"b{r.custom_id}") for r in requests])
    assert all(completion.failure is None for completion in found.values())
    assert PAGE * TOKEN_BYTES < max(held) <= budget.kv_bytes


def test_memory_that_is_never_used_is_never_taken(work: list[EngineRequest], tiny_llm: str) -> None:
    process = psutil.Process()
    start(tiny_llm, room())  # what only the first start takes is taken
    before = process.memory_info().rss
    engine = start(tiny_llm, Budget(kv_bytes=2**34, max_sequences=400, prefill_tokens=512))
    assert engine.packed.cache.total_bytes > 2**30
    answers(engine, work)
    assert process.memory_info().rss - before < 2**27


def test_there_are_no_pages_that_no_row_could_ever_use(tiny_llm: str) -> None:
    engine = start(tiny_llm, Budget(kv_bytes=2**34, max_sequences=3, prefill_tokens=512))
    assert engine.packed.cache.total_bytes == 3 * 1024 * TOKEN_BYTES  # three whole contexts


@pytest.mark.parametrize("prompt_tokens", [12, 40])
@each_pace
def test_a_request_that_cannot_fit_alone_is_out_of_memory_and_others_are_answered(
    ahead: bool, prompt_tokens: int, roomy: InflightEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(pages=4), ahead)
    long = of_length(work[3], 30, "long")
    long = replace(long, prompt_token_ids=tuple(range(50, 50 + prompt_tokens)))
    several = replace(long, custom_id="several", sampling=replace(HOT, n=3, ignore_eos=True))
    small = [of_length(request, 5) for request in work]
    found = answers(engine, [long, *small], [several])
    for name in ("long", "several"):
        failure = found.pop(name).failure
        assert failure is not None
        assert failure.code == "out_of_memory"
    free = answers(roomy, small)
    assert {name: texts(c) for name, c in found.items()} == {n: texts(c) for n, c in free.items()}


def test_an_answer_may_fill_the_cache_to_its_last_place(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    # The last token drawn is never computed: 12 + 21 tokens are in the cache's 32.
    engine = start(tiny_llm, room(pages=4))
    found = answers(engine, [of_length(work[0], 21), of_length(work[1], 22)])
    assert found["0"].output_tokens == 21
    assert found["1"].failure is not None


def test_a_budget_without_room_for_a_page_is_an_error_that_says_what_to_do(tiny_llm: str) -> None:
    start(tiny_llm, Budget(PAGE * TOKEN_BYTES, 4, 512))
    with pytest.raises(EngineError, match="page_tokens") as error:
        start(tiny_llm, Budget(PAGE * TOKEN_BYTES - 1, 4, 512))
    assert str(PAGE * TOKEN_BYTES - 1) in str(error.value)


# --- Shared prefixes -----------------------------------------------------------------------------

SYSTEM = tuple(range(100, 140))  # five whole pages


def asking(work: list[EngineRequest], count: int) -> list[EngineRequest]:
    """Requests with one long beginning, of 4 tokens each besides, and answers of 3."""
    return [
        of_length(replace(work[0], prompt_token_ids=(*SYSTEM, 1, 2 + i, 3, 5)), 3, f"shared {i}")
        for i in range(count)
    ]


def test_what_requests_begin_with_alike_is_computed_once(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing = start(tiny_llm, room())
    plain = start(tiny_llm, room(), share_prefixes=False)
    shared, computed = count_tokens(sharing, monkeypatch), count_tokens(plain, monkeypatch)
    requests = asking(work, 6)
    found, expected = answers(sharing, requests), answers(plain, requests)
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in expected.items()}
    decoded = 6 * 2  # of three tokens each the first follows the prompt
    assert sum(computed) == 6 * 44 + decoded
    assert sum(shared) == 40 + 6 * 4 + decoded
    # And is still there later.
    shared.clear()
    again = answers(sharing, requests)
    assert sum(shared) == 6 * 4 + decoded
    assert {n: texts(c) for n, c in again.items()} == {n: texts(c) for n, c in expected.items()}


def test_the_answers_of_one_request_share_its_prompt(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing = start(tiny_llm, room())
    plain = start(tiny_llm, room(), share_prefixes=False)
    shared, computed = count_tokens(sharing, monkeypatch), count_tokens(plain, monkeypatch)
    request = replace(asking(work, 1)[0], sampling=replace(HOT, n=4, ignore_eos=True))
    (found,), (expected,) = (answers(e, [request]).values() for e in (sharing, plain))
    assert texts(found) == texts(expected)
    assert len(set(texts(found))) > 1
    assert sum(computed) == 4 * 44 + 4 * 2
    assert sum(shared) == 44 + 3 * 4 + 4 * 2


def test_a_prompt_of_whole_pages_that_is_asked_again_loses_none_of_them(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    # Its last page is computed again, since what follows it is to be known.
    engine = start(tiny_llm, room(pages=8))
    again = [of_length(replace(work[0], prompt_token_ids=SYSTEM), 2, str(i)) for i in range(9)]
    found = answers(engine, again)
    assert len({texts(completion)[0] for completion in found.values()}) == 1
    assert_no_page_is_lost(engine)


def test_of_a_beginning_what_most_requests_share_is_let_go_last(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room())
    answers(engine, asking(work, 2))
    prefixes = engine.flights.prefixes
    assert [len(prefixes.longest(SYSTEM)) for _ in range(2)] == [5, 5]
    prefixes.let_go()
    assert len(prefixes.longest(SYSTEM)) == 4


def test_pages_that_rows_share_are_counted_once_where_room_is_looked_for(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five pages of all and one of each: alone, one of six pages would fit into 11.
    engine = start(tiny_llm, room(pages=11, rows=6))
    rows: list[int] = []
    watch(engine, monkeypatch, lambda step: rows.append(step.rows))
    found = answers(engine, asking(work, 6))
    assert rows == [6, 6, 6]
    assert {timing_of(completion).preemptions for completion in found.values()} == {0}


# --- Trouble -------------------------------------------------------------------------------------


def named_again(work: list[EngineRequest]) -> list[EngineRequest]:
    return [replace(request, custom_id=f"again {request.custom_id}") for request in work]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("n", [1, 2, 3])
@each_pace
def test_lost_numbers_do_not_reach_who_gets_their_pages_next(
    ahead: bool, n: int, kernels: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(pages=40), ahead, kernels=kernels)
    free = answers(engine, work)
    break_at(engine, ODD, no_numbers)
    sampling = SamplingParams(n=n, temperature=1.0, logit_bias=((ODD, 10_000.0),))
    lost = replace(work[0], custom_id="lost", sampling=sampling)
    begun = replace(lost, custom_id="begun", prompt_token_ids=(1, ODD) * 7)
    found = answers(engine, [lost, begun, *work], *([r] for r in named_again(work)))
    assert found.pop("lost").failure is not None
    assert found.pop("begun").failure is not None
    for layer, _ in engine.packed.cache.layers.values():
        assert not layer.keys.isnan().any()
        assert not layer.values.isnan().any()
    for name, completion in found.items():
        assert texts(completion) == texts(free[name[-1]])


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_nobody_looks_at_what_was_in_a_page_before(
    kernels: str, roomy: InflightEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(), kernels=kernels)
    for layer, _ in engine.packed.cache.layers.values():
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    found, free = answers(engine, work), answers(roomy, work)
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in free.items()}
    # And nobody was saved by being computed again.
    assert {timing_of(completion).preemptions for completion in found.values()} == {0}


@each_pace
def test_a_beginning_whose_numbers_are_lost_is_not_kept_for_others(
    ahead: bool, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(), ahead)
    requests = asking(work, 3)
    free = answers(start(tiny_llm, room(), ahead), requests)
    lost = [True]

    def at_first(embedded: torch.Tensor) -> None:
        if lost:
            no_numbers(embedded)

    break_at(engine, SYSTEM[3], at_first)
    assert all(completion.failure for completion in answers(engine, requests).values())
    lost.clear()
    found = answers(engine, requests)
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in free.items()}


@pytest.mark.parametrize("number", [0, 1])
def test_an_answer_that_fails_fails_the_others_of_its_request_and_no_more(
    number: int, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room(rows=3))
    logits = engine.packed.logits
    two = replace(of_length(work[0], 9, "two"), sampling=replace(HOT, n=2, ignore_eos=True))
    steps: list[int] = []

    def poisoned(step: Step) -> torch.Tensor:
        drawn = logits(step)
        steps.append(step.rows)
        if len(steps) in (4, 5):  # with others, and alone
            drawn[number if len(steps) == 4 else 0] = torch.nan
        return drawn

    monkeypatch.setattr(engine.packed, "logits", poisoned)
    found = answers(engine, [two, of_length(work[3], 9)], [of_length(work[1], 9)])
    assert found["two"].failure is not None
    assert found["two"].answers == ()
    assert "after 3 tokens" in found["two"].failure.message
    assert texts(found["3"]) == texts(answers(engine, [of_length(work[3], 9)])["3"])
    assert texts(found["1"]) == texts(answers(engine, [of_length(work[1], 9)])["1"])


def test_rows_are_looked_at_alone_until_the_one_at_fault_is_found(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room())
    break_at(engine, ODD, raising(lambda: RuntimeError("odd\nand more")))
    rows: list[int] = []
    watch(engine, monkeypatch, lambda step: rows.append(step.rows))
    odd = replace(work[0], custom_id="odd", prompt_token_ids=(ODD,))
    found = answers(engine, [of_length(work[0], 3), odd, *(of_length(r, 3) for r in work[1:])])
    assert found["odd"].failure is not None
    assert found["odd"].failure.message == "odd"
    # All, again all, the first alone with one token, the one at fault, and the rest.
    assert rows == [5, 5, 1, 1, 4, 4, 3]
    assert timing_of(found["0"]).preemptions == 2


def test_scores_that_were_lost_once_are_computed_again(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room())
    requests = [of_length(request, 6) for request in work]
    free = answers(engine, requests)
    logits = engine.packed.logits
    rows: list[int] = []

    def poisoned(step: Step) -> torch.Tensor:
        drawn = logits(step)
        rows.append(step.rows)
        if len(rows) == 3:
            drawn[1] = torch.nan
        return drawn

    monkeypatch.setattr(engine.packed, "logits", poisoned)
    found = answers(engine, requests)
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in free.items()}
    assert rows == [4, 4, 4, 1, 4, 4, 4]
    assert [timing_of(found[str(i)]).preemptions for i in range(4)] == [0, 1, 0, 0]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_who_begins_like_one_at_fault_in_the_same_step_is_still_answered(
    kernels: str, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(), kernels=kernels)
    good = asking(work, 3)
    free = answers(start(tiny_llm, room(), kernels=kernels), good)
    bad = replace(good[0], custom_id="bad", prompt_token_ids=(*SYSTEM, ODD, 5))
    break_at(engine, ODD, no_numbers)
    found = answers(engine, [bad, *good])
    assert found.pop("bad").failure is not None
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in free.items()}


def test_what_fits_in_no_memory_fails_before_it_holds_up_others(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room(pages=8))
    counted = count_tokens(engine, monkeypatch)
    long = replace(of_length(work[0], 2, "long"), prompt_token_ids=(50,) * (8 * PAGE + 1))
    short = [replace(of_length(r, 2), prompt_token_ids=(50,) * 5) for r in work]
    done = list(engine.run(in_batches([short[0], long, *short[1:]])))
    assert done[0].custom_id == "long"
    assert done[0].failure is not None
    assert done[0].failure.code == "out_of_memory"
    assert [completion.failure for completion in done[1:]] == [None] * 4
    assert counted == [4 * 5, 4]


def test_an_engine_that_was_interrupted_knows_no_beginning_that_it_never_computed(
    work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room())
    requests = asking(work, 2)

    def interrupt(_: Step) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        watch(engine, patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            answers(engine, requests)
    found, free = answers(engine, requests), answers(start(tiny_llm, room()), requests)
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in free.items()}


def test_a_step_that_memory_did_not_hold_makes_the_next_ones_smaller(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room(), share_prefixes=False)
    requests = [of_length(replace(r, prompt_token_ids=(50,) * 100), 8) for r in work]
    free = answers(engine, requests)
    steps: list[tuple[int, int]] = []

    def look(step: Step) -> None:
        steps.append((step.rows, step.token_ids.numel()))
        if step.rows > 2 or step.token_ids.numel() > 110:
            raise torch.OutOfMemoryError

    watch(engine, monkeypatch, look)
    found = answers(engine, requests)
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in free.items()}
    # 400 tokens of 4 rows at once; then 200 of 2 rows, 100 of one.
    assert steps[:3] == [(4, 400), (2, 200), (1, 100)]
    assert all(rows == 1 and tokens <= 100 for rows, tokens in steps[2:])


def test_a_row_alone_is_given_up_only_where_its_smallest_step_is_too_much(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room())
    steps: list[int] = []

    def look(step: Step) -> None:
        steps.append(step.token_ids.numel())
        if ODD in step.token_ids:
            raise torch.OutOfMemoryError

    watch(engine, monkeypatch, look)
    long = replace(of_length(work[0], 3, "long"), prompt_token_ids=(ODD,) * 100)
    found = answers(engine, [long])
    assert found["long"].failure is not None
    assert found["long"].failure.code == "out_of_memory"
    assert steps == [100, 50, 25, FEWEST_STEP_TOKENS]
    assert texts(answers(engine, [of_length(work[3], 3)])["3"])


@each_pace
def test_what_a_broken_step_had_told_already_is_not_told_twice(
    ahead: bool,
    roomy: InflightEngine,
    work: list[EngineRequest],
    tiny_llm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [replace(r, sampling=SamplingParams(logprobs=1), max_tokens=5) for r in work]
    free = answers(roomy, requests)
    calls: list[int] = []

    def broken(*arguments: Any) -> list[int | None]:
        tokens = choose(*arguments)
        calls.append(1)
        if len(calls) in (1, 4):
            raise torch.OutOfMemoryError
        return tokens

    monkeypatch.setattr("uellm_cli.engines.inflight.engine.choose", broken)
    found = answers(start(tiny_llm, room(), ahead), requests)
    for name, completion in found.items():
        assert all(map(alike, completion.answers, free[name].answers))


def test_what_cannot_be_asked_fails_at_once_and_costs_no_other_a_token(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tiny_llm, room())
    counted = count_tokens(engine, monkeypatch)
    requests = asking(work, 4)
    schema = replace(requests[0], custom_id="schema", sampling=SamplingParams(json_schema="[]"))
    unknown = SamplingParams(logit_bias=((10**6, 1.0),))
    bias = replace(requests[0], custom_id="bias", sampling=unknown)
    done = list(engine.run(in_batches([requests[0], schema, requests[1], bias, *requests[2:]])))
    assert [completion.custom_id for completion in done[:2]] == ["schema", "bias"]
    assert [c.failure.code for c in done if c.failure] == ["invalid_request"] * 2
    # The prompt of the one with a bias is all that it takes.
    assert sum(counted) == 40 + 5 * 4 + 4 * 2
    # What is known of beginnings is still known.
    counted.clear()
    answers(engine, requests)
    assert sum(counted) == 4 * 4 + 4 * 2


# --- Stop ----------------------------------------------------------------------------------------


@each_pace
def test_what_the_last_step_before_a_stop_made_is_handed_back(
    ahead: bool, work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    engine = inflight_engine(tiny_llm, budget=room(), stop=lambda: len(steps) >= 3)
    engine.lookahead = ahead
    watch(engine, monkeypatch, lambda step: steps.append(step.rows))
    done = list(engine.run(in_batches([of_length(work[0], 3), of_length(work[1], 4)])))
    assert [completion.custom_id for completion in done] == ["0"]
    assert done[0].output_tokens == 3
    assert steps == [2, 2, 2]


def test_a_request_that_lacks_an_answer_when_stopped_is_not_handed_back(
    work: list[EngineRequest], tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three rows at once: both answers of 1, of which one needs two steps more, and 0.
    steps: list[int] = []
    engine = inflight_engine(tiny_llm, budget=room(rows=3), stop=lambda: len(steps) >= 4)
    watch(engine, monkeypatch, lambda step: steps.append(step.rows))
    short, three, next_ = of_length(work[0], 3), of_length(work[1], 6), of_length(work[2], 3)
    three = replace(three, sampling=replace(HOT, n=2, ignore_eos=True))
    done = list(engine.run(in_batches([short, three], [next_])))
    assert [completion.custom_id for completion in done] == ["0"]
    assert len(steps) == 4


@each_pace
def test_a_run_that_is_left_half_way_leaves_nothing_behind(
    ahead: bool, roomy: InflightEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    engine = start(tiny_llm, room(rows=2), ahead)
    run = engine.run(in_batches(work))
    assert next(run).custom_id
    assert isinstance(run, Iterator)
    run.close()  # type: ignore[attr-defined]
    assert engine.packed.cache.held_bytes <= engine.packed.cache.total_bytes
    assert all(pool.held == 0 for pool in engine.flights.pools)
    found = answers(engine, named_again(work))
    assert len(found) == 4
    for name, completion in found.items():
        assert texts(completion) == texts(answers(roomy, work)[name[-1]])


# --- As static -----------------------------------------------------------------------------------


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    """Of few likely tokens, so that rounding does not decide what is drawn."""
    if draw(st.booleans()):
        chosen: dict[str, Any] = {"temperature": draw(st.sampled_from([0.0, 0.5, 1.0]))}
        chosen["top_p"] = draw(st.sampled_from([None, 0.5, 0.9, 1.0]))
        chosen["min_p"] = draw(st.sampled_from([None, 0.02]))
        chosen["top_k"] = draw(st.sampled_from([None, 1, 7]))
    else:
        chosen = {"temperature": 4.0, "top_k": draw(st.integers(2, 20))}
    return SamplingParams(
        seed=draw(st.sampled_from([None, 0, -5, 2**40])),
        n=draw(st.sampled_from([1, 1, 2, 3])),
        stop=draw(st.sampled_from([(), (), ("7",), (" 1", "cat")])),
        logprobs=draw(st.sampled_from([None, None, 0, 3])),
        logit_bias=draw(st.sampled_from([(), ((30, 2.5), (2, -3.0))])),
        repetition_penalty=draw(st.sampled_from([None, 1.2])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4])),
        stop_token_ids=draw(st.sampled_from([(), (30,)])),
        ignore_eos=draw(st.booleans()),
        min_tokens=draw(st.integers(0, 4)),
        json_schema=draw(st.sampled_from([None, None, None, '{"type": "integer"}'])),
        **chosen,
    )


@settings(max_examples=EXAMPLES, derandomize=True)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 3), samplings(), st.integers(1, 14), st.integers(1, 20)),
        min_size=1,
        max_size=6,
    ),
    pages=st.integers(4, 12),
    rows=st.integers(1, 6),
    step_tokens=st.integers(1, 40),
    batch_size=st.integers(1, 6),
    share_prefixes=st.booleans(),
    ahead=st.booleans(),
    kernels=st.sampled_from(["auto", "torch"]),
)
def test_answers_are_the_static_engine_s_for_one_request_at_a_time(
    asked: list[tuple[int, SamplingParams, int, int]],
    pages: int,
    rows: int,
    step_tokens: int,
    batch_size: int,
    share_prefixes: bool,
    ahead: bool,
    kernels: str,
    tiny_llm: str,
) -> None:
    budget = room(pages, rows, step_tokens)
    engine = start(tiny_llm, budget, ahead, share_prefixes=share_prefixes, kernels=kernels)
    requests = [
        replace(
            model_work_of(tiny_llm)[which],
            custom_id=str(number),
            sampling=replace(sampling, min_tokens=min(sampling.min_tokens, tokens)),
            max_tokens=tokens,
            output=exactly(predicted),
        )
        for number, (which, sampling, tokens, predicted) in enumerate(asked)
    ]
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    found = answers(engine, *batches)
    for request in requests:
        (alone,) = answers(static_of(tiny_llm), [request]).values()
        made = found[request.custom_id]
        assert made.failure == alone.failure
        assert len(made.answers) == len(alone.answers) == request.sampling.n
        assert all(map(alike, made.answers, alone.answers))


model_work_of = cache(model_work)
static_of = cache(static_engine)


def test_how_many_tokens_a_step_has_changes_no_answer(
    roomy: InflightEngine, work: list[EngineRequest], tiny_llm: str
) -> None:
    free = answers(roomy, work)
    made: dict[str, list[str]] = defaultdict(list)
    for step_tokens in (1, 2, 7, 13):
        for name, completion in answers(
            start(tiny_llm, room(step_tokens=step_tokens)), work
        ).items():
            made[name] += texts(completion)
    assert made == {name: texts(completion) * 4 for name, completion in free.items()}
