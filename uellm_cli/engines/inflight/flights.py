"""Rows in flight: who is computed in the next step, who enters, and who has to make room.

Decisions only: nothing here knows of tensors. Rows are served in the schedule's order. A row that
needs a page that nobody has gets it from the one that is last in that order, whose answer so far is
kept and whose cache is computed again later; so the first of all rows always gets on.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from uellm_cli.admission import Demand, admits, expected_tokens
from uellm_cli.engines.inflight.cache import LayerGroup, blocks
from uellm_cli.engines.inflight.pages import PagePool, Prefix, PrefixCache
from uellm_cli.engines.jobs import Job
from uellm_cli.engines.rows import Row

# A row of more steps that broke is suspect: it is computed alone until it has caught up, so that
# only the one at fault fails.
BREAKDOWNS_TOGETHER = 1

_ORDER: Callable[[Flight], int] = attrgetter("order")


@dataclass(slots=True, eq=False)
class Flight:
    """A row from its turn to its end: the answer `number` of its job, at `order` in the schedule.

    `tokens` are its prompt and what has been drawn, of which the first `computed` have their KV in
    the cache. `pages` are the numbers of its blocks' pages, group by group, of which the first
    `passed` are out of sight of the group's window, and held no more. `expected` is how many tokens
    its answer is thought to come to. `breakdowns` counts the steps with it that broke.
    """

    order: int
    number: int
    job: Job
    row: Row
    tokens: list[int]
    expected: int
    computed: int = 0
    seat: int | None = None
    pages: list[list[int]] = field(default_factory=list)
    passed: list[int] = field(default_factory=list)
    prefix: Prefix | None = None
    prefix_blocks: int = 0
    preemptions: int = 0
    breakdowns: int = 0
    prefill_s: float | None = None
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        return len(self.row.request.prompt_token_ids)

    @property
    def is_suspect(self) -> bool:
        return self.breakdowns > BREAKDOWNS_TOGETHER

    @property
    def most_tokens(self) -> int:
        """Tokens whose KV it may come to need; that of the last one drawn is never computed."""
        return self.prompt_tokens + self.row.request.max_tokens - 1

    @property
    def expected_tokens(self) -> int:
        return min(self.prompt_tokens + self.expected - 1, self.most_tokens)


@dataclass(frozen=True, slots=True)
class Chunk:
    """`tokens` tokens that a row computes in a step, after those it has computed."""

    flight: Flight
    tokens: int

    @property
    def draws(self) -> bool:
        """Whether these are all that is known of the row, so that its next token follows."""
        return self.flight.computed + self.tokens == len(self.flight.tokens)


@dataclass(slots=True)
class Limits:
    """The most rows at a time, and the most tokens that one step computes."""

    rows: int
    step_tokens: int


class Flights:
    """Rows that wait, in order, and rows that run, each on a seat.

    `tables[group][seat, block]` is the page of each block of the row on that seat.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        pools: Sequence[PagePool],
        page_tokens: int,
        limits: Limits,
        share_prefixes: bool = True,
    ) -> None:
        self.groups = tuple(groups)
        self.pools = list(pools)
        self.page_tokens = page_tokens
        self.limits = limits
        self.prefixes = PrefixCache(pools, page_tokens)
        self.waiting: list[Flight] = []
        self.running: list[Flight] = []
        self.tables: list[NDArray[np.int32]] = [
            np.zeros((limits.rows, 64), dtype=np.int32) for _ in groups
        ]
        self._share_prefixes = share_prefixes
        self._most_tokens = 0

    def could_hold(self, tokens: int) -> bool:
        """Whether there is room for the KV of so many tokens, were there nothing else."""
        size = self.page_tokens
        return all(
            group.window is not None or blocks(tokens, size) <= pool.count
            for group, pool in zip(self.groups, self.pools, strict=True)
        )

    def add(self, flight: Flight) -> None:
        insort(self.waiting, flight, key=_ORDER)

    # --- One step ------------------------------------------------------------------------------

    def next_chunks(self) -> list[Chunk]:
        """What the next step computes; rows that draw in every step first.

        Empty only where nobody waits or runs, or where the row that runs alone lacks a page.
        """
        return self._suspect_chunks() or self._common_chunks()

    def _suspect_chunks(self) -> list[Chunk]:
        """Of a row that is suspect, with nobody else; the others keep their seats meanwhile."""
        chunks: list[Chunk] = []
        flight = next((f for f in self.running if f.is_suspect), None)
        if flight is not None:
            wanted = min(len(flight.tokens) - flight.computed, self.limits.step_tokens)
            self._reach(flight, flight.computed + wanted)
            self._prefill(flight, wanted, chunks)
        elif self.waiting and self.waiting[0].is_suspect and self._may_enter(self.waiting[0]):
            self._enter(self.limits.step_tokens, chunks)
        return chunks

    def _common_chunks(self) -> list[Chunk]:
        decoding: list[Flight] = []
        prefilling: list[Flight] = []
        for flight in self.running:
            at_end = len(flight.tokens) - flight.computed == 1
            (decoding if at_end else prefilling).append(flight)
        seated = len(self.running)
        full = [f for f in decoding if f.computed == len(f.pages[0]) * self.page_tokens]
        for flight in sorted(full, key=_ORDER):
            if flight.seat is not None:
                self._reach(flight, flight.computed + 1)
        chunks = [Chunk(f, 1) for f in decoding if f.seat is not None and self._reached(f)]
        left = max(self.limits.step_tokens - len(chunks), 1)
        for flight in sorted(prefilling, key=_ORDER):
            if flight.seat is not None and left > 0:
                wanted = min(len(flight.tokens) - flight.computed, left)
                self._reach(flight, flight.computed + wanted)
                left -= self._prefill(flight, wanted, chunks)
        if len(self.running) < seated:  # somebody had to make room: nobody enters
            return [chunk for chunk in chunks if chunk.flight.seat is not None]
        while left > 0 and self.waiting and self._may_enter(self.waiting[0]):
            if self.waiting[0].is_suspect:
                break
            entered = self._enter(left, chunks)
            if not entered:
                break
            left -= entered
        return chunks

    def advance(self, chunks: Sequence[Chunk]) -> None:
        """The tokens of `chunks` have been computed."""
        for chunk in chunks:
            if chunk.draws and len(chunks) == 1:
                chunk.flight.breakdowns = 0  # it was not at fault, or is no more
            chunk.flight.computed += chunk.tokens
        for number, group in enumerate(self.groups):
            if group.window is not None:
                for chunk in chunks:
                    self._pass(chunk.flight, number)

    # --- In and out ----------------------------------------------------------------------------

    def preempt(self, flight: Flight) -> None:
        """Takes a row's pages; it waits at its place in the order, to be computed again."""
        self.remove(flight)
        flight.preemptions += 1
        self.add(flight)

    def remove(self, flight: Flight) -> None:
        """Lets a row that runs go, and its pages with it."""
        for pool, pages, passed in zip(self.pools, flight.pages, flight.passed, strict=True):
            for page in pages[passed:]:
                pool.release(page)
        seat, last = _seat_of(flight), len(self.running) - 1
        moved = self.running.pop()
        if seat != last:
            self.running[seat] = moved
            moved.seat = seat
            for table in self.tables:
                table[seat] = table[last]
        self._most_tokens -= flight.most_tokens
        flight.seat, flight.computed = None, 0
        flight.pages, flight.passed = [], []
        flight.prefix, flight.prefix_blocks = None, 0

    def discard(self, job: Job) -> None:
        """Lets all rows of a job go, wherever they are."""
        for flight in [f for f in self.running if f.job is job]:
            self.remove(flight)
        self.waiting = [f for f in self.waiting if f.job is not job]

    def clear(self) -> None:
        """Lets all rows go."""
        while self.running:
            self.remove(self.running[-1])
        self.waiting.clear()

    def own_pages(self, flight: Flight) -> Iterator[tuple[int, int]]:
        """Group and page of what this row alone holds."""
        for number, (pages, passed) in enumerate(zip(flight.pages, flight.passed, strict=True)):
            pool = self.pools[number]
            yield from ((number, page) for page in pages[passed:] if pool.is_held_once(page))

    def _seat(self, flight: Flight) -> None:
        flight.seat = len(self.running)
        self.running.append(flight)
        self._most_tokens += flight.most_tokens
        flight.pages = [[] for _ in self.groups]
        flight.passed = [0] * len(self.groups)
        # The last token is computed in any case: what follows it is to be known.
        known = self.prefixes.longest(flight.tokens[:-1]) if self._share_prefixes else []
        if not known:
            return
        flight.prefix, flight.prefix_blocks = known[-1], len(known)
        flight.computed = len(known) * self.page_tokens
        self._widen(len(known))
        for number, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            pages = [prefix.pages[number] for prefix in known]
            first = group.first_block(flight.computed, self.page_tokens)
            flight.pages[number] = pages
            flight.passed[number] = first
            for page in pages[first:]:
                pool.share(page)
            self.tables[number][_seat_of(flight), : len(pages)] = pages

    def _may_enter(self, flight: Flight) -> bool:
        """Whether there is a seat, and so much room that nobody is expected to lose theirs."""
        if not self.running:
            return True
        if len(self.running) >= self.limits.rows:
            return False
        return all(self._has_room(flight, number) for number in range(len(self.groups)))

    def _has_room(self, flight: Flight, number: int) -> bool:
        group, pool = self.groups[number], self.pools[number]
        capacity = pool.count * self.page_tokens
        if self._most_tokens + flight.most_tokens + self.page_tokens * self.limits.rows <= capacity:
            return True
        if group.window is not None:
            # What a window holds grows no more once it is full: no row's end is waited for.
            most = group.window + 2 * self.page_tokens
            needed = sum(min(f.expected_tokens, most) for f in [*self.running, flight])
            return needed <= capacity
        size = self.page_tokens
        held = np.fromiter((len(f.pages[number]) * size for f in self.running), dtype=np.int64)
        ends = np.fromiter((f.expected_tokens for f in self.running), dtype=np.int64)
        rounded = -(-ends // size) * size
        # Pages that rows share count for each of them, and are there once.
        shared = int(held.sum()) - pool.held * size
        if self._share_prefixes:
            known = self.prefixes.longest(flight.tokens[:-1])
            shared += size * sum(pool.is_held(prefix.pages[number]) for prefix in known)
        entering = blocks(len(flight.tokens), size) * size
        growth = max(0, blocks(flight.expected_tokens, size) * size - entering)
        demand = Demand(held, np.maximum(rounded - held, 0))
        return admits(demand, entering, growth, capacity + shared)

    # --- Pages ---------------------------------------------------------------------------------

    def _enter(self, most: int, chunks: list[Chunk]) -> int:
        """Seats the first row that waits, and computes up to `most` of its tokens; says how many.

        It takes pages that nobody holds only, so that what others compute in this step, which it
        may share already, will be there.
        """
        flight = self.waiting.pop(0)
        self._seat(flight)
        wanted = min(len(flight.tokens) - flight.computed, most)
        needed = blocks(flight.computed + wanted, self.page_tokens) - len(flight.pages[0])
        self._take_blocks(flight, needed)
        entered = self._prefill(flight, wanted, chunks)
        if not entered and len(self.running) > 1:
            self.remove(flight)
            self.add(flight)
        return entered

    def _prefill(self, flight: Flight, wanted: int, chunks: list[Chunk]) -> int:
        """Adds the tokens to `chunks` that the row has pages for, of those wanted; how many."""
        if flight.seat is None:
            return 0
        reached = len(flight.pages[0]) * self.page_tokens - flight.computed
        tokens = min(wanted, reached)
        if tokens > 0:
            chunks.append(Chunk(flight, tokens))
            if self._share_prefixes:
                self._remember(flight, flight.computed + tokens)
        return tokens

    def _reached(self, flight: Flight) -> bool:
        return len(flight.pages[0]) * self.page_tokens > flight.computed

    def _reach(self, flight: Flight, position: int) -> None:
        """Gives a row pages for all positions before `position`, if need be those of later rows.

        It gets fewer where there are not so many. If it gets none and is not alone, it is preempted
        itself: there was no later row.
        """
        needed = blocks(position, self.page_tokens) - len(flight.pages[0])
        while needed > self._available:
            last = max(self.running, key=_ORDER)
            if last is flight:
                break
            self.preempt(last)
        if needed > 0 and not self._available and len(self.running) > 1:
            self.preempt(flight)
        else:
            self._take_blocks(flight, needed)

    @property
    def _available(self) -> int:
        """Blocks that there are pages for in every group."""
        return min(pool.available for pool in self.pools)

    def _take_blocks(self, flight: Flight, wanted: int) -> None:
        for _ in range(min(wanted, self._available)):
            self._take_block(flight)

    def _take_block(self, flight: Flight) -> None:
        block = len(flight.pages[0])
        self._widen(block + 1)
        for number, pool in enumerate(self.pools):
            while not pool.free and self.prefixes.let_go():
                pass
            page = pool.take()
            flight.pages[number].append(page)
            self.tables[number][_seat_of(flight), block] = page

    def _widen(self, width: int) -> None:
        if width > self.tables[0].shape[1]:
            more = max(width - self.tables[0].shape[1], self.tables[0].shape[1])
            self.tables = [np.pad(table, ((0, 0), (0, more))) for table in self.tables]

    def _remember(self, flight: Flight, position: int) -> None:
        """The whole pages before `position` can be used by rows that begin alike."""
        last = min(position, flight.prompt_tokens) // self.page_tokens
        for block in range(flight.prefix_blocks, last):
            pages = tuple(pages[block] for pages in flight.pages)
            start = block * self.page_tokens
            flight.prefix = self.prefixes.add(flight.prefix, flight.tokens, start, pages)
        flight.prefix_blocks = max(flight.prefix_blocks, last)

    def _pass(self, flight: Flight, number: int) -> None:
        """Lets go of a row's pages that its next token does not see any more."""
        first = self.groups[number].first_block(flight.computed, self.page_tokens)
        for page in flight.pages[number][flight.passed[number] : first]:
            self.pools[number].release(page)
        flight.passed[number] = max(flight.passed[number], first)


def _seat_of(flight: Flight) -> int:
    if flight.seat is None:
        raise ValueError("the row does not run")
    return flight.seat


def still_expected(flight: Flight) -> int:
    """How long an answer is thought to be, now that it is as long as it is."""
    request = flight.row.request
    return expected_tokens(request.output, len(flight.row.tokens), request.max_tokens)
