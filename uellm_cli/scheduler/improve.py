"""Static batches made better: members are swapped and batches moved while that makes fewer late.

A schedule is judged in every scenario at once, by the weight of what is late on average, then by
its makespan. On point predictions such a search makes lateness worse; over sampled lengths it makes
it better (PAPER.md, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

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
    times = [search.times(members) for members in batches]
    score = search.score(batches, times)
    best, best_score = batches, score
    for _ in range(tries):
        moved = search.moved(batches, times, random)
        if moved is None:
            continue
        # One that is as good is taken too: from there a better one may be in reach.
        found = search.score(*moved)
        if found <= score:
            (batches, times), score = moved, found
        if found < best_score:
            best, best_score = moved[0], found
    sizes = [len(members) for members in best]
    return Arrangement(
        np.fromiter(chain.from_iterable(best), dtype=np.int64),
        np.cumsum([0, *sizes[:-1]]),
        arranged.oversized,
    )


class _Times(NamedTuple):
    """Seconds of a batch until its first token, and until its end [scenarios]."""

    first_s: float
    whole_s: Floats


class _Search:
    """Batches as lists of requests, and what each takes in every scenario."""

    def __init__(self, columns: RequestColumns, lengths: Ints, conditions: Conditions) -> None:
        self._columns = columns
        self._lengths = lengths
        self._conditions = conditions
        self._has_first = bool(np.isfinite(columns.first_token_by_s).any())

    def times(self, members: Members) -> _Times:
        rows = np.array(members)
        first_s, whole_s = batch_seconds(
            np.int64(len(rows)),  # type: ignore[arg-type]
            self._columns.prompt_tokens[rows].max(),
            self._lengths[:, rows].max(axis=1),
            self._conditions.step,
        )
        return _Times(float(first_s), np.asarray(whole_s * self._columns.rounds[rows].max()))

    def score(self, batches: Sequence[Members], times: Sequence[_Times]) -> Score:
        """The mean weight that is late, and the mean makespan."""
        whole_s = np.array([each.whole_s for each in times])
        ends_s = self._conditions.start_s + np.cumsum(whole_s, axis=0)
        sizes = [len(members) for members in batches]
        order = np.fromiter(chain.from_iterable(batches), dtype=np.int64)
        # Without a promise a time is infinitely late.
        late = np.repeat(ends_s, sizes, axis=0) > self._columns.finish_by_s[order, None]
        if self._has_first:
            firsts_s = ends_s - whole_s + np.array([[each.first_s] for each in times])
            due_s = self._columns.first_token_by_s[order, None]
            late |= np.repeat(firsts_s, sizes, axis=0) > due_s
        return float((self._columns.weight[order] @ late).mean()), float(ends_s[-1].mean())

    def moved(
        self, batches: list[Members], times: list[_Times], random: np.random.Generator
    ) -> tuple[list[Members], list[_Times]] | None:
        """Another schedule, one move away; None where that move is none or breaks the budget."""
        if len(batches) < 2:
            return None
        a = int(random.integers(len(batches)))
        b = (a + 1 + int(random.integers(len(batches) - 1))) % len(batches)
        kind = random.random()
        batches, times = list(batches), list(times)
        if kind < 0.1:
            batches.insert(b, batches.pop(a))
            times.insert(b, times.pop(a))
            return batches, times
        one, other = list(batches[a]), list(batches[b])
        i = int(random.integers(len(one)))
        if kind < 0.2 and len(one) > 1:  # a batch of its own, anywhere
            alone = [one.pop(i)]
            batches[a], times[a] = one, self.times(one)
            place = int(random.integers(len(batches) + 1))
            batches.insert(place, alone)
            times.insert(place, self.times(alone))
            return batches, times
        if kind < 0.4:
            other.append(one.pop(i))
        else:
            j = int(random.integers(len(other)))
            one[i], other[j] = other[j], one[i]
        if not all(self._fits(members) for members in (one, other) if members):
            return None
        batches[a], batches[b] = one, other
        times[b] = self.times(other)
        if one:
            times[a] = self.times(one)
        else:
            del batches[a], times[a]
        return batches, times

    def _fits(self, members: Members) -> bool:
        rows = np.array(members)
        columns = self._columns
        return padded_fits(
            columns.prompt_tokens[rows],
            columns.p90[rows],
            columns.kv_token_bytes[rows],
            self._conditions.budget,
        )
