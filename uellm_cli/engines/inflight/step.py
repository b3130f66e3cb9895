"""One forward pass: the tokens of all rows in a line, and where their keys and values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from uellm_cli.engines.inflight.cache import blocks
from uellm_cli.engines.inflight.flights import Chunk, Flights
from uellm_cli.engines.inflight.uploads import upload


@dataclass(frozen=True, slots=True)
class GroupStep:
    """What a step is for one group of layers.

    `tables` [rows, blocks] are the pages of each row's blocks; those of blocks that the group's
    window is past are any page. `slots` [tokens] say where each token's keys and values go: its
    page times the tokens of a page, plus its place in the page.
    """

    tables: NDArray[np.int32]
    slots: NDArray[np.int64]


@dataclass(slots=True)
class Step:
    """Rows, one behind the other: first those that compute one token, `decode_rows` of them.

    `token_ids` and `positions` are [1, tokens]; row r has the tokens from `starts[r]` to
    `starts[r + 1]`, which are the last of its `lengths[r]` tokens. `drawing` are the rows that
    draw, and `drawn_at` the places of their last tokens, which the drawn ones follow. `prepared` is
    for what an attention backend computes once a step.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    drawing: NDArray[np.int64]
    drawn_at: torch.Tensor
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    decode_rows: int
    groups: tuple[GroupStep, ...]
    prepared: dict[object, object] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.lengths)


def unread(place: int) -> int:
    """What stands for a token that is not known yet: the one at `place` of those drawn last."""
    return -1 - place


def build_step(
    chunks: Sequence[Chunk],
    flights: Flights,
    device: torch.device,
    drawn: torch.Tensor | None = None,
) -> Step:
    """The forward pass that computes `chunks`, of which those of one token come first.

    `drawn` are the tokens that `unread` ones stand for, on the device.
    """
    size = flights.page_tokens
    decode_rows = next((i for i, chunk in enumerate(chunks) if chunk.tokens != 1), len(chunks))
    running = [chunk.flight for chunk in chunks]
    ids = [flight.tokens[flight.computed] for flight in running[:decode_rows]]
    for chunk in chunks[decode_rows:]:
        first = chunk.flight.computed
        ids += chunk.flight.tokens[first : first + chunk.tokens]
    done = np.array([flight.computed for flight in running])
    rows = np.arange(len(chunks))
    # Each token's row, and its position: how many of its row come before it.
    if len(ids) == len(chunks):
        starts, lengths, positions = np.arange(len(chunks) + 1), done + 1, done
    else:
        counts = np.array([chunk.tokens for chunk in chunks])
        starts, lengths = np.concatenate(([0], np.cumsum(counts))), done + counts
        rows = np.repeat(rows, counts)
        positions = np.arange(len(ids)) - starts[rows] + done[rows]
    seats = np.array([flight.seat for flight in running], dtype=np.int64)
    width = blocks(int(lengths.max()), size)
    page, place = np.divmod(positions, size)
    groups = []
    for table in flights.tables:
        tables = table[seats, :width]
        groups.append(GroupStep(tables, tables[rows, page].astype(np.int64) * size + place))
    drawing = np.array([i for i, chunk in enumerate(chunks) if chunk.draws], dtype=np.int64)
    drawn_at = starts[drawing + 1] - 1
    told = (np.array([ids], dtype=np.int64), positions[None], drawn_at)
    token_ids, positions_there, drawn_at_there = upload(told, device)
    if drawn is not None:
        read = drawn.to(device, non_blocking=True)[(-1 - token_ids).clamp_(min=0)]
        token_ids = torch.where(token_ids < 0, read, token_ids)
    return Step(
        token_ids=token_ids,
        positions=positions_there,
        drawing=drawing,
        drawn_at=drawn_at_there,
        starts=starts.astype(np.int32),
        lengths=lengths.astype(np.int32),
        decode_rows=decode_rows,
        groups=tuple(groups),
    )
