"""Static batches made better: members are swapped and batches moved while that makes fewer late.

A schedule is judged in every scenario at once, by the weight of what is late on average, then by
its makespan. On point predictions such a search makes lateness worse; over sampled lengths it makes
it better (PAPER.md, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from uellm_cli.columns import Arrangement, Floats, Ints, RequestColumns
from uellm_cli.scheduler.batching import padded_fits
from uellm_cli.timing.batches import batch_seconds
from uellm_cli.types import Conditions

Members = list[int]
Score = tuple[float, float]


def improved(
    columns: RequestColumns,
    arranged: Arrangement,
    scenarios: Sequence[Ints],
    conditions: Conditions,
    tries: int,
    random: np.random.Generator,
) -> Arrangement:
    """The best arrangement that so many tried moves lead to; the given one if none is better."""
    if len(arranged.starts) < 2:
        return arranged
    search = _Search(columns, np.array(scenarios), conditions)
    batches = [part.tolist() for part in np.split(arranged.order, arranged.starts[1:])]
    seconds = [search.seconds(members) for members in batches]
    score = search.score(batches, seconds)
    best, best_score = batches, score
    for _ in range(tries):
        moved = search.moved(batches, seconds, random)
        if moved is None:
            continue
        # One that is as good is taken too: from there a better one may be in reach.
        found = search.score(*moved)
        if found <= score:
            (batches, seconds), score = moved, found
        if found < best_score:
            best, best_score = moved[0], found
    sizes = [len(members) for members in best]
    return Arrangement(
        np.fromiter(chain.from_iterable(best), dtype=np.int64),
        np.cumsum([0, *sizes[:-1]]),
        arranged.oversized,
    )


class _Search:
    """Batches as lists of requests, and what each takes in every scenario [scenarios]."""

    def __init__(self, columns: RequestColumns, lengths: Ints, conditions: Conditions) -> None:
        self._columns = columns
        self._lengths = lengths
        self._conditions = conditions
        self._due_s = columns.finish_by_s
        self._weight = np.where(np.isfinite(columns.finish_by_s), columns.weight, 0.0)

    def seconds(self, members: Members) -> Floats:
        rows = np.array(members)
        _, whole_s = batch_seconds(
            np.int64(len(rows)),  # type: ignore[arg-type]
            self._columns.prompt_tokens[rows].max(),
            self._lengths[:, rows].max(axis=1),
            self._conditions.step,
        )
        return np.asarray(whole_s * self._columns.rounds[rows].max())

    def score(self, batches: Sequence[Members], seconds: Sequence[Floats]) -> Score:
        """The mean weight that is late, and the mean makespan."""
        ends_s = self._conditions.start_s + np.cumsum(np.array(seconds), axis=0)
        sizes = [len(members) for members in batches]
        order = np.fromiter(chain.from_iterable(batches), dtype=np.int64)
        late = np.repeat(ends_s, sizes, axis=0) > self._due_s[order, None]
        return float((self._weight[order] @ late).mean()), float(ends_s[-1].mean())

    def moved(
        self, batches: list[Members], seconds: list[Floats], random: np.random.Generator
    ) -> tuple[list[Members], list[Floats]] | None:
        """Another schedule, one move away; None where that move is none or breaks the budget."""
        if len(batches) < 2:
            return None
        a = int(random.integers(len(batches)))
        b = (a + 1 + int(random.integers(len(batches) - 1))) % len(batches)
        kind = random.random()
        batches, seconds = list(batches), list(seconds)
        if kind < 0.1:
            batches.insert(b, batches.pop(a))
            seconds.insert(b, seconds.pop(a))
            return batches, seconds
        one, other = list(batches[a]), list(batches[b])
        i = int(random.integers(len(one)))
        if kind < 0.25:
            other.append(one.pop(i))
        else:
            j = int(random.integers(len(other)))
            one[i], other[j] = other[j], one[i]
        if not all(self._fits(members) for members in (one, other) if members):
            return None
        batches[a], batches[b] = one, other
        seconds[b] = self.seconds(other)
        if one:
            seconds[a] = self.seconds(one)
        else:
            del batches[a], seconds[a]
        return batches, seconds

    def _fits(self, members: Members) -> bool:
        rows = np.array(members)
        columns = self._columns
        return padded_fits(
            columns.prompt_tokens[rows],
            columns.p90[rows],
            columns.kv_token_bytes[rows],
            self._conditions.budget,
        )
