"""Where a run stands: what is done, what is left, and which promises are in danger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uellm_cli.types import Batch, ProfiledRequest, Result


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    `total`, `answered` and `failed` are over all sessions and all lines, invalid ones among the
    failed. `tokens_per_s` is of this session's useful tokens since the engine could begin; None
    before the first. `left_s` is how long the rest takes if its predicted tokens come as fast as
    those of the answers so far, so that predictions that are all too long do not mislead it.
    `at_risk` counts requests that would be late by that.
    """

    total: int
    answered: int
    failed: int
    output_tokens: int
    elapsed_s: float
    tokens_per_s: float | None = None
    left_s: float | None = None
    at_risk: int | None = None

    @property
    def done(self) -> int:
        return self.answered + self.failed


@dataclass(frozen=True, slots=True)
class Before:
    """What was done when a session began; a request that is made again is not done."""

    answered: int = 0
    failed: int = 0


class Meter:
    """Counts results as they come, against the plan's order.

    `total` is how many lines the run has, `began_s` when the engine could begin, in seconds from
    the run's start.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        profiled: Mapping[str, ProfiledRequest],
        total: int,
        before: Before,
        began_s: float,
    ) -> None:
        self._before = before
        self._answered = self._failed = self._output_tokens = 0
        self._total = total
        self._started_s = began_s
        self._follow(batches, profiled, began_s)

    def begin_anew(
        self,
        in_flight: Sequence[str],
        batches: Sequence[Batch],
        profiled: Mapping[str, ProfiledRequest],
        now_s: float,
    ) -> None:
        """Follows another order from `now_s` on, with other predictions."""
        self._follow([Batch(0, tuple(in_flight)), *batches], profiled, now_s)

    def _follow(
        self, batches: Sequence[Batch], profiled: Mapping[str, ProfiledRequest], began_s: float
    ) -> None:
        import numpy as np

        ordered = [profiled[custom_id] for batch in batches for custom_id in batch.custom_ids]
        # For each request in the plan's order: predicted tokens up to the end of its batch.
        sizes = np.array(
            [len(batch.custom_ids) for batch in batches if batch.custom_ids], dtype=int
        )
        tokens = np.cumsum([request.output.p50 * request.rounds for request in ordered])
        self._tokens_by_then = np.repeat(tokens[np.cumsum(sizes) - 1], sizes) if ordered else tokens
        self._due_s = np.array([_due_s(request) for request in ordered])
        self._promised = bool(np.isfinite(self._due_s).any())
        self._began_s = began_s
        # Of those in the plan's order: how many are done, and how many tokens that was to be.
        self._ended, self._ended_tokens = 0, 0.0

    def count(self, result: Result, in_order: bool = True, stands: bool = True) -> None:
        """Takes a result; `in_order` unless its request is in no batch of the plan.

        Where it does not stand, because there is an answer already that is better than none, the
        request counts as answered.
        """
        if in_order:
            self._ended += 1
            self._ended_tokens += result.predicted_tokens_p50 or 0.0
        if result.failure is None or not stands:
            self._answered += 1
            self._output_tokens += result.made_tokens
        else:
            self._failed += 1

    def progress(self, now_s: float) -> Progress:
        """Where the run stands `now_s` seconds after its start."""
        busy_s = now_s - self._started_s
        rate = self._output_tokens / busy_s if self._output_tokens and busy_s > 0 else None
        left_s, at_risk = self._outlook(now_s, now_s - self._began_s)
        return Progress(
            total=self._total,
            answered=self._before.answered + self._answered,
            failed=self._before.failed + self._failed,
            output_tokens=self._output_tokens,
            elapsed_s=now_s,
            tokens_per_s=rate,
            left_s=left_s,
            at_risk=at_risk,
        )

    def _outlook(self, now_s: float, busy_s: float) -> tuple[float | None, int | None]:
        import numpy as np

        if busy_s <= 0 or self._ended_tokens <= 0:
            return None, None
        pace = self._ended_tokens / busy_s
        left_s = (self._tokens_by_then[self._ended :] - self._ended_tokens) / pace
        # Those in flight end together, not in the plan's order: count none as ended in the past.
        left_s = np.maximum(left_s, 0.0)
        at_risk = int(np.count_nonzero(self._due_s[self._ended :] < now_s + left_s))
        return float(left_s[-1]) if len(left_s) else 0.0, at_risk if self._promised else None


def _due_s(request: ProfiledRequest) -> float:
    return math.inf if request.finish_by_s is None else request.finish_by_s
