"""An engine that computes nothing: it moves a virtual clock by a step-time model.

Static batches, as `static` runs them, several answers to a request one after the other. Answers
are empty; their lengths are drawn from each request's predicted distribution, by request, so that
an order or a restart changes none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
        while not self.context.stop():
            batch = next(batches, None)
            if batch is None:
                return
            yield from self._run_batch(batch)

    def _run_batch(self, batch: EngineBatch) -> Iterator[Completion]:
        """Round after round, each with the requests that still lack an answer."""
        rows = [(request, drawn_lengths(request, self.context.seed)) for request in batch.requests]
        prefill_s = self._now_s()
        first_token_s = None
        for number in range(max(len(lengths) for _, lengths in rows)):
            rows = [(request, lengths) for request, lengths in rows if len(lengths) > number]
            prompts = [len(request.prompt_token_ids) for request, _ in rows]
            drawn_s, answered_s = self._round(prompts, [lengths[number] for _, lengths in rows])
            first_token_s = drawn_s if first_token_s is None else first_token_s
            for (request, lengths), last_token_s in zip(rows, answered_s, strict=True):
                if len(lengths) == number + 1:
                    timing = RequestTiming(prefill_s, first_token_s, last_token_s, self._now_s())
                    answers = _empty_answers(request, lengths)
                    yield Completion(request.custom_id, batch.batch_id, timing, answers)

    def _round(self, prompts: Sequence[int], lengths: Sequence[int]) -> tuple[float, list[float]]:
        """Lets a round's time pass; when all its rows had their first token, and each its last."""
        step = self.context.step_times
        times = static_batch_times(prompts, lengths, step)
        first_token_s = self._now_s() + times.first_token_s
        self.clock.advance(times.finished_s)
        rows, longest_prompt = len(prompts), max(prompts)
        decoding_s = [step.decode_s(rows, longest_prompt, length - 1) for length in lengths]
        return first_token_s, [first_token_s + seconds for seconds in decoding_s]

    def _now_s(self) -> float:
        return self.clock.now_s() - self.context.started_s


def _empty_answers(request: EngineRequest, lengths: Sequence[int]) -> tuple[Answer, ...]:
    answers = tuple(_empty_answer(request, length) for length in lengths)
    return answers * (request.sampling.n // len(answers))


def _empty_answer(request: EngineRequest, tokens: int) -> Answer:
    cut = tokens >= request.max_tokens
    return Answer("", tokens, FinishReason.LENGTH if cut else FinishReason.STOP)


def drawn_lengths(request: EngineRequest, seed: int) -> list[int]:
    """The lengths of a request's answers; a greedy one is made once, however many are asked for."""
    rounds = 1 if request.sampling.temperature == 0 else request.sampling.n
    return [drawn_length(request, seed, number) for number in range(rounds)]


def drawn_length(request: EngineRequest, seed: int, answer: int = 0) -> int:
    """An output length from the request's predicted quantiles; its cap where there are none."""
    if request.output is None:
        return request.max_tokens
    content = f"{seed}\0{request.custom_id}" + (f"\0{answer}" if answer else "")
    digest = hashlib.sha256(content.encode()).digest()
    level = int.from_bytes(digest[:8], "big") / 2**64
    return max(1, min(request.max_tokens, round(request.output.at(level))))
