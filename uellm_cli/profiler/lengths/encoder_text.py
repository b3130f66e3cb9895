"""What the encoder reads of prompts: their tokens, the middle of long ones left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Rows = NDArray[np.int64]
Ids = list[list[int]]


@dataclass(frozen=True)
class TokenReader:
    """Gives at most `most_tokens` ids of a text, the special ones included."""

    tokenizer: Tokenizer
    most_tokens: int

    def __post_init__(self) -> None:
        # A file may carry the padding and truncation of its training, which would cut the tail.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def ids(self, texts: Sequence[str]) -> Ids:
        return [self._shortened(found.ids) for found in self.tokenizer.encode_batch(list(texts))]

    def _shortened(self, ids: list[int]) -> list[int]:
        if len(ids) > self.most_tokens:
            tail = self.most_tokens // 2
            return ids[: self.most_tokens - tail] + ids[len(ids) - tail :]
        # A text of no tokens still has a row to be computed.
        return ids or [0]


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[Rows]:
    """Rows in batches of like length, none of more than `batch_tokens` with its padding.

    A row that is longer than that has a batch of its own. The longest come first: what does not fit
    into memory shows at once.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(1, batch_tokens // int(sizes[order[start]]))
        batches.append(order[start : start + count])
        start += count
    return batches
