"""The bundled model behind an engine, and requests for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tests.builders import ONE_SECOND_STEPS, chat, exactly
from uellm_cli.clock import SystemClock, VirtualClock
from uellm_cli.engines import ENGINES, EngineContext, never
from uellm_cli.engines.static import StaticEngine
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.types import (
    Budget,
    Completion,
    Engine,
    EngineBatch,
    EngineRequest,
    SamplingParams,
)

# Two that count, and two that the model ends after a few tokens.
PROMPTS = ["Count from 3 to 9.", "Spell the word cat.", "Is 7 even?", "Count from 3 to 200."]
# So hot that even a sure model wavers.
HOT = SamplingParams(temperature=8.0, seed=11)


def context(model: str, clock: SystemClock | VirtualClock, **changes: Any) -> EngineContext:
    return replace(
        EngineContext(
            model=model,
            device_map={"": "cpu"},
            visible_devices=None,
            budget=Budget(kv_bytes=2**30, max_sequences=64, prefill_tokens=512),
            clock=clock,
            started_s=clock.now_s(),
            step_times=ONE_SECOND_STEPS,
            loading_s=3.0,
            seed=0,
        ),
        **changes,
    )


def static_engine(model: str, stop: Callable[[], bool] = never, **changes: Any) -> StaticEngine:
    engine = ENGINES.build("static").start(context(model, SystemClock(), stop=stop, **changes))
    assert isinstance(engine, StaticEngine)
    return engine


def model_work(model: str) -> list[EngineRequest]:
    """`PROMPTS` as chats of at most 30 tokens, named by their number."""
    ids = load_tokenizer(model).encode([chat(str(i), text) for i, text in enumerate(PROMPTS)])
    return [
        EngineRequest(str(i), tuple(prompt), 30, SamplingParams(), exactly(5))
        for i, prompt in enumerate(ids)
    ]


def answers(engine: Engine, *batches: Sequence[EngineRequest]) -> dict[str, Completion]:
    """What the engine makes of batches, by id; each request is handed back at most once."""
    completions = list(engine.run(in_batches(*batches)))
    found = {completion.custom_id: completion for completion in completions}
    assert len(found) == len(completions)
    return found


def in_batches(*batches: Sequence[EngineRequest]) -> Iterator[EngineBatch]:
    return (EngineBatch(number, tuple(requests)) for number, requests in enumerate(batches))


def texts(completion: Completion) -> list[str]:
    assert completion.failure is None
    return [answer.text for answer in completion.answers]
