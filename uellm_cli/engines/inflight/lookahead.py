"""Greedy tokens that the next step is computed with before the host has seen them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from uellm_cli.engines.inflight.uploads import Download
from uellm_cli.engines.rows import Row
from uellm_cli.engines.scores import choose


class PlainDraw:
    """The next `tokens` [rows] of rows that are all plain, on the device and soon on the host."""

    def __init__(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        self._rows = list(rows)
        self.tokens = logits.argmax(dim=-1)
        highest = logits.gather(1, self.tokens[:, None])[:, 0]
        # In one piece. 64-bit floats hold any token id.
        self._told = Download(torch.stack([self.tokens.double(), highest.double()]))

    def read(self) -> list[int | None]:
        """What `scores.choose` returns; waits for it."""
        ids, highest = self._told.numbers().tolist()
        tokens: list[int | None] = list(map(int, ids))
        for i, score in enumerate(highest):
            if not isfinite(score):
                # It fails, and says why in the words of any other step.
                (tokens[i],) = choose([self._rows[i]], torch.tensor([[score]]))
        return tokens
