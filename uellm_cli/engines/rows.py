"""Rows of a batch: one answer in the making each, and what its scores and its end share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from uellm_cli.engines.grammar import Grammar
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.types import EngineRequest, Failure, FinishReason

Decode = Callable[[Sequence[int]], str]


class TokenScore(NamedTuple):
    """A drawn token, its natural log probability, and the likeliest ones in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class RowEnd:
    """When a row's last token was there, and why it was the last."""

    at_s: float
    reason: FinishReason


@dataclass(slots=True)
class Row:
    """One attempt at one answer.

    It is open until it has an `end` or a `failure`. `tokens` are those drawn so far, the one that
    ends it among them; `scores` says how likely each was, where the request asks for it.
    """

    request: EngineRequest
    sampling: RowSampling
    generator: torch.Generator
    grammar: Grammar | None = None
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    end: RowEnd | None = None
    failure: Failure | None = None

    @property
    def is_open(self) -> bool:
        return self.end is None and self.failure is None

    def take(self, token: int, at_s: float, eos_ids: frozenset[int], decode: Decode) -> None:
        """Adds the token that was drawn at `at_s`, and ends the row where it is the last one."""
        self.tokens.append(token)
        reason = self._reason(token, eos_ids, decode)
        if self.grammar is not None and self.grammar.completes(token):
            reason = FinishReason.STOP
        if reason is not None:
            self.end = RowEnd(at_s, reason)

    def _reason(self, token: int, eos_ids: frozenset[int], decode: Decode) -> FinishReason | None:
        if token in eos_ids or self._has_stop(decode):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) >= self.request.max_tokens else None

    def _has_stop(self, decode: Decode) -> bool:
        stops = self.request.sampling.stop
        if not stops:
            return False
        # A token is at least a byte, so a stop string that ends in this token lies within as many
        # last tokens as the string has bytes. One more on the left, since decoding may strip the
        # space of a first one.
        tail = decode(self.tokens[-max(len(stop.encode()) for stop in stops) - 1 :])
        return any(stop in tail for stop in stops)
