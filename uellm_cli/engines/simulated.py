"""An engine that computes nothing: it moves a virtual clock by a step-time model.

Static batches, as `static` runs them. Answers are empty; their lengths are drawn from each
request's predicted distribution, by request, so that an order or a restart changes none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from uellm_cli.clock import VirtualClock
from uellm_cli.engines import EngineContext
from uellm_cli.errors import EngineError
from uellm_cli.timing.simulator import static_batch_times
from uellm_cli.types import (
    Answer,
    Completion,
    Engine,
    EngineBatch,
    EngineRequest,
    FinishReason,
    RequestTiming,
)


@dataclass(frozen=True, slots=True)
class Simulated:
    """`load_s` is what loading the model would take; None for what a plan assumes."""

    in_virtual_time: ClassVar[bool] = True
    load_s: float | None = None

    def start(self, context: EngineContext) -> Engine:
        if not isinstance(context.clock, VirtualClock):
            raise EngineError("the simulated engine needs a virtual clock")
        context.clock.advance(context.loading_s if self.load_s is None else self.load_s)
        return SimulatedEngine(context, context.clock)


@dataclass(frozen=True, slots=True)
class SimulatedEngine:
    context: EngineContext
    clock: VirtualClock

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        for batch in batches:
            yield from self._run_batch(batch)

    def _run_batch(self, batch: EngineBatch) -> Iterator[Completion]:
        step = self.context.step_times
        prompts = [len(request.prompt_token_ids) for request in batch.requests]
        lengths = [drawn_length(request, self.context.seed) for request in batch.requests]
        times = static_batch_times(prompts, lengths, step)
        began_s = self.clock.now_s() - self.context.started_s
        self.clock.advance(times.finished_s)
        for request, length in zip(batch.requests, lengths, strict=True):
            decoding_s = step.decode_s(len(prompts), max(prompts), length - 1)
            yield Completion(
                custom_id=request.custom_id,
                batch_id=batch.batch_id,
                timing=RequestTiming(
                    prefill_s=began_s,
                    first_token_s=began_s + times.first_token_s,
                    answered_s=began_s + times.first_token_s + decoding_s,
                    finished_s=began_s + times.finished_s,
                ),
                answers=(_empty_answer(request, length),),
            )


def _empty_answer(request: EngineRequest, tokens: int) -> Answer:
    cut = tokens >= request.max_tokens
    return Answer("", tokens, FinishReason.LENGTH if cut else FinishReason.STOP)


def drawn_length(request: EngineRequest, seed: int) -> int:
    """An output length from the request's predicted quantiles; its cap where there are none."""
    if request.output is None:
        return request.max_tokens
    digest = hashlib.sha256(f"{seed}\0{request.custom_id}".encode()).digest()
    level = int.from_bytes(digest[:8], "big") / 2**64
    return max(1, min(request.max_tokens, round(request.output.at(level))))
