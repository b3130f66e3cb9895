"""Rows in flight without a model: a page remembers what was written to it, and is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uellm_cli.engines.inflight.cache import LayerGroup, blocks, layer_groups, page_counts
from uellm_cli.engines.inflight.flights import Chunk, Flight, Flights, Limits
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.pages import PagePool, PrefixCache
from uellm_cli.engines.inflight.step import build_step
from uellm_cli.engines.jobs import Job
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.types import EngineRequest, SamplingParams

GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0)


def layer(index: int, window: int | None) -> AttentionLayer:
    """One KV head of one number: eight bytes a token."""
    return AttentionLayer(
        index, 1, 1, 1, 1, 1.0, window, None, None, torch.float32, torch.device("cpu")
    )


def flight(order: int, prompt: Sequence[int], tokens: int, expected: int) -> Flight:
    request = EngineRequest(str(order), tuple(prompt), tokens, SamplingParams())
    row = Row(request, GREEDY, seed=0)
    return Flight(order, 0, Job(0, request, GREEDY), row, [*prompt], expected)


@dataclass
class FakeModel:
    """What each place of each page holds: the text up to the token that was written there."""

    flights: Flights
    held: dict[tuple[int, int, int], tuple[int, ...]] = field(default_factory=dict)

    def compute(self, chunks: Sequence[Chunk]) -> None:
        """Writes all chunks, then looks whether each row finds its own text where it is to be."""
        step = build_step(chunks, self.flights, torch.device("cpu"))
        assert step.token_ids.tolist()[0] == [
            token
            for chunk in chunks
            for token in chunk.flight.tokens[chunk.flight.computed :][: chunk.tokens]
        ]
        size = self.flights.page_tokens
        for number, group in enumerate(step.groups):
            texts = [
                tuple(chunk.flight.tokens[: chunk.flight.computed + i + 1])
                for chunk in chunks
                for i in range(chunk.tokens)
            ]
            for slot, text in zip(group.slots.tolist(), texts, strict=True):
                self.held[number, slot // size, slot % size] = text
            for row, chunk in enumerate(chunks):
                self._look(number, group.tables[row].tolist(), chunk)

    def _look(self, number: int, table: list[int], chunk: Chunk) -> None:
        size, tokens = self.flights.page_tokens, chunk.flight.tokens
        window = self.flights.groups[number].window
        first = chunk.flight.computed
        seen_from = 0 if window is None else max(0, first - window + 1)
        for position in range(seen_from, first + chunk.tokens):
            where = (number, table[position // size], position % size)
            assert self.held[where] == tuple(tokens[: position + 1])


def serve(flights: Flights, rows: Sequence[Flight], steps: int = 10_000) -> int:
    """Runs all rows to their end, checking all that must hold in every step; the steps it took."""
    model = FakeModel(flights)
    for row in rows:
        flights.add(row)
    for taken in range(steps):
        if not flights.running and not flights.waiting:
            return taken
        first = min([*flights.running, *flights.waiting], key=lambda f: f.order)
        chunks = flights.next_chunks()
        check(flights, chunks)
        assert any(chunk.flight is first for chunk in chunks), "the first of all gets on"
        model.compute(chunks)
        ended = []
        drawing = [chunk.flight for chunk in chunks if chunk.draws]
        flights.advance(chunks)
        for row in drawing:
            row.row.tokens.append(1000 + len(row.tokens))
            row.tokens.append(row.row.tokens[-1])
            if len(row.row.tokens) == row.row.request.max_tokens:
                ended.append(row)
        for row in ended:
            flights.remove(row)
    raise AssertionError("it never ends")


def check(flights: Flights, chunks: Sequence[Chunk]) -> None:
    limits = flights.limits
    assert len(flights.running) <= limits.rows
    assert len({id(chunk.flight) for chunk in chunks}) == len(chunks)
    assert [f.seat for f in flights.running] == list(range(len(flights.running)))
    assert [f.order for f in flights.waiting] == sorted(f.order for f in flights.waiting)
    decoding = sum(chunk.tokens == 1 for chunk in chunks)
    assert sum(chunk.tokens for chunk in chunks) <= max(limits.step_tokens, decoding + 1)
    for number, pool in enumerate(flights.pools):
        assert pool.held + pool.idle + pool.free == pool.count
        pages = {page for f in flights.running for page in f.pages[number][f.passed[number] :]}
        assert len(pages) == pool.held
    for chunk in chunks:
        assert chunk.flight.seat is not None
        room = len(chunk.flight.pages[0]) * flights.page_tokens
        assert chunk.flight.computed + chunk.tokens <= room


SHARED = list(range(1, 40))
PROMPTS = st.builds(
    lambda shared, own, seed: SHARED[:shared] + [100 * seed + i for i in range(own)],
    st.integers(0, 39),
    st.integers(1, 20),
    st.integers(1, 3),
)
ROWS = st.lists(st.tuples(PROMPTS, st.integers(1, 25), st.integers(1, 30)), min_size=1, max_size=10)


@given(
    rows=ROWS,
    order=st.randoms(use_true_random=False),
    page_tokens=st.sampled_from([1, 3, 8, 16]),
    windows=st.sampled_from([(None,), (5,), (None, 7), (None, 4, 20)]),
    spare_pages=st.sampled_from([0, 1, 4, 50]),
    seats=st.integers(1, 6),
    step_tokens=st.integers(1, 50),
    share=st.booleans(),
)
def test_every_row_ends_and_finds_its_own_text_whatever_memory_there_is(
    rows: list[tuple[list[int], int, int]],
    order: st.DataObject,
    page_tokens: int,
    windows: tuple[int | None, ...],
    spare_pages: int,
    seats: int,
    step_tokens: int,
    share: bool,
) -> None:
    groups = layer_groups([layer(i, window) for i, window in enumerate(windows)])
    longest = max(len(prompt) + tokens for prompt, tokens, _ in rows)
    pools = [PagePool(blocks(longest, page_tokens) + spare_pages) for _ in groups]
    flights = Flights(groups, pools, page_tokens, Limits(seats, step_tokens), share)
    work = [flight(i, *row) for i, row in enumerate(rows)]
    order.shuffle(work)  # type: ignore[attr-defined]
    serve(flights, work)
    for pool in pools:
        assert pool.held == 0
        assert pool.free + pool.idle == pool.count


def test_rows_that_begin_alike_are_computed_once_even_in_one_step() -> None:
    groups = layer_groups([layer(0, None)])
    flights = Flights(groups, [PagePool(100)], 4, Limits(8, 100))
    for i in range(4):
        flights.add(flight(i, [*SHARED[:10], 50 + i], 3, 3))
    chunks = flights.next_chunks()
    # Two whole pages of the first are the others', too: they compute 3 of their 11 tokens.
    assert [chunk.tokens for chunk in chunks] == [11, 3, 3, 3]
    assert flights.pools[0].held == 3 + 1 + 1 + 1


def test_nothing_is_shared_where_that_is_not_wanted() -> None:
    groups = layer_groups([layer(0, None)])
    flights = Flights(groups, [PagePool(100)], 4, Limits(8, 100), share_prefixes=False)
    for i in range(3):
        flights.add(flight(i, SHARED[:10], 3, 3))
    assert [chunk.tokens for chunk in flights.next_chunks()] == [10, 10, 10]


def test_a_row_that_would_crowd_others_out_waits_for_them() -> None:
    # Six pages of four tokens. Two rows of 4 + 8 tokens take three pages each in the end.
    groups = layer_groups([layer(0, None)])
    flights = Flights(groups, [PagePool(6)], 4, Limits(8, 100), share_prefixes=False)
    rows = [flight(i, SHARED[i : i + 4], 9, 9) for i in range(3)]
    serve(flights, rows)
    assert [row.preemptions for row in rows] == [0, 0, 0]


def test_the_last_in_the_order_makes_room_for_the_first() -> None:
    groups = layer_groups([layer(0, None)])
    flights = Flights(groups, [PagePool(6)], 4, Limits(8, 100), share_prefixes=False)
    # All are thought to end at once, and none does.
    rows = [flight(i, SHARED[i : i + 4], 13, 1) for i in range(3)]
    serve(flights, rows)
    assert rows[0].preemptions == 0
    assert rows[2].preemptions > 0


def test_what_a_window_is_past_is_free_for_others() -> None:
    groups = layer_groups([layer(0, 8)])
    pool = PagePool(4)
    flights = Flights(groups, [pool], 4, Limits(1, 8), share_prefixes=False)
    serve(flights, [flight(0, SHARED, 60, 60)])  # 99 tokens in the room of 16


def test_pages_are_dealt_out_within_the_budget() -> None:
    groups = layer_groups([layer(0, None), layer(1, 8), layer(2, 8)])
    assert [group.window for group in groups] == [None, 8]
    # Pages of 4 tokens are 32 bytes in the first group and 64 in the second; 1000 bytes are 10 of
    # each and 40 bytes over. Two rows can use 2·(2 + 1) + 1 = 7 pages of the second, so that the
    # first gets 10 + (1000 - 10·32 - 7·64)/32 = 17.
    assert page_counts(groups, 4, 1000, rows=2, step_tokens=4) == [17, 7]


@given(
    windows=st.lists(st.sampled_from([None, 4, 64]), min_size=1, max_size=5),
    page_tokens=st.integers(1, 40),
    kv_bytes=st.integers(0, 100_000),
    rows=st.integers(1, 50),
)
def test_no_budget_is_ever_exceeded(
    windows: list[int | None], page_tokens: int, kv_bytes: int, rows: int
) -> None:
    groups = layer_groups([layer(i, window) for i, window in enumerate(windows)])
    counts = page_counts(groups, page_tokens, kv_bytes, rows, step_tokens=64)
    taken = sum(
        count * group.bytes_per_token * page_tokens
        for count, group in zip(counts, groups, strict=True)
    )
    assert min(counts) >= 0
    assert taken <= kv_bytes


# --- Prefixes ------------------------------------------------------------------------------------


def cached(pool: PagePool, cache: PrefixCache, tokens: Sequence[int], size: int) -> list[int]:
    """Takes pages for a text's whole pages, lets the cache know them, and lets go of them."""
    pages = [pool.take() for _ in range(len(tokens) // size)]
    before = None
    for i, page in enumerate(pages):
        before = cache.add(before, tokens, i * size, (page,))
    for page in pages:
        pool.release(page)
    return pages


def test_two_texts_share_pages_exactly_as_far_as_they_agree() -> None:
    pool = PagePool(10)
    cache = PrefixCache([pool], 2)
    pages = cached(pool, cache, [1, 2, 3, 4, 5, 6], 2)
    found = [[p.pages[0] for p in cache.longest(text)] for text in ([1, 2, 3, 9], [2, 1], [1])]
    assert found == [pages[:1], [], []]
    # The same page after another beginning is another prefix.
    assert cache.longest([9, 9, 3, 4]) == []


def test_pages_that_only_the_cache_holds_can_be_had_and_the_oldest_go_first() -> None:
    pool = PagePool(4)
    cache = PrefixCache([pool], 2)
    cached(pool, cache, [1, 2, 3, 4], 2)
    cached(pool, cache, [5, 6, 7, 8], 2)
    assert (pool.free, pool.available) == (0, 4)
    cache.longest([1, 2])  # used again
    cache.let_go()
    cache.let_go()
    assert [len(cache.longest(text)) for text in ([1, 2, 3, 4], [5, 6, 7, 8])] == [1, 0]


def test_a_page_that_a_row_holds_stays_when_the_cache_forgets_it() -> None:
    pool = PagePool(2)
    cache = PrefixCache([pool], 1)
    (page, _) = cached(pool, cache, [1, 2], 1)
    pool.share(page)
    cache.clear()
    assert (pool.held, pool.free) == (1, 1)
    assert len(cache) == 0
    pool.release(page)
    assert pool.free == 2


def test_a_pool_without_pages_says_so() -> None:
    with pytest.raises(IndexError):
        PagePool(0).take()


def test_the_group_without_a_window_is_the_first() -> None:
    groups = layer_groups([layer(0, 8), layer(1, None), layer(2, 8)])
    assert [[one.index for one in group.layers] for group in groups] == [[1], [0, 2]]
    assert isinstance(groups[0], LayerGroup)
