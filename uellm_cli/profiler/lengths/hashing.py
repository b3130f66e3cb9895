"""Hashed n-grams of words and of bytes, for a thousand texts at a time.

A text is a run of bytes in one long array, so that every n-gram of every text is hashed by a few
passes over it: building a Python string for each is fifty times as slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 14
BYTE_BITS = 15
# Places of words and their pairs, then of runs of bytes.
BUCKETS = (1 << WORD_BITS) + (1 << BYTE_BITS)
BYTE_GRAMS = (3, 4, 5)
# Places of metadata's keys with their values.
TOLD_BITS = 12
TOLD_BUCKETS = 1 << TOLD_BITS

_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)
_SPACE = ord(" ")


def _folded() -> NDArray[np.uint8]:
    """What each byte is taken for: letters small, digits all alike, the rest of ASCII a blank."""
    table = np.arange(256, dtype=np.uint8)
    for byte in range(128):
        char = chr(byte)
        if char.isdigit():
            table[byte] = ord("0")
        elif char.isalpha():
            table[byte] = ord(char.lower())
        elif char not in '?$%+=<>{}"':
            table[byte] = _SPACE
    return table


_FOLDED = _folded()


@dataclass(frozen=True, slots=True)
class Grams:
    """`buckets` of all n-grams, those of text i from `starts[i]` to `starts[i + 1]`.

    Every text has at least one.
    """

    buckets: NDArray[np.int64]
    starts: NDArray[np.int64]

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[texts]: the weights of a text's n-grams, summed, over the root of their number."""
        sums = np.add.reduceat(weights[self.buckets], self.starts[:-1])
        return sums / np.sqrt(np.diff(self.starts))


def hashed(texts: Sequence[str]) -> Grams:
    """The n-grams of at least one text: its words, pairs of words, and 3 to 5 bytes in a row."""
    encoded = [b" " + text.encode("utf-8", "replace") + b" " for text in texts]
    data = _FOLDED[np.frombuffer(b"".join(encoded), dtype=np.uint8)]
    ends = np.cumsum([len(text) for text in encoded])
    text_of = np.repeat(np.arange(len(texts)), np.diff(ends, prepend=0))
    # Runs of blanks are one.
    kept = np.ones(len(data), dtype=bool)
    kept[1:] = (data[1:] != _SPACE) | (data[:-1] != _SPACE) | (text_of[1:] != text_of[:-1])
    data, text_of = data[kept], text_of[kept]

    parts = [*_word_grams(data, text_of), *_byte_grams(data, text_of)]
    buckets = np.concatenate([part for part, _ in parts])
    owners = np.concatenate([owner for _, owner in parts])
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=len(texts))
    return Grams(buckets[order], np.concatenate([[0], np.cumsum(counts)]))


def hashed_metadata(metadata: Sequence[Mapping[str, object]]) -> Grams:
    """What requests say of themselves, each key with its value; one that says nothing has one, too.

    A task, a template or a customer tells lengths apart that no prompt does.
    """
    said = [[f"{key}={value}" for key, value in row.items()] or [""] for row in metadata]
    pairs = [pair.encode("utf-8", "replace") for row in said for pair in row]
    buckets = np.array([crc32(pair) % TOLD_BUCKETS for pair in pairs], dtype=np.int64)
    return Grams(buckets, np.cumsum([0, *map(len, said)]))


Part = tuple[NDArray[np.int64], NDArray[np.int64]]


def _word_grams(data: NDArray[np.uint8], text_of: NDArray[np.int64]) -> list[Part]:
    """Words and pairs of words, and whose they are; a text without a word has an empty one."""
    is_blank = data == _SPACE
    begins = ~is_blank & np.concatenate([[True], is_blank[:-1]])
    # The first blank of a text stands for an empty word before its first.
    begins |= np.concatenate([[True], text_of[1:] != text_of[:-1]])
    starts = np.flatnonzero(begins)
    place = np.arange(len(data)) - np.repeat(starts, np.diff(starts, append=len(data)))
    values = (data.astype(np.uint64) + np.uint64(1)) * _powers(int(place.max()) + 1)[place]
    values[is_blank] = 0
    words = _mixed(np.add.reduceat(values, starts))
    owner = text_of[starts]
    paired = owner[1:] == owner[:-1]
    pairs = _mixed((words[:-1] * _PAIR + words[1:])[paired])
    return [(_bucket(words, WORD_BITS), owner), (_bucket(pairs, WORD_BITS), owner[1:][paired])]


def _byte_grams(data: NDArray[np.uint8], text_of: NDArray[np.int64]) -> list[Part]:
    parts = []
    rolling = data.astype(np.uint64)
    for size in range(2, max(BYTE_GRAMS) + 1):
        if len(data) < size:
            break
        rolling = rolling[:-1] * _PRIME + data[size - 1 :]
        if size in BYTE_GRAMS:
            whole = text_of[size - 1 :] == text_of[: len(rolling)]
            grams = _mixed(rolling[whole] + np.uint64(size))
            parts.append((_bucket(grams, BYTE_BITS) + (1 << WORD_BITS), text_of[size - 1 :][whole]))
    return parts


def _powers(count: int) -> NDArray[np.uint64]:
    """Powers of the prime, modulo 2^64."""
    powers = np.full(count, _PRIME, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the value in the upper bits of the result."""
    mixed = values * _MIX
    return (mixed ^ (mixed >> np.uint64(29))) * _MIX


def _bucket(values: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    return (values >> np.uint64(64 - bits)).astype(np.int64)
