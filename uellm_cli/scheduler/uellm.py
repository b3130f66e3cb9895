"""The default: as few promises broken as can be, then the shortest run, then the least waiting.

Several orders are made, each is run in sampled lengths, and the best is taken: what is best depends
on how much there is to do, how sure lengths are and how tight promises are, and asking is cheap.

In flight the orders weave what can be kept in time, by the latest that each may begin, with all the
rest, the longest first, as far as nobody is late for it. What cannot be saved does not stand in the
way of what can. Earliest deadline first is always among them, so by that measure it is never worse.

Static batches come from every sort key, and the best of them are searched on (`improve`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from uellm_cli.columns import Arrangement, Ints, RequestColumns
from uellm_cli.scheduler.batching import cut_into_batches, in_one_piece
from uellm_cli.scheduler.improve import improved
from uellm_cli.scheduler.pace import paced_budgets
from uellm_cli.scheduler.urgency import savable, urgency_of, woven
from uellm_cli.timing.fluid import fluid
from uellm_cli.timing.outcomes import breaks_promise
from uellm_cli.timing.scenarios import FEWEST, drawn_lengths, how_many
from uellm_cli.timing.simulator import FOLLOWED, simulate
from uellm_cli.timing.slots import rows_at_a_time
from uellm_cli.types import Batching, Conditions

# Lengths that plans count on, from careless to careful; and how much of what urgent requests can
# wait is used for others. Tried from the first on, as far as there is time for.
LEVELS = (0.7, 0.9, 0.5)
FILLED = (0.5, 0.0, 0.8)
# More requests than this are planned with the first orders only.
MANY = 50_000
# Static batches: the best few are searched on, in so many lengths drawn altogether, which few
# requests need more scenarios for: what fits sixteen of them by chance is no better in others. The
# more requests there are, the fewer moves are tried.
SEARCHED = 3
LENGTHS_SEARCHED = 25_600
MOST_SCENARIOS = 128
MOST_TRIES = 4_000
TRIES_OF_ALL = 4_000_000
PRIMES = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37], dtype=np.float64)
# Where memory is short, the best few are followed event by event, in so many scenarios.
FOLLOWED_ORDERS, FOLLOWED_SCENARIOS = 3, 4
# Makespans that differ by less are as good: the next objective decides.
SAME_MAKESPAN = 0.005


@dataclass(frozen=True, slots=True)
class Uellm:
    """`seed` is for the lengths that are drawn, and for the search."""

    seed: int = 0

    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        # By what requests are: an order of the file's own changes nothing.
        canonical = _canonical(columns)
        sorted_columns = columns.take(canonical)
        if conditions.batching is Batching.STATIC:
            best = self._static(sorted_columns, conditions)
        else:
            arranged = list(_in_flight(sorted_columns, conditions))
            lengths = self._drawn(sorted_columns, how_many(len(columns)), conditions)
            ranked = _best(sorted_columns, arranged, lengths, conditions)
            best = ranked[0]
            if len(columns) <= FOLLOWED and _waits_for_memory(sorted_columns, conditions):
                # Slots are only near to what the rule of admission comes to there.
                tried = [arranged[0], *ranked[:FOLLOWED_ORDERS]]
                few = lengths[:FOLLOWED_SCENARIOS]
                best = _best(sorted_columns, tried, few, conditions, FOLLOWED)[0]
            budget = best.budget or conditions.budget
            cut = cut_into_batches(sorted_columns, best.order, replace(conditions, budget=budget))
            best = replace(best, starts=cut.starts)
        return best.of_rows(canonical)

    def _drawn(self, columns: RequestColumns, count: int, conditions: Conditions) -> list[Ints]:
        return list(drawn_lengths(columns, count, self.seed, conditions.length_correlation))

    def _static(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        seeds = [
            cut_into_batches(columns, order, conditions)
            for order in _sort_keys(columns, conditions)
        ]
        requests = max(len(columns), 1)
        count = max(FEWEST, min(MOST_SCENARIOS, LENGTHS_SEARCHED // requests))
        lengths = self._drawn(columns, count, conditions)
        best = _best(columns, seeds, lengths, conditions)
        tries = min(MOST_TRIES, TRIES_OF_ALL // requests)
        if tries < len(best[0].starts):
            return best[0]
        random = np.random.default_rng(self.seed % 2**63)
        searched = [
            improved(columns, seed, lengths, conditions, tries, random) for seed in best[:SEARCHED]
        ]
        # The search knows of ends and first tokens only: the others are judged with it again.
        return _best(columns, [*best[:SEARCHED], *searched], lengths, conditions)[0]


def _canonical(columns: RequestColumns) -> Ints:
    """An order by what requests are; those that it does not tell apart are the same to plan."""
    # One number for all that has no natural order, of parts that do not cancel out.
    parts = (columns.rounds, columns.max_tokens, columns.kv_token_bytes, columns.weight)
    mixed = columns.quantiles @ np.sqrt(PRIMES[: columns.quantiles.shape[1]])
    for part, prime in zip(parts, PRIMES[::-1], strict=False):
        mixed = mixed + part * np.sqrt(prime)
    keys = (columns.prompt_tokens, mixed, columns.tpot_s)
    return np.lexsort((*keys, columns.first_token_by_s, columns.finish_by_s, columns.arrival_s))


def _waits_for_memory(columns: RequestColumns, conditions: Conditions) -> bool:
    """Whether the largest requests leave seats empty if they run together."""
    rows = np.repeat(np.arange(len(columns)), columns.rounds)
    seats = min(conditions.budget.max_sequences, len(rows))
    tokens = np.rint(columns.p90).astype(np.int64)
    return rows_at_a_time(columns, rows, tokens, conditions.budget) < seats


def _in_flight(columns: RequestColumns, conditions: Conditions) -> Iterator[Arrangement]:
    """Every order, with as many at a time as there is room for, and with fewer for their pace."""
    for order in _orders(columns, conditions):
        yield in_one_piece(columns, order, conditions)
    if conditions.is_running:
        return
    for budget in paced_budgets(columns, conditions):
        slower = replace(conditions, budget=budget)
        for order in _orders(columns, slower):
            yield replace(in_one_piece(columns, order, slower), budget=budget)


def _orders(columns: RequestColumns, conditions: Conditions) -> Iterator[Ints]:
    """Orders for running in flight, the most promising first."""
    due_s = columns.due_s
    longest = np.argsort(-columns.mean, kind="stable")
    if not np.isfinite(due_s).any():
        yield longest
        if len(columns) <= MANY:
            yield np.argsort(columns.mean, kind="stable")
        return
    yield np.argsort(due_s, kind="stable")
    levels, shares = (LEVELS, FILLED) if len(columns) <= MANY else (LEVELS[:1], FILLED[:1])
    for level in levels:
        machine = fluid(columns, columns.at_level(level), conditions)
        urgency = urgency_of(columns, machine, conditions)
        promised = np.argsort(urgency.latest_s, kind="stable")
        promised = promised[np.isfinite(urgency.latest_s[promised])]
        kept = promised[savable(urgency, columns.weight, promised)]
        # Who is in time even as the last of all may be anywhere.
        urgent = kept[urgency.latest_s[kept] < urgency.work_s.sum()]
        fillers = longest[~np.isin(longest, urgent)]
        for share in shares:
            yield woven(urgent, fillers, urgency, share)
        if len(columns) <= MANY:
            unpromised = longest[~np.isfinite(urgency.latest_s[longest])]
            yield np.concatenate([promised, unpromised])


def _sort_keys(columns: RequestColumns, conditions: Conditions) -> Iterator[Ints]:
    """Orders that static batches are cut from."""
    due_s = columns.due_s
    dated = np.where(np.isfinite(due_s), due_s, np.finfo(np.float64).max)
    yield np.argsort(due_s, kind="stable")
    yield np.argsort(columns.mean, kind="stable")
    yield np.argsort(columns.p90, kind="stable")
    yield np.argsort(-columns.mean, kind="stable")
    machine = fluid(columns, columns.at_level(LEVELS[0]), conditions)
    urgency = urgency_of(columns, machine, conditions)
    yield np.argsort(urgency.latest_s, kind="stable")
    for tokens_s in (0.5, machine.step_s):  # UELLM's own weight, and what a token takes
        yield np.argsort(dated + tokens_s * columns.p50, kind="stable")
    # Deadlines in ranges, and like lengths together within each.
    finite = np.sort(due_s[np.isfinite(due_s)])
    for ranges in (2, 4, 8, 16):
        if len(finite):
            edges = finite[np.linspace(0, len(finite) - 1, ranges + 1).astype(int)[1:-1]]
            yield np.lexsort((columns.mean, np.searchsorted(edges, dated, side="left")))
    promised = np.argsort(urgency.latest_s, kind="stable")
    promised = promised[np.isfinite(urgency.latest_s[promised])]
    kept = savable(urgency, columns.weight, promised)
    rest = np.setdiff1d(np.arange(len(columns)), promised[kept])
    yield np.concatenate([promised[kept], rest[np.argsort(columns.mean[rest], kind="stable")]])


def _best(
    columns: RequestColumns,
    arranged: Sequence[Arrangement],
    lengths: Sequence[Ints],
    conditions: Conditions,
    followed: int = 0,
) -> list[Arrangement]:
    """The arrangements, the best first: by late weight, then makespan, then mean completion."""
    if len(arranged) == 1:
        return list(arranged)
    scores = [_score(columns, each, lengths, conditions, followed) for each in arranged]
    shortest = min(makespan_s for _, makespan_s, _ in scores)

    def key(place: int) -> tuple[float, int, float]:
        late, makespan_s, completion_s = scores[place]
        return round(late, 9), int(makespan_s / max(shortest, 1e-9) / SAME_MAKESPAN), completion_s

    return [arranged[place] for place in sorted(range(len(arranged)), key=key)]


def _score(
    columns: RequestColumns,
    arranged: Arrangement,
    lengths: Sequence[Ints],
    conditions: Conditions,
    followed: int,
) -> tuple[float, float, float]:
    """Means over the scenarios: weight that is late, makespan, completion."""
    late, makespans_s, completions_s = [], [], []
    for drawn in lengths:
        outcomes = simulate(columns, arranged, drawn, conditions, followed)
        late.append(float(columns.weight @ breaks_promise(columns, outcomes, drawn)))
        makespans_s.append(outcomes.makespan_s)
        ended = outcomes.finished_s[arranged.order]
        completions_s.append(float(ended.mean()) if len(ended) else 0.0)
    return float(np.mean(late)), float(np.mean(makespans_s)), float(np.mean(completions_s))
