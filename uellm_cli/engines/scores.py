"""Where a batch's rows meet `generate`: one step's scores go in, one token a row comes out.

`generate` knows one temperature and one stop for the whole batch. Here every row has its own. A
logits processor prepares each row's scores and, where the row samples, draws its token and leaves
it as the only finite score, so that `generate`'s argmax picks it; a stopping criterion hands the
tokens to the rows and ends them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria

from uellm_cli.engines.grammar import Grammar
from uellm_cli.engines.rows import Decode, Row, TokenScore
from uellm_cli.engines.sampling import draw
from uellm_cli.types import Failure


class ScoreLog:
    """The log probabilities of the tokens that are drawn, for the rows that are asked for them.

    They are of the scores as the model gave them: `look` comes before anything changes these, and
    `note` once the tokens are drawn.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._asked = [i for i, row in enumerate(rows) if row.request.sampling.logprobs is not None]
        self._seen: tuple[list[int], torch.Tensor] | None = None

    def look(self, scores: torch.Tensor) -> None:
        """A step's scores [rows, vocab]."""
        asked = [i for i in self._asked if self._rows[i].is_open]
        self._seen = (asked, torch.log_softmax(scores[asked].float(), dim=-1)) if asked else None

    def note(self, drawn: torch.Tensor) -> None:
        """The tokens drawn from them [rows], for rows that have not taken theirs yet."""
        if self._seen is None:
            return
        asked, logprobs = self._seen
        most = max(self._rows[i].request.sampling.logprobs or 0 for i in asked)
        tokens = drawn[asked]
        own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        best = torch.topk(logprobs, min(most, logprobs.shape[1]), dim=-1)
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for i, token, logprob, (ids, values) in zip(asked, tokens.tolist(), own, tops, strict=True):
            row = self._rows[i]
            count = row.request.sampling.logprobs
            top = tuple(zip(ids[:count], values[:count], strict=True))
            row.scores.append(TokenScore(token, logprob, top))


class RowScores(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Makes each row's scores what its next token is to be the largest of.

    Repetition penalty, bias, grammar, then the draw. A row without scores that could be used fails
    by itself, and is not looked at again.
    """

    def __init__(self, rows: Sequence[Row], log: ScoreLog, repetition_penalty: float) -> None:
        self._rows = rows
        self._log = log
        self._penalty = repetition_penalty
        self._biases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of ids [rows, tokens so far] and the model's scores [rows, vocab], the latter changed."""
        self._fail_without_numbers(scores)
        self._log.look(scores)
        for i, row in self._open():
            if self._penalty != 1:
                _penalize(scores[i], input_ids[i, -_length(row) :], self._penalty)
            if row.request.sampling.logit_bias:
                self._add_bias(i, row, scores[i])
            if row.grammar is not None:
                _constrain(row, row.grammar, scores[i])
        for i, row in self._open():
            if not row.sampling.is_greedy:
                token = draw(scores[i], row.sampling, row.generator)
                scores[i] = float("-inf")
                scores[i, token] = 0.0
        return scores

    def _open(self) -> Iterator[tuple[int, Row]]:
        return ((i, row) for i, row in enumerate(self._rows) if row.is_open)

    def _fail_without_numbers(self, scores: torch.Tensor) -> None:
        # The largest of a row is NaN if any of it is, and -inf if no token is left.
        usable = torch.isfinite(scores.amax(dim=-1)).tolist()
        for i, row in self._open():
            if not usable[i]:
                row.failure = Failure(
                    "engine_error",
                    "the model's scores for its next token were not finite numbers after "
                    f"{len(row.tokens)} tokens",
                )

    def _add_bias(self, i: int, row: Row, scores: torch.Tensor) -> None:
        if i not in self._biases:
            ids, values = zip(*row.request.sampling.logit_bias, strict=True)
            unknown = [token for token in ids if not 0 <= token < len(scores)]
            if unknown:
                # On a GPU, an index out of range would end the whole process.
                reason = f"the model has token ids below {len(scores)}, and no {unknown[0]}"
                row.failure = Failure("invalid_request", reason, "logit_bias")
                return
            device = scores.device
            self._biases[i] = (
                torch.tensor(ids, device=device),
                torch.tensor(values, dtype=scores.dtype, device=device),
            )
        scores.index_add_(0, *self._biases[i])


def _length(row: Row) -> int:
    return len(row.request.prompt_token_ids) + len(row.tokens)


def _penalize(scores: torch.Tensor, own: torch.Tensor, penalty: float) -> None:
    """transformers' repetition penalty over a row's own tokens; its padding is none of them."""
    own = own[own < len(scores)]
    seen = scores[own]
    scores[own] = torch.where(seen < 0, seen * penalty, seen / penalty)


def _constrain(row: Row, grammar: Grammar, scores: torch.Tensor) -> None:
    allowed = grammar.allowed(len(scores))
    if isinstance(allowed, Failure):
        row.failure = allowed
        return
    scores.masked_fill_(~allowed.to(scores.device), float("-inf"))
    if not torch.isfinite(scores.max()):
        reason = "the model rules out every token that the schema allows"
        row.failure = Failure("engine_error", f"{reason}, after {len(row.tokens)} tokens")


class RowStops(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Gives each row its token, and ends the batch with its last row or when told to stop.

    `first_token_s` is when all rows had their first token. Once `stopped`, rows take nothing more.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        log: ScoreLog,
        eos_ids: frozenset[int],
        decode: Decode,
        now_s: Callable[[], float],
        stop: Callable[[], bool],
    ) -> None:
        self._rows = rows
        self._log = log
        self._eos_ids = eos_ids
        self._decode = decode
        self._now_s = now_s
        self._stop = stop
        self.first_token_s: float | None = None
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """Of ids [rows, tokens so far], whether each row is to end, as bools [rows]."""
        if not self.stopped:
            self._take(input_ids[:, -1])
            self.stopped = self._stop()
        ended = [self.stopped or not row.is_open for row in self._rows]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)

    def _take(self, drawn: torch.Tensor) -> None:
        now_s = self._now_s()
        if self.first_token_s is None:
            self.first_token_s = now_s
        self._log.note(drawn)
        for row, token in zip(self._rows, drawn.tolist(), strict=True):
            if row.is_open:
                row.take(token, now_s, self._eos_ids, self._decode)
