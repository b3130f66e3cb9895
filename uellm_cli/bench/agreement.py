"""How far an engine's answers are the reference's: whether it computes what it was asked to. Pure.

The reference is transformers' `generate`, greedy, one request at a time (`reference.py`). From the
first token that differs on, two answers are to different texts, and nothing can be said any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from uellm_cli.bench.workers import Round

Decode = Callable[[Sequence[int]], str]
MEANING = (
    "share of output tokens before the first that is not what transformers' generate answers "
    "greedily, one request at a time; rounding turns near-ties, often in bfloat16"
)


@dataclass(frozen=True, slots=True)
class Check:
    """What answers are compared with: the reference's to the first `requests` of the work.

    With a `failure`, there is nothing to compare with.
    """

    requests: int
    output_tokens: int
    versions: Mapping[str, str]
    failure: str | None = None
    meaning: str = MEANING


@dataclass(frozen=True, slots=True)
class Reference:
    """A check, and the token ids of each of its answers."""

    check: Check
    answers: tuple[tuple[int, ...], ...] = ()


def agreement(rounds: Sequence[Round], reference: Reference, decode: Decode) -> float | None:
    """The share of tokens before the first difference, over all checked requests of all rounds.

    None where there is nothing to compare. An answer of another length is one that differs.
    """
    same = among = 0
    for told in rounds:
        for i, expected in enumerate(reference.answers):
            same += _same_tokens(told, i, expected, decode)
            among += max(len(expected), told.output_tokens[i])
    return same / among if among else None


def _same_tokens(told: Round, i: int, expected: Sequence[int], decode: Decode) -> int:
    if told.tokens is not None:
        return _common(told.tokens[i], expected)
    if told.texts is not None:
        return min(told.output_tokens[i], same_in_text(told.texts[i], expected, decode))
    return 0


def same_in_text(text: str, expected: Sequence[int], decode: Decode) -> int:
    """How many of the `expected` tokens a text begins with, where its own are not told.

    A token counts when the character behind it is right too: " 1" is no beginning of " 17". So
    that where texts part, at most a token too few is counted, and never one too many.
    """
    whole = decode(expected)
    if text == whole:
        return len(expected)
    shared = _common(text, whole)
    counts = range(1, len(expected) + 1)
    return sum(1 for _ in takewhile(lambda n: len(decode(expected[:n])) < shared, counts))


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of what both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
