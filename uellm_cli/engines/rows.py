"""A row: one answer in the making, what its next token depends on, and its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from uellm_cli.engines.changes import ScoreChanges
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


@dataclass(slots=True, eq=False)
class Row:
    """One attempt at one answer, whose chances are `seed`'s; `eos_ids` are the model's end tokens.

    It is open until it has an `end` or a `failure`. `tokens` are those drawn so far, the one that
    ends it among them; `scores` says how likely each was, where the request asks for it. A row has
    all that its next token depends on, but for the model's scores: it can be put aside at any time
    and go on later, in whatever company.

    `end_ids` are the tokens that end it. A schema outranks `ignore_eos` and `min_tokens`: what it
    says is whole has ended. While a row `is_plain`, its next token is the one of the best score.
    """

    request: EngineRequest
    sampling: RowSampling
    seed: int
    eos_ids: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    end: RowEnd | None = None
    failure: Failure | None = None
    end_ids: frozenset[int] = field(init=False)
    changes: ScoreChanges | None = field(init=False)
    is_plain: bool = field(init=False)
    _is_simple: bool = field(init=False)
    _is_watched: bool = field(init=False)

    def __post_init__(self) -> None:
        asked = self.request.sampling
        honours_eos = not asked.ignore_eos or self.grammar is not None
        own = self.eos_ids if honours_eos else frozenset[int]()
        self.end_ids = own.union(asked.stop_token_ids)
        # A schema itself says how soon an answer may end.
        early = frozenset[int]() if self.grammar is not None else self.end_ids
        self.changes = ScoreChanges.asked_for(self.request, self.sampling, early)
        self._is_simple = (
            self.sampling.is_greedy and self.grammar is None and asked.logprobs is None
        )
        self.is_plain = self._is_simple and self.changes is None
        self._is_watched = bool(asked.stop) or self.grammar is not None or self.changes is not None

    @property
    def is_open(self) -> bool:
        return self.end is None and self.failure is None

    @property
    def content(self) -> list[int]:
        """Its tokens, without the one that ended it."""
        stopped = self.end is not None and self.end.reason is FinishReason.STOP
        return self.tokens[:-1] if stopped and self.tokens[-1] in self.end_ids else self.tokens

    def take(self, token: int, at_s: float, decode: Decode) -> None:
        """Adds the token that was chosen at `at_s`, and ends the row where it is the last one."""
        tokens = self.tokens
        tokens.append(token)
        if self._is_watched or token in self.end_ids or len(tokens) >= self.request.max_tokens:
            reason = self._reason(token, decode)
            if reason is not None:
                self.end = RowEnd(at_s, reason)

    def first_stop_from(self, decode: Decode) -> int:
        """Where in the text stop strings may end, in characters; those that end before are text.

        With `min_tokens`, no stop string counts that is whole with fewer tokens.
        """
        free = self.request.sampling.min_tokens - 1
        if free < 1 or not self.request.sampling.stop:
            return 0
        # The last of them may be a part of a character, which the next one makes whole.
        return len(decode(self.content[:free]).rstrip("\ufffd"))

    def _reason(self, token: int, decode: Decode) -> FinishReason | None:
        made, asked = len(self.tokens), self.request.sampling
        if self.changes is not None and self.changes.are_over(made):
            self.changes = None
            self.is_plain = self._is_simple
        if self.grammar is not None:
            if self.grammar.completes(token) or token in self.end_ids:
                return FinishReason.STOP
        elif token in self.end_ids and made > asked.min_tokens:
            return FinishReason.STOP
        if asked.stop and made >= asked.min_tokens and self._has_stop(decode):
            return FinishReason.STOP
        return FinishReason.LENGTH if made >= self.request.max_tokens else None

    def _has_stop(self, decode: Decode) -> bool:
        stops = self.request.sampling.stop
        # A token is at least a byte, so a stop string that ends in this token lies within as many
        # last tokens as the string has bytes. One more on the left, since decoding may strip the
        # space of a first one.
        tail = self.tokens[-max(len(stop.encode()) for stop in stops) - 1 :]
        if len(self.tokens) - len(tail) >= self.request.sampling.min_tokens - 1:
            text = decode(tail)
            return any(stop in text for stop in stops)
        text = decode(self.tokens)
        return cut_at_stop(text, stops, self.first_stop_from(decode)) != text


def cut_at_stop(text: str, stops: Sequence[str], after: int = 0) -> str:
    """`text` up to where the first stop string begins, as OpenAI's API returns it.

    Of those only that end beyond `after` characters.
    """
    found = [text.find(stop, max(0, after + 1 - len(stop))) for stop in stops]
    return text[: min((at for at in found if at >= 0), default=len(text))]
