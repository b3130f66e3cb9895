"""A short run of made-up requests on a real engine: its step times are known before work begins.

The engine tells what its steps take by its own way (`EngineContext.step_seen`); here it is given
something to do: few rows and many, short prompts and long ones, each shape on its own, the cheap
ones first, for as long as there is time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from uellm_cli.clock import Clock
from uellm_cli.types import Budget, Engine, EngineBatch, EngineRequest, SamplingParams

# What a calibration may take, and the least run that one is worth, in seconds.
LONGEST_S = 20.0
WORTH_S = 600.0
# Each shape makes so many tokens a row: one step with prompts, and these less one without.
OUTPUT_TOKENS = 12
ROWS = (1, 4, 16, 64)
PROMPTS = (8, 64, 512)
# Tokens that nearly every vocabulary has; prompts differ, so that no prefix is shared.
LOWEST_TOKEN, TOKENS = 4, 60


def calibrate(
    engine: Engine, budget: Budget, kv_token_bytes: float, context_tokens: int, clock: Clock
) -> None:
    """Runs shapes that fit, one after the other, until `LONGEST_S` are over; answers are let go."""
    began_s = clock.now_s()
    for number, (rows, prompt) in enumerate(shapes(budget, kv_token_bytes, context_tokens)):
        if clock.now_s() - began_s > LONGEST_S:
            return
        for _ in engine.run(iter([_batch(number, rows, prompt)])):
            pass


def shapes(budget: Budget, kv_token_bytes: float, context_tokens: int) -> Iterator[tuple[int, int]]:
    """Rows and prompt tokens, the cheapest first; twice, since a first step is often slow."""
    fitting = [
        (rows, prompt)
        for rows, prompt in product(ROWS, PROMPTS)
        if rows <= budget.max_sequences
        and prompt + OUTPUT_TOKENS <= context_tokens
        and rows * (prompt + OUTPUT_TOKENS) * kv_token_bytes <= budget.kv_bytes
        # An engine of static batches computes all prompts in one pass.
        and (rows == 1 or rows * prompt <= budget.prefill_tokens)
    ]
    yield from sorted([*fitting, *fitting], key=lambda shape: shape[0] * (shape[1] + OUTPUT_TOKENS))


def _batch(number: int, rows: int, prompt: int) -> EngineBatch:
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    return EngineBatch(
        number,
        tuple(
            EngineRequest(
                custom_id=f"calibration-{number}-{row}",
                prompt_token_ids=tuple(
                    LOWEST_TOKEN
                    + (row + (1 + number + TOKENS // 2 * (row // TOKENS)) * place) % TOKENS
                    for place in range(prompt)
                ),
                max_tokens=OUTPUT_TOKENS,
                sampling=sampling,
            )
            for row in range(rows)
        ),
    )
