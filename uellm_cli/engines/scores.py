"""From a step's scores to a token for each row: what every engine's step ends with.

The rows of a call are any open rows: others than in the last, and each as far as it has come. On a
GPU nothing waits for single rows, and only a few numbers a row are brought down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
import torch

from uellm_cli.engines.changes import change
from uellm_cli.engines.grammar import Grammar
from uellm_cli.engines.rows import Row, TokenScore
from uellm_cli.engines.sampling import CANDIDATES, chances, draw, draw_from_best, on_device
from uellm_cli.types import Failure

# Scores that are changed or drawn from together: each takes some twenty bytes then.
SCORES_AT_ONCE = 2**23


# Of scores [rows, vocab] the place of each row's largest, and that; NaN is the largest of all.
FindLargest = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def find_largest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A `FindLargest` for every device."""
    places = scores.argmax(dim=-1)
    return places, scores.gather(1, places[:, None])[:, 0]


def choose(
    rows: Sequence[Row], logits: torch.Tensor, find: FindLargest = find_largest
) -> list[int | None]:
    """The next token of each row, by the model's scores for it, `logits` [rows, vocab].

    None for a row that fails here, which has its `failure` then. All rows are open, and each has to
    `take` its token before it comes again. Penalties and bias (`changes.py`) come first, then the
    schema, then the draw; log probabilities, where asked for, are of the scores as they are given,
    and added to the row's own. `logits` may be on any device and of any float type; they are left
    as they are. `find` may be faster than torch.
    """
    best, highest = _best(rows, logits, find)
    plain = [i for i, row in enumerate(rows) if row.is_plain]
    if len(plain) == len(rows):
        return _told(rows, best, highest)
    special = [i for i, row in enumerate(rows) if not row.is_plain]
    size = max(1, SCORES_AT_ONCE // logits.shape[1])
    if len(special) == len(rows) <= size:
        return _chosen_specially(rows, logits, best, highest)
    tokens: list[int | None] = [None] * len(rows)
    for part in [special[i : i + size] for i in range(0, len(special), size)] + [plain]:
        at = on_device(np.array(part, np.int64), logits.device)
        some = [rows[i] for i in part]
        if part is plain:
            found = _told(some, best[at], highest[at])
        else:
            found = _chosen_specially(some, logits[at], best[at], highest[at])
        for i, token in zip(part, found, strict=True):
            tokens[i] = token
    return tokens


def _best(
    rows: Sequence[Row], scores: torch.Tensor, find: FindLargest = find_largest
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of the rows' largest scores, of which only greedy rows' are looked for; and these.

    What is largest is NaN if any of a row is, and -inf if no token is left.
    """
    if not any(row.sampling.is_greedy for row in rows):
        highest = scores.amax(dim=-1)
        return torch.zeros_like(highest, dtype=torch.long), highest
    return find(scores)


def _told(
    rows: Sequence[Row],
    chosen: torch.Tensor,
    highest: torch.Tensor,
    left: torch.Tensor | None = None,
) -> list[int | None]:
    """Tokens `chosen` [rows] as numbers; None for rows that have failed, or do so here.

    `highest` are the rows' largest scores as they were given, and `left` as they are after changes.
    """
    facts = [chosen, highest] if left is None else [chosen, highest, left]
    if chosen.device.type == "cpu":
        ids, largest, *after = [fact.tolist() for fact in facts]
    else:
        # In one piece, for each piece waits for the device. 64-bit floats hold any token id.
        ids, largest, *after = torch.stack([fact.double() for fact in facts]).tolist()
    tokens: list[int | None] = [int(token) for token in ids]
    if left is None and all(map(isfinite, largest)):
        return tokens
    for i, row in enumerate(rows):
        if row.failure is None and not isfinite(largest[i]):
            reason = "the model's scores for its next token were not finite numbers"
            row.failure = _failure(row, reason)
        elif row.failure is None and after and not isfinite(after[0][i]):
            reason = "the model rules out every token that the schema allows"
            if row.grammar is None:
                reason = "the model rules out every token that could come next"
            row.failure = _failure(row, f"{reason},")
        if row.failure is not None:
            tokens[i] = None
    return tokens


def _failure(row: Row, reason: str) -> Failure:
    return Failure("engine_error", f"{reason} after {len(row.tokens)} tokens")


def _chosen_specially(
    rows: Sequence[Row], logits: torch.Tensor, best: torch.Tensor, highest: torch.Tensor
) -> list[int | None]:
    """Of rows of which none is plain; `best` are the tokens of their `highest` scores."""
    scores, chosen, left = logits, best, None
    if any(row.changes is not None or row.grammar is not None for row in rows):
        scores = logits.to(torch.float32, copy=True)
        _change(scores, rows)
        _constrain(scores, rows)
        chosen, left = _best(rows, scores)
    if any(not row.sampling.is_greedy for row in rows):
        chosen = _drawn(scores, rows, chosen)
    tokens = _told(rows, chosen, highest, left)
    _note_logprobs(logits, rows, chosen)
    return tokens


def _change(scores: torch.Tensor, rows: Sequence[Row]) -> None:
    changed = []
    for i, row in enumerate(rows):
        if row.changes is not None:
            row.failure = row.changes.unknown(scores.shape[1])
            if row.failure is None:
                changed.append((i, row.changes, row.tokens))
    change(scores, changed)


def _constrain(scores: torch.Tensor, rows: Sequence[Row]) -> None:
    """-inf for what the rows' schemas do not allow."""
    followed: list[int] = []
    masks: list[torch.Tensor] = []
    for i, row in enumerate(rows):
        if row.grammar is None or row.failure is not None:
            continue
        allowed = _allowed(row, row.grammar, scores.shape[1])
        if isinstance(allowed, Failure):
            row.failure = allowed
        else:
            followed.append(i)
            masks.append(allowed)
    if followed:
        at = on_device(np.array(followed), scores.device)
        forbidden = ~torch.stack(masks).to(scores.device, non_blocking=True)
        scores[at] = scores[at].masked_fill(forbidden, -torch.inf)


def _allowed(row: Row, grammar: Grammar, width: int) -> torch.Tensor | Failure:
    allowed = grammar.allowed(width)
    if isinstance(allowed, Failure) or len(row.tokens) >= row.request.sampling.min_tokens:
        return allowed
    goes_on = allowed.clone()
    goes_on[[token for token in row.end_ids if token < width]] = False
    # What is whole and cannot go on may end, however short it is.
    return goes_on if goes_on.any() else allowed


def _drawn(scores: torch.Tensor, rows: Sequence[Row], chosen: torch.Tensor) -> torch.Tensor:
    """`chosen`, with its own draw for each row that samples."""
    numbers = chances([row.seed for row in rows], [len(row.tokens) for row in rows])
    drawing = np.array([not row.sampling.is_greedy for row in rows])
    of_the_best = np.array([row.sampling.is_of_the_best for row in rows]) & drawing
    # Filled up with those of the first for which the best few were not enough.
    searching = drawing & ~of_the_best
    for some, looks_at_all in ((of_the_best, False), (searching, True)):
        numbered = np.flatnonzero(some)
        if not len(numbered):
            continue
        at = on_device(numbered, scores.device)
        own = scores if len(numbered) == len(rows) else scores[at]
        sampling = [rows[i].sampling for i in numbered.tolist()]
        if looks_at_all:
            drawn = draw(own, sampling, numbers[numbered])
        else:
            drawn, settled = draw_from_best(own, sampling, numbers[numbered], CANDIDATES)
            searching[numbered] = ~settled.cpu().numpy()
        chosen = chosen.index_copy(0, at, drawn)
    return chosen


def _note_logprobs(logits: torch.Tensor, rows: Sequence[Row], chosen: torch.Tensor) -> None:
    """How likely what is `chosen` was, for rows that ask for it and have not failed."""
    asked = [
        i
        for i, row in enumerate(rows)
        if row.request.sampling.logprobs is not None and row.failure is None
    ]
    if not asked:
        return
    at = on_device(np.array(asked), logits.device)
    scores = logits[at].float()
    whole = torch.logsumexp(scores, dim=-1, keepdim=True)
    own = scores.gather(1, chosen[at][:, None]) - whole
    most = min(max(rows[i].request.sampling.logprobs or 0 for i in asked), logits.shape[1])
    best = torch.topk(scores, most, dim=-1)
    told = [own, best.values - whole, best.indices, chosen[at][:, None]]
    for i, numbers in zip(asked, torch.cat([t.double() for t in told], 1).tolist(), strict=True):
        count = min(rows[i].request.sampling.logprobs or 0, most)
        ids = map(int, numbers[1 + most : 1 + most + count])
        top = tuple(zip(ids, numbers[1 : 1 + count], strict=True))
        rows[i].scores.append(TokenScore(int(numbers[-1]), numbers[0], top))
