"""What requests have done to their scores before a token is chosen: penalties, bias, no early end.

In this order: the repetition penalty, presence and frequency penalties, the bias, and -inf for what
would end an answer before its `min_tokens`. Rows are changed together, whatever rows they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from uellm_cli.engines.sampling import RowSampling, on_device
from uellm_cli.types import EngineRequest, Failure


class TokenCounts:
    """The tokens that penalties are for: an answer's, how often each is there, and a prompt's.

    `ids` and `counts` are arrays of equal length; a token of the prompt alone counts 0.
    """

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self._place: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        self._counted = 0
        for token in prompt:
            self._place_of(token)

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._place)]

    def catch_up(self, answer: Sequence[int]) -> None:
        """Counts what has come to the answer since the last time."""
        for token in islice(answer, self._counted, None):
            # Not in one: a new place may be in a new array.
            place = self._place_of(token)
            self._counts[place] += 1
        self._counted = len(answer)

    def _place_of(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place


class ScoreChanges:
    """What one row asks for; `end_ids` may not end it within its first `min_tokens`."""

    def __init__(
        self, request: EngineRequest, sampling: RowSampling, end_ids: frozenset[int]
    ) -> None:
        asked = request.sampling
        self._asked = asked
        self._prompt = request.prompt_token_ids if sampling.repetition_penalty != 1 else ()
        self.penalties = (
            sampling.repetition_penalty,
            asked.presence_penalty,
            asked.frequency_penalty,
        )
        self.is_penalized = self.penalties != (1, 0, 0)
        self.bias_ids = np.array([token for token, _ in asked.logit_bias], np.int64)
        self.bias = np.array([bias for _, bias in asked.logit_bias], np.float32)
        # Nothing is put off where nothing ends an answer.
        self.min_tokens = asked.min_tokens if end_ids else 0
        self.end_ids = np.array(sorted(end_ids), np.int64)
        self._counts: TokenCounts | None = None
        self._is_checked = False

    @classmethod
    def asked_for(
        cls, request: EngineRequest, sampling: RowSampling, end_ids: frozenset[int]
    ) -> ScoreChanges | None:
        """None where a request's scores stay as they are, and it names no tokens to be checked."""
        changes = cls(request, sampling, end_ids)
        needed = not changes.are_over(0) or bool(request.sampling.stop_token_ids)
        return changes if needed else None

    def are_over(self, made: int) -> bool:
        """Whether nothing is left to change once that many tokens are made."""
        return not self.is_penalized and not len(self.bias) and made >= self.min_tokens

    def unknown(self, width: int) -> Failure | None:
        """The failure of a request that names a token the model, of `width` tokens, has not.

        On a GPU, an index out of range would end the whole process.
        """
        if self._is_checked:
            return None
        biased = (token for token, _ in self._asked.logit_bias)
        for name, ids in (("logit_bias", biased), ("stop_token_ids", self._asked.stop_token_ids)):
            for token in ids:
                if not 0 <= token < width:
                    reason = f"the model has token ids below {width}, and no {token}"
                    return Failure("invalid_request", reason, name)
        self._is_checked = True
        return None

    def counts(self, answer: Sequence[int], width: int) -> TokenCounts:
        if self._counts is None:
            self._counts = TokenCounts(token for token in self._prompt if token < width)
        self._counts.catch_up(answer)
        return self._counts


# A row's number in a batch's scores, its changes, and its answer's tokens so far.
Changed = tuple[int, ScoreChanges, Sequence[int]]


def change(scores: torch.Tensor, rows: Sequence[Changed]) -> None:
    """Changes those rows of `scores` [rows, vocab], 32-bit floats, in place."""
    _penalize(scores, [row for row in rows if row[1].is_penalized])
    biased = [(i, changes) for i, changes, _ in rows if len(changes.bias_ids)]
    if biased:
        where = _places(scores, [(i, changes.bias_ids) for i, changes in biased])
        bias = np.concatenate([changes.bias for _, changes in biased])
        scores[where] += on_device(bias, scores.device)
    early = [(i, changes) for i, changes, answer in rows if len(answer) < changes.min_tokens]
    if early:
        width = scores.shape[1]
        ends = [(i, changes.end_ids[changes.end_ids < width]) for i, changes in early]
        scores[_places(scores, ends)] = -torch.inf


def _penalize(scores: torch.Tensor, rows: Sequence[Changed]) -> None:
    """transformers' repetition penalty, then OpenAI's two, of a token that is there `count` times:

    score -= presence_penalty·(count > 0) + frequency_penalty·count
    """
    if not rows:
        return
    counted = [changes.counts(answer, scores.shape[1]) for _, changes, answer in rows]
    where = _places(
        scores, [(row[0], counts.ids) for row, counts in zip(rows, counted, strict=True)]
    )
    count = on_device(np.concatenate([counts.counts for counts in counted]), scores.device)
    penalties = np.array([changes.penalties for _, changes, _ in rows], np.float32)
    each = penalties.repeat([len(counts.ids) for counts in counted], axis=0)
    repetition, presence, frequency = on_device(each.T.copy(), scores.device)
    seen = scores[where]
    seen = torch.where(seen < 0, seen * repetition, seen / repetition)
    scores[where] = seen - presence * (count > 0) - frequency * count


def _places(
    scores: torch.Tensor, rows: Sequence[tuple[int, NDArray[np.int64]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some ids of some rows as an index of `scores`; no place is there twice."""
    ids = [own for _, own in rows]
    numbers = np.array([i for i, _ in rows]).repeat([len(own) for own in ids])
    where = on_device(np.stack([numbers, np.concatenate(ids)]), scores.device)
    return where[0], where[1]
