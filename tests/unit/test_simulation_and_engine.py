"""The simulator against the real engines, in steps: who enters when, and what is seen of it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest

from tests.builders import ONE_SECOND_STEPS, exactly, profiled
from tests.unit.engine_cases import inflight_engine, static_engine
from tests.unit.scheduling_cases import in_order
from uellm_cli.columns import columns_of
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.timing.in_flight import simulate_in_flight
from uellm_cli.types import (
    Batching,
    Budget,
    Conditions,
    EngineBatch,
    EngineRequest,
    SamplingParams,
    StepSample,
)

Sizes = list[tuple[int, int]]
FORCED = SamplingParams(temperature=0.0, ignore_eos=True)


def requests_of(sizes: Sizes, predicted: int | None = None) -> list[EngineRequest]:
    """Prompts and answers of these lengths; answers are predicted right, or all alike."""
    return [
        EngineRequest(
            custom_id=f"r{i}",
            prompt_token_ids=tuple(5 + (i + place) % 40 for place in range(prompt)),
            max_tokens=output,
            sampling=FORCED,
            output=exactly(predicted or output),
        )
        for i, (prompt, output) in enumerate(sizes)
    ]


def in_batches(requests: list[EngineRequest], size: int) -> Iterator[EngineBatch]:
    for first in range(0, len(requests), size):
        yield EngineBatch(first, tuple(requests[first : first + size]))


def sizes_of(count: int, seed: int) -> Sizes:
    random = Random(seed)
    return [(random.randint(2, 60), random.randint(1, 40)) for _ in range(count)]


def token_bytes(engine: InflightEngine) -> int:
    return sum(group.bytes_per_token for group in engine.flights.groups)


def steps_of(tiny_llm: str, sizes: Sizes, budget: Budget) -> list[StepSample]:
    """The steps of a real run, whose pages are of a single token."""
    seen: list[StepSample] = []
    engine = inflight_engine(
        tiny_llm,
        {"page_tokens": 1, "share_prefixes": False, "step_tokens": budget.prefill_tokens},
        budget=budget,
        step_seen=seen.append,
    )
    answered = list(engine.run(in_batches(requests_of(sizes), budget.max_sequences)))
    assert [a.output_tokens for a in sorted(answered, key=lambda a: int(a.custom_id[1:]))] == [
        output for _, output in sizes
    ]
    return seen


def simulated_steps(sizes: Sizes, budget: Budget, price: float) -> float:
    """How many steps the simulator takes, at a second each."""
    columns = columns_of(
        [profiled(f"r{i}", prompt_tokens=s, output=o) for i, (s, o) in enumerate(sizes)]
    )
    columns.kv_token_bytes[:] = price
    columns.max_tokens[:] = [output for _, output in sizes]
    under = Conditions(budget, ONE_SECOND_STEPS, Batching.IN_FLIGHT)
    lengths = np.array([output for _, output in sizes])
    return simulate_in_flight(columns, in_order(columns), lengths, under).makespan_s


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("step_tokens", [16, 512])
def test_with_room_for_all_the_simulator_takes_the_engine_s_steps(
    tiny_llm: str, rows: int, step_tokens: int
) -> None:
    sizes = sizes_of(24, seed=rows)
    budget = Budget(2**30, rows, step_tokens)
    seen = steps_of(tiny_llm, sizes, budget)
    assert len(seen) == simulated_steps(sizes, budget, 1.0)
    assert sum(sample.prefill_tokens for sample in seen) == sum(prompt for prompt, _ in sizes)
    assert max(sample.sequences for sample in seen) <= rows
    # Each token but the first reads what is before it: prompt + 1 up to prompt + output - 1.
    # Later parts of a prompt read its earlier ones.
    decoded = sum(o * s - s + (o - 1) * o // 2 for s, o in sizes)
    read = sum(sample.cached_tokens for sample in seen)
    assert read == decoded if step_tokens == 512 else read >= decoded
    assert all(sample.seconds > 0 for sample in seen)


@pytest.mark.parametrize("tokens", [120, 200, 400])
def test_with_little_memory_the_simulator_comes_near_the_engine_s_steps(
    tiny_llm: str, tokens: int
) -> None:
    sizes = sizes_of(30, seed=tokens)
    price = token_bytes(inflight_engine(tiny_llm, {"page_tokens": 1}))
    budget = Budget(tokens * price, 12, 512)
    seen = steps_of(tiny_llm, sizes, budget)
    held = max(sample.cached_tokens for sample in seen)
    assert held <= tokens  # memory it was that rows waited for
    assert len(seen) == pytest.approx(simulated_steps(sizes, budget, price), rel=0.1)


def test_static_batches_tell_what_their_steps_were(tiny_llm: str) -> None:
    seen: list[StepSample] = []
    engine = static_engine(tiny_llm, step_seen=seen.append)
    requests = requests_of([(4, 5), (9, 3)])
    assert len(list(engine.run(in_batches(requests, 2)))) == 2
    # Two prompts padded to nine, then two rows that read what there is, to the longest answer.
    assert [(s.prefill_tokens, s.sequences, s.cached_tokens) for s in seen] == [
        (18, 2, 0),
        (0, 2, 20),
        (0, 2, 22),
        (0, 2, 24),
        (0, 2, 26),
    ]
