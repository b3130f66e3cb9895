"""In flight, event by event: rows enter by the engine's own rule, grow, and make room.

The decisions are `admission`'s, which the real engine asks too. Between two events nothing is
decided: the steps there pass at once. Memory is counted in bytes of tokens, not in pages.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from uellm_cli.admission import Demand, admits, expected_tokens
from uellm_cli.columns import Arrangement, Ints, RequestColumns
from uellm_cli.timing.outcomes import Outcomes, never
from uellm_cli.types import Conditions, LengthEstimate

# Who is refused may be let in before anybody ends, since those that run come nearer to their ends:
# asked again after so many steps at the latest.
ASKED_AGAIN = 16


@dataclass(slots=True, eq=False)
class SimulatedRow:
    """One answer in the making: what is known of it, and its moments once it has them.

    `order` is its place in the schedule, `request` whose it is.
    """

    order: int
    request: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    token_bytes: float
    output: LengthEstimate | None
    arrival_s: float = 0.0
    made: int = 0
    preemptions: int = 0
    prefill_s: float = math.inf
    first_token_s: float = math.inf
    finished_s: float = math.inf

    def expected(self) -> int:
        return expected_tokens(self.output, self.made, self.max_tokens)


class Waiting:
    """Rows that have arrived and run nowhere, by their place in the schedule; shared by replicas.

    `later` are those that have not arrived yet, the next one first.
    """

    def __init__(self, rows: Sequence[SimulatedRow] = ()) -> None:
        self.later = deque(sorted(rows, key=lambda row: (row.arrival_s, row.order)))
        self._here: deque[SimulatedRow] = deque()

    def __len__(self) -> int:
        return len(self._here)

    def arrive(self, now_s: float) -> None:
        while self.later and self.later[0].arrival_s <= now_s:
            self.add(self.later.popleft())

    def add(self, row: SimulatedRow) -> None:
        if not self._here or row.order > self._here[-1].order:
            self._here.append(row)
        else:
            insort(self._here, row, key=lambda other: other.order)

    def first(self) -> SimulatedRow | None:
        return self._here[0] if self._here else None

    def take(self) -> SimulatedRow:
        return self._here.popleft()


class Replica:
    """One engine: seats [rows] as arrays, and a clock that its steps move."""

    def __init__(self, conditions: Conditions, waiting: Waiting) -> None:
        self.now_s = conditions.start_s
        self.waiting = waiting
        self._budget = budget = conditions.budget
        self._step = conditions.step
        self._step_tokens = conditions.most_step_tokens
        self._rows: list[SimulatedRow] = []
        seats = budget.max_sequences
        # Of each seat: tokens computed, tokens known, those of its prompt, those that its answer
        # lacks, those it is expected to hold in the end, and bytes a token.
        self._computed = np.zeros(seats, dtype=np.int64)
        self._known = np.zeros(seats, dtype=np.int64)
        self._prompt = np.zeros(seats, dtype=np.int64)
        self._left = np.zeros(seats, dtype=np.int64)
        self._end = np.zeros(seats, dtype=np.int64)
        self._price = np.zeros(seats)
        self._columns = (
            self._computed,
            self._known,
            self._prompt,
            self._left,
            self._end,
            self._price,
        )

    @property
    def is_idle(self) -> bool:
        return not self._rows

    def advance(self) -> list[SimulatedRow]:
        """Lets one step pass, or all up to the next event; the rows that ended in it."""
        self.waiting.arrive(self.now_s)
        seated = len(self._rows)
        chunks = self._chunks()
        if not self._rows:
            return []
        is_alike = len(self._rows) <= seated and bool((self._todo() == 1).all())
        steps = self._steps_alike() if is_alike else 1
        self._pass(chunks, steps)
        return self._drawn(steps)

    def _todo(self) -> Ints:
        seats = len(self._rows)
        return self._known[:seats] - self._computed[:seats]

    # --- Who computes what -----------------------------------------------------------------------

    def _chunks(self) -> Ints:
        """Tokens [seats] that each row computes in the next step; rows enter and make room here."""
        seated = len(self._rows)
        chunks = self._wanted()
        # Alone a row goes on: whether it fits at all is not a matter of order.
        while len(self._rows) > 1 and self._held(chunks) > self._budget.kv_bytes:
            self._preempt()
            chunks = self._wanted()
        if len(self._rows) < seated:  # somebody had to make room: nobody enters
            return chunks
        left = self._step_tokens - int(chunks.sum())
        while left > 0 and self._lets_in(chunks):
            row = self.waiting.take()
            self._seat(row)
            chunk = min(row.prompt_tokens + row.made, left)
            chunks = np.append(chunks, chunk)
            left -= chunk
        return chunks

    def _wanted(self) -> Ints:
        todo = self._todo()
        chunks = np.where(todo == 1, 1, 0)
        left = max(self._step_tokens - int(chunks.sum()), 1)
        for seat in sorted(np.flatnonzero(todo > 1), key=lambda seat: self._rows[seat].order):
            chunks[seat] = min(int(todo[seat]), left)
            left -= int(chunks[seat])
        return chunks

    def _held(self, chunks: Ints) -> float:
        seats = len(self._rows)
        return float(self._price[:seats] @ (self._computed[:seats] + chunks))

    def _lets_in(self, chunks: Ints) -> bool:
        row, seats = self.waiting.first(), len(self._rows)
        if row is None or seats >= self._budget.max_sequences:
            return False
        if not seats:
            return True
        held = self._computed[:seats] + chunks
        growth = np.maximum(self._end[:seats] - held, 0)
        demand = Demand(
            np.asarray(np.ceil(held * self._price[:seats]), dtype=np.int64),
            np.asarray(np.ceil(growth * self._price[:seats]), dtype=np.int64),
        )
        entering = row.prompt_tokens + row.made
        grows = max(_end_of(row) - entering, 0)
        return admits(
            demand,
            math.ceil(entering * row.token_bytes),
            math.ceil(grows * row.token_bytes),
            self._budget.kv_bytes,
        )

    def _steps_alike(self) -> int:
        """Steps of which the next one is the first, and in which nothing is decided."""
        seats = len(self._rows)
        steps = int(self._left[:seats].min())
        growing = float(self._price[:seats].sum())
        if growing > 0:
            room = self._budget.kv_bytes - float(self._price[:seats] @ self._computed[:seats])
            steps = min(steps, int(room / growing))
        if len(self.waiting) and seats < self._budget.max_sequences:
            steps = min(steps, ASKED_AGAIN)
        if self.waiting.later and seats < self._budget.max_sequences:
            until_s = self.waiting.later[0].arrival_s - self.now_s
            steps = min(steps, math.ceil(until_s / self._decode_s(1)) or 1)
        return max(steps, 1)

    # --- What that takes -------------------------------------------------------------------------

    def _decode_s(self, steps: int) -> float:
        """Seconds of `steps` steps in which every row decodes."""
        seats, step = len(self._rows), self._step
        cached = steps * int(self._known[:seats].sum()) + seats * steps * (steps - 1) / 2
        return (
            steps * (step.fixed_s + step.per_sequence_s * seats) + step.per_cached_token_s * cached
        )

    def _pass(self, chunks: Ints, steps: int) -> None:
        seats, step = len(self._rows), self._step
        # A prompt of one token is a prompt all the same.
        decoding = (self._todo() == 1) & (self._known[:seats] > self._prompt[:seats])
        if steps > 1:
            self.now_s += self._decode_s(steps)
            self._computed[:seats] += steps
            return
        computing = int(np.count_nonzero(chunks))
        prefilled = int(chunks[~decoding].sum())
        # A part of a prompt reads what was computed of it before, as a decode step does.
        read = int(self._known[:seats][decoding].sum()) + int(
            self._computed[:seats][~decoding & (chunks > 0)].sum()
        )
        self.now_s += step.step_s(prefilled, computing, read)
        self._computed[:seats] += chunks

    def _drawn(self, steps: int) -> list[SimulatedRow]:
        """Gives every row that is computed so far its tokens; the rows that have all of theirs."""
        seats = len(self._rows)
        drawing = np.flatnonzero(self._computed[:seats] == self._known[:seats] + steps - 1)
        self._known[drawing] += steps
        self._left[drawing] -= steps
        for seat in drawing.tolist():
            row = self._rows[seat]
            row.made += steps
            if row.made == steps:
                row.first_token_s = self.now_s
            if row.prompt_tokens + row.made > self._end[seat]:
                self._end[seat] = _end_of(row)
        ended = [seat for seat in drawing.tolist() if self._left[seat] <= 0]
        rows = [self._rows[seat] for seat in ended]
        for row in rows:
            row.finished_s = self.now_s
        for seat in reversed(ended):
            self._unseat(seat)
        return rows

    # --- Seats -----------------------------------------------------------------------------------

    def _seat(self, row: SimulatedRow) -> None:
        seat = len(self._rows)
        row.prefill_s = min(row.prefill_s, self.now_s)
        self._rows.append(row)
        self._computed[seat] = 0
        self._prompt[seat] = row.prompt_tokens
        self._known[seat] = row.prompt_tokens + row.made
        self._left[seat] = row.output_tokens - row.made
        self._end[seat] = _end_of(row)
        self._price[seat] = row.token_bytes

    def _preempt(self) -> None:
        """The last in the schedule's order makes room; it is computed again later."""
        seat = max(range(len(self._rows)), key=lambda seat: self._rows[seat].order)
        row = self._rows[seat]
        row.preemptions += 1
        self._unseat(seat)
        self.waiting.add(row)

    def _unseat(self, seat: int) -> None:
        last = len(self._rows) - 1
        moved = self._rows.pop()
        if seat != last:
            self._rows[seat] = moved
            for column in self._columns:
                column[seat] = column[last]


