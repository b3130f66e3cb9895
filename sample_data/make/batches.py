"""Training text for the tiny model: examples in every format, as token batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from sample_data.make.tasks import WORDS, completion_prompt, sample_for_training
from sample_data.make.tokenizer import BOS, END, PAD, SPECIAL_TOKENS

#: Marks a position whose next token is not to be learnt (a prompt, or padding).
IGNORED = -100
#: Examples drawn at a time, to be cut into batches of like length.
POOL = 2048
#: Rows are padded to a multiple of this, so that few different shapes occur.
LENGTH_STEP = 16

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "Give the answer and nothing else.",
    "You are a careful clerk. Do exactly what is asked and add no remarks of your own.",
)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, with the token to predict at each position (or IGNORED)."""

    tokens: torch.Tensor
    targets: torch.Tensor


def system_prompt(rng: Random) -> str:
    """Draw a usual system prompt, or words without meaning that move the task further along."""
    if rng.random() < 0.6:
        return rng.choice(SYSTEM_PROMPTS)
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 18)))


def segments(rng: Random) -> list[tuple[str, bool]]:
    """Draw a row of training text in parts, each marked with whether it is to be learnt."""
    example, kind = sample_for_training(rng), rng.random()
    if kind < 0.2:
        opening = BOS if rng.random() < 0.3 else ""
        prompt = completion_prompt(example.prompt)
        if rng.random() < 0.3:
            prompt = example.prompt + "\n"
        return [(opening + prompt, False), (example.answer + END, True)]
    turns = [example]
    if kind < 0.3:
        turns.append(sample_for_training(rng))
    system = f"<|system|>{system_prompt(rng)}{END}" if kind > 0.8 else ""
    parts = [(BOS + system, False)]
    for turn in turns:
        parts.append((f"<|user|>{turn.prompt}{END}<|assistant|>", False))
        parts.append((turn.answer + END, True))
    return parts


def _encode(tokenizer: Tokenizer, parts: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """Return a row's tokens and, for each, the target of the position before it."""
    tokens: list[int] = []
    targets: list[int] = []
    for text, learnt in parts:
        ids = tokenizer.encode(text).ids
        tokens += ids
        targets += ids if learnt else [IGNORED] * len(ids)
    return tokens, targets


def batches(tokenizer: Tokenizer, seed: int, batch_tokens: int) -> Iterator[Batch]:
    """Yield batches of about batch_tokens tokens for ever, each of rows of like length.

    Rows stand alone and are padded on the right only, so causal attention needs no mask.
    """
    rng = Random(seed)
    pad = SPECIAL_TOKENS.index(PAD)
    while True:
        rows = [_encode(tokenizer, segments(rng)) for _ in range(POOL)]
        rows.sort(key=lambda row: len(row[0]))
        cut: list[Batch] = []
        while rows:
            # The longest row left decides the width, and with it how many rows there are.
            width = -(-len(rows[-1][0]) // LENGTH_STEP) * LENGTH_STEP
            count = max(1, batch_tokens // width)
            chosen, rows = rows[-count:], rows[:-count]
            tokens = torch.full((len(chosen), width), pad)
            targets = torch.full((len(chosen), width), IGNORED)
            for row, (ids, goals) in enumerate(chosen):
                tokens[row, : len(ids)] = torch.tensor(ids)
                targets[row, : len(ids) - 1] = torch.tensor(goals[1:])
            cut.append(Batch(tokens, targets))
        rng.shuffle(cut)
        yield from cut
