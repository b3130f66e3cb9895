"""Pages of KV cache: which are free, who holds the others, and which prefixes they hold."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


class PagePool:
    """The pages of one group of layers, by number from 0.

    A page is held by rows, by the prefix cache, or by both; else it is free.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._rows = [0] * count
        self._is_cached = bytearray(count)
        self.held = 0
        self.idle = 0

    @property
    def free(self) -> int:
        """Pages that nothing holds."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that are free, or would be if the prefix cache let go of them (`idle`)."""
        return len(self._free) + self.idle

    def take(self) -> int:
        """A free page, for a row; IndexError when there is none."""
        page = self._free.pop()
        self._rows[page] = 1
        self.held += 1
        return page

    def share(self, page: int) -> None:
        """Another row on a page that the prefix cache holds."""
        if not self._rows[page]:
            self.held += 1
            self.idle -= 1
        self._rows[page] += 1

    def release(self, page: int) -> None:
        """One row less on a page."""
        self._rows[page] -= 1
        if not self._rows[page]:
            self.held -= 1
            if self._is_cached[page]:
                self.idle += 1
            else:
                self._free.append(page)

    def is_held(self, page: int) -> bool:
        """Whether any row holds it."""
        return self._rows[page] > 0

    def is_held_once(self, page: int) -> bool:
        """Whether one row and nothing else holds it."""
        return self._rows[page] == 1 and not self._is_cached[page]

    def cache(self, page: int) -> None:
        """The prefix cache takes hold of a page that a row holds."""
        self._is_cached[page] = True

    def uncache(self, page: int) -> None:
        self._is_cached[page] = False
        if not self._rows[page]:
            self.idle -= 1
            self._free.append(page)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A whole page of tokens after all those before it; `pages` holds its KV, one of each group."""

    number: int
    pages: tuple[int, ...]


class PrefixCache:
    """Prefixes whose KV is in memory, found by their tokens, page after page.

    Equality is of the tokens themselves: a page's key is the number of the prefix before it and its
    own tokens, so two texts share pages exactly as far as they agree.
    """

    def __init__(self, pools: Sequence[PagePool], page_tokens: int) -> None:
        self._pools = pools
        self._page_tokens = page_tokens
        # From the least to the most recently used; of a prefix that is looked up, the pages that
        # most texts share come last.
        self._prefixes: OrderedDict[tuple[int, bytes], Prefix] = OrderedDict()
        self._made = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def longest(self, tokens: Sequence[int]) -> list[Prefix]:
        """The prefixes of `tokens` that are known, from the first page on."""
        found: list[tuple[int, bytes]] = []
        before = 0
        for start in range(0, len(tokens) - self._page_tokens + 1, self._page_tokens):
            key = self._key(before, tokens, start)
            prefix = self._prefixes.get(key)
            if prefix is None:
                break
            found.append(key)
            before = prefix.number
        for key in reversed(found):
            self._prefixes.move_to_end(key)
        return [self._prefixes[key] for key in found]

    def add(
        self, before: Prefix | None, tokens: Sequence[int], start: int, pages: tuple[int, ...]
    ) -> Prefix:
        """Remembers that `pages` hold the page of `tokens` at `start`, which follows `before`.

        The prefix that is known already, if it is.
        """
        key = self._key(before.number if before else 0, tokens, start)
        known = self._prefixes.get(key)
        if known is not None:
            return known
        self._made += 1
        prefix = Prefix(self._made, pages)
        self._prefixes[key] = prefix
        for pool, page in zip(self._pools, pages, strict=True):
            pool.cache(page)
        return prefix

    def let_go(self) -> bool:
        """Forgets the prefix that was used least recently; False when there is none."""
        if not self._prefixes:
            return False
        _, prefix = self._prefixes.popitem(last=False)
        self._uncache(prefix)
        return True

    def clear(self) -> None:
        """Forgets all: what the pages hold is not to be trusted any more."""
        while self.let_go():
            pass

    def _uncache(self, prefix: Prefix) -> None:
        for pool, page in zip(self._pools, prefix.pages, strict=True):
            pool.uncache(page)

    def _key(self, before: int, tokens: Sequence[int], start: int) -> tuple[int, bytes]:
        return before, array("q", tokens[start : start + self._page_tokens]).tobytes()