def _end_of(row: SimulatedRow) -> int:
    """Tokens whose keys and values it is expected to hold in the end."""
    return row.prompt_tokens + min(row.expected(), row.max_tokens) - 1


def simulate_in_flight(
    columns: RequestColumns, arranged: Arrangement, output_tokens: Ints, conditions: Conditions
) -> Outcomes:
    """When each request [requests] begins and ends, with arrivals and memory as they are."""
    rows = _rows_of(columns, arranged.order, output_tokens)
    outcomes, preemptions = never(len(columns)), 0
    for row in _run(rows, conditions):
        at = row.request
        outcomes.prefill_s[at] = min(outcomes.prefill_s[at], row.prefill_s)
        outcomes.first_token_s[at] = min(outcomes.first_token_s[at], row.first_token_s)
        before_s = float(outcomes.finished_s[at])
        outcomes.finished_s[at] = max(row.finished_s, before_s if math.isfinite(before_s) else 0.0)
        preemptions += row.preemptions
    return replace(outcomes, preemptions=preemptions)


def _rows_of(columns: RequestColumns, order: Ints, output_tokens: Ints) -> list[SimulatedRow]:
    """One row for each answer that is made, in the order's turn."""
    repeated = np.repeat(order, columns.rounds[order]).tolist()
    return [
        SimulatedRow(
            order=place,
            request=request,
            prompt_tokens=int(columns.prompt_tokens[request]),
            output_tokens=int(output_tokens[request]),
            max_tokens=int(columns.max_tokens[request]),
            token_bytes=float(columns.kv_token_bytes[request]),
            output=columns.estimate(request),
            arrival_s=float(columns.arrival_s[request]),
        )
        for place, request in enumerate(repeated)
    ]


def _run(rows: Sequence[SimulatedRow], conditions: Conditions) -> list[SimulatedRow]:
    waiting = Waiting(rows)
    replicas = [Replica(conditions, waiting) for _ in range(conditions.replicas)]
    ended: list[SimulatedRow] = []
    while len(ended) < len(rows):
        # The one that is behind goes on: the others' decisions lie in its future.
        replica = min(replicas, key=lambda each: each.now_s)
        ended += replica.advance()
        if replica.is_idle and not len(waiting):
            replica.now_s = _next_event_s(replica, replicas, waiting)
    return ended


def _next_event_s(idle: Replica, replicas: Sequence[Replica], waiting: Waiting) -> float:
    """When an idle replica may have work: at the next arrival, or when a busy one makes room."""
    busy_s = [each.now_s for each in replicas if not each.is_idle]
    arrivals_s = [waiting.later[0].arrival_s] if waiting.later else []
    soonest = min(busy_s + arrivals_s, default=idle.now_s)
    return math.nextafter(max(soonest, idle.now_s), math.inf)
