"""The bundled model behind an engine, and requests for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import pytest
import torch

from tests.builders import ONE_SECOND_STEPS, chat, exactly
from uellm_cli.clock import SystemClock, VirtualClock
from uellm_cli.engines import ENGINES, EngineContext, never
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.engines.loaded import LoadedModel
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

# Those that answer with a model: what is asked of one of them is asked of all.
REAL_ENGINES = [name for name in ENGINES.names() if not ENGINES.build(name).in_virtual_time]
each_engine = pytest.mark.parametrize("name", REAL_ENGINES)

# Two that count, and two that the model ends after a few tokens.
PROMPTS = ["Count from 3 to 9.", "Spell the word cat.", "Is 7 even?", "Count from 3 to 200."]
# So hot that even a sure model wavers, and of so few tokens that rounding, which company changes,
# hardly ever moves one's share of the chances past an answer's own.
HOT = SamplingParams(temperature=8.0, top_k=20, seed=11)


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


class RealEngine(Engine, Protocol):
    """An engine with a model that a test can look at, and break."""

    context: EngineContext
    loaded: LoadedModel


def real_engine(
    name: str, model: str, stop: Callable[[], bool] = never, **changes: Any
) -> RealEngine:
    """The engine of that name; `changes` are the context's."""
    engine = ENGINES.build(name).start(context(model, SystemClock(), stop=stop, **changes))
    return cast(RealEngine, engine)


def inflight_engine(
    model: str, options: Mapping[str, object] | None = None, **changes: Any
) -> InflightEngine:
    """`options` are the engine's own, `changes` the context's."""
    clock = changes.pop("clock", None) or SystemClock()
    engine = ENGINES.build("inflight", options or {}).start(context(model, clock, **changes))
    assert isinstance(engine, InflightEngine)
    return engine


def static_engine(model: str, stop: Callable[[], bool] = never, **changes: Any) -> StaticEngine:
    engine = ENGINES.build("static").start(context(model, SystemClock(), stop=stop, **changes))
    assert isinstance(engine, StaticEngine)
    return engine


def break_at(engine: RealEngine, token: int, broken: Callable[[torch.Tensor], None]) -> None:
    """Calls `broken` with the embeddings of a token that is to break the model, [times, hidden]."""

    def hook(_: Any, ids: tuple[torch.Tensor], embedded: torch.Tensor) -> torch.Tensor:
        found = ids[0] == token
        if not found.any():
            return embedded
        embedded = embedded.clone()
        rows = embedded[found]
        broken(rows)
        embedded[found] = rows
        return embedded

    engine.loaded.model.get_input_embeddings().register_forward_hook(hook)


def raising(error: Callable[[], Exception]) -> Callable[[torch.Tensor], None]:
    def broken(_: torch.Tensor) -> None:
        raise error()

    return broken


def no_numbers(embedded: torch.Tensor) -> None:
    embedded.fill_(torch.nan)


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
