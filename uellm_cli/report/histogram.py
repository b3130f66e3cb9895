"""Lengths over bins of powers of two: counts, and bars of them that any terminal can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions
from rich.text import Text

from uellm_cli.types import QUANTILE_LEVELS

# Wider bars say no more.
MAX_WIDTH = 80
FULL_BLOCK, PARTS_OF_BLOCK = "█", "▏▎▍▌▋▊▉"
ASCII_BLOCK = "#"


@dataclass(frozen=True, slots=True)
class LengthBin:
    """How many requests are expected to be answered in `low` to `high` tokens."""

    low: int
    high: int
    requests: float


def length_bins(quantiles: NDArray[np.float64]) -> tuple[LengthBin, ...]:
    """Expected counts of predicted lengths [requests, QUANTILE_LEVELS], of at least 1 token each.

    Each request counts with the share of its distribution that lies in a bin: it runs straight
    between quantiles, and what is beyond the outer ones lies at them (`LengthEstimate.at`). Bins
    are 1, 2-3, 4-7 and so on, from the first to the last that has anything in it.
    """
    if not len(quantiles):
        return ()
    # Lengths are whole numbers, and bins part half-way between them.
    ends = np.floor([quantiles[:, 0].min() + 0.5, quantiles[:, -1].max() + 0.5])
    first, last = np.log2(ends).astype(int).tolist()
    below = [_expected_below(quantiles, 2.0**power - 0.5) for power in range(first, last + 2)]
    return tuple(
        LengthBin(2**power, 2 ** (power + 1) - 1, float(upto - before))
        for power, before, upto in zip(range(first, last + 1), below, below[1:], strict=False)
    )


def _expected_below(quantiles: NDArray[np.float64], edge: float) -> float:
    """How many requests are expected to be answered in less than `edge` tokens."""
    reached = edge > quantiles
    expected = QUANTILE_LEVELS[0] * reached[:, 0].sum()
    expected += (1 - QUANTILE_LEVELS[-1]) * reached[:, -1].sum()
    widths = np.diff(quantiles, axis=1)
    passed = edge - quantiles[:, :-1]
    shares = np.divide(passed, widths, out=reached[:, :-1].astype(np.float64), where=widths > 0)
    return float(expected + np.clip(shares, 0, 1).sum(axis=0) @ np.diff(QUANTILE_LEVELS))


@dataclass(frozen=True, slots=True)
class LengthBars:
    """A line for each bin: its lengths, a bar, and the requests expected in it."""

    bins: Sequence[LengthBin]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        labels = [f"{b.low:,}" if b.low == b.high else f"{b.low:,}-{b.high:,}" for b in self.bins]
        figures = [_count(b.requests) for b in self.bins]
        label_width, figure_width = (max(map(len, t), default=0) for t in (labels, figures))
        width = min(options.max_width, MAX_WIDTH)
        room = max(width - label_width - figure_width - 4, 1)
        most = max((b.requests for b in self.bins), default=0.0)
        has_blocks = not options.ascii_only and not console.is_dumb_terminal
        for label, figure, each in zip(labels, figures, self.bins, strict=True):
            bar = _bar(each.requests / most if most else 0.0, room, has_blocks)
            yield Text.assemble(
                f"  {label:>{label_width}} ",
                (f"{bar:<{room}}", "cyan"),
                f" {figure:>{figure_width}}",
                no_wrap=True,
                overflow="crop",
            )


def _bar(share: float, room: int, has_blocks: bool) -> str:
    """A bar of `share` of the room; what is more than nothing is never shown as nothing."""
    if share <= 0:
        return ""
    if not has_blocks:
        return ASCII_BLOCK * max(round(share * room), 1)
    whole, eighths = divmod(max(round(share * room * 8), 1), 8)
    return FULL_BLOCK * whole + (PARTS_OF_BLOCK[eighths - 1] if eighths else "")


def _count(requests: float) -> str:
    if 0 < requests < 1:
        return "< 1"
    return f"{requests:,.0f}"
