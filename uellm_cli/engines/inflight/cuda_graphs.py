"""Steps that only decode, as CUDA graphs: hundreds of launches become one.

A graph is of fixed shapes and addresses. So there is one for each of some numbers of rows; a step
is filled up to the next of them with rows that nobody asked for, whose keys and values go to a page
that nobody owns, and what it is told lies where the graph looks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from uellm_cli.engines.inflight.cache import KvCache
from uellm_cli.engines.inflight.cuda_attention import PagedRows, rows_key
from uellm_cli.engines.inflight.packed import PackedModel
from uellm_cli.engines.inflight.step import GroupStep, Step
from uellm_cli.engines.inflight.uploads import upload_into
from uellm_cli.engines.memory import is_out_of_memory

# Blocks of a row that there is room for at first.
TABLE_WIDTH = 256

# Numbers from the begin of one input to that of the next: kernels prefer even addresses.
_APART = 64

Replay = Callable[[], None]
# Computes what it is given, once or more; what it returns computes it again.
Record = Callable[[Callable[[], None]], Replay]


def bucket(rows: int) -> int:
    """The number of rows that so many are filled up to: in steps of about a sixteenth."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    size = 16 if rows <= 256 else 64
    return -(-rows // size) * size


class GraphedModel:
    """A `PackedModel` whose steps that only decode are recorded once and played back.

    `scratch` is for each group a page that no row ever gets. A model that cannot be recorded, as
    one whose shapes depend on its numbers, computes as before; `note` is told.
    """

    def __init__(
        self,
        packed: PackedModel,
        scratch: Sequence[int],
        device: torch.device,
        record: Record,
        note: Callable[[str], None],
    ) -> None:
        self._packed = packed
        self._scratch = list(scratch)
        self._device = device
        self._record: Record | None = record
        self._note = note
        self._inputs = _Inputs(len(scratch), 0, 0, device)
        self._scores: torch.Tensor | None = None
        self._replays: dict[int, Replay] = {}

    @property
    def cache(self) -> KvCache:
        return self._packed.cache

    def logits(self, step: Step) -> torch.Tensor:
        """See `PackedModel.logits`; they hold until the next step."""
        if self._record is None or step.decode_rows != step.rows:
            return self._packed.logits(step)
        with torch.inference_mode():
            rows = bucket(step.rows)
            self._make_room(rows, step)
            self._inputs.fill(step, rows, self._scratch, self.cache.page_tokens)
            if rows not in self._replays:
                replay = self._recorded(rows, self._record)
                if replay is None:
                    return self._packed.logits(step)
                self._replays[rows] = replay
            self._replays[rows]()
        if self._scores is None:
            raise RuntimeError("a step without scores")
        if len(step.drawn_at) == step.rows:
            return self._scores[: step.rows]
        return self._scores.index_select(0, step.drawn_at)

    def _make_room(self, rows: int, step: Step) -> None:
        """Graphs look for their inputs where these were: they go when the inputs move."""
        width = step.groups[0].tables.shape[1]
        if rows <= self._inputs.rows and width <= self._inputs.width:
            return
        self._replays.clear()
        self._scores = None
        known = self._inputs.rows
        wide = max(TABLE_WIDTH, self._inputs.width)
        while wide < width:
            wide *= 2
        most = known if rows <= known else -(-max(rows, 2 * known) // _APART) * _APART
        self._inputs = _Inputs(len(self._scratch), most, wide, self._device)

    def _recorded(self, rows: int, record: Record) -> Replay | None:
        step = self._inputs.step(rows, self._device)

        def compute() -> None:
            scores = self._packed.logits(step)
            if self._scores is None:
                self._scores = scores.new_empty(self._inputs.rows, scores.shape[1])
            self._scores[:rows].copy_(scores)

        try:
            return record(compute)
        except (RuntimeError, ValueError) as error:
            self._record = None
            self._replays.clear()
            self._scores = None
            why = "memory is short" if is_out_of_memory(error) else str(error).splitlines()[0]
            self._note(f"steps are computed without CUDA graphs, since {why}")
            return None


class _Inputs:
    """What a step is told, at addresses that stay: of up to `rows` rows of up to `width` blocks."""

    def __init__(self, groups: int, rows: int, width: int, device: torch.device) -> None:
        self.rows, self.width = rows, width
        # Of each kind one piece of memory: token ids; positions and each group's slots; lengths and
        # each group's width; and each group's tables.
        self._ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._wide = torch.zeros((1 + groups) * rows, dtype=torch.int64, device=device)
        self._narrow = torch.zeros(rows + groups * _APART, dtype=torch.int32, device=device)
        self._tables = [
            torch.zeros(rows * width, dtype=torch.int32, device=device) for _ in range(groups)
        ]
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._drawn_at = torch.arange(rows, dtype=torch.int64, device=device)

    def fill(self, step: Step, rows: int, scratch: Sequence[int], page_tokens: int) -> None:
        """The step's own rows, and others up to `rows`, each of one token on a page of `scratch`.

        Tokens are copied on the device, where the last ones drawn may still be on their way.
        """
        count = step.rows
        self._ids[:count].copy_(step.token_ids[0])
        wide = np.zeros((1 + len(step.groups), self.rows), dtype=np.int64)
        wide[0, :count] = step.lengths - 1
        narrow = np.ones(len(self._narrow), dtype=np.int32)
        narrow[:count] = step.lengths
        for number, (group, page) in enumerate(zip(step.groups, scratch, strict=True)):
            wide[1 + number, :count] = group.slots
            wide[1 + number, count:] = page * page_tokens
            tables = np.full((rows, group.tables.shape[1]), page, dtype=np.int32)
            tables[:count] = group.tables
            narrow[self.rows + number * _APART] = tables.shape[1]
            upload_into(self._tables[number], tables)
        upload_into(self._wide, wide)
        upload_into(self._narrow, narrow)

    def step(self, rows: int, device: torch.device) -> Step:
        """The step of `rows` rows that is told what these inputs have in them at any time."""
        most = self.rows
        starts = np.arange(rows + 1, dtype=np.int32)
        step = Step(
            token_ids=self._ids[None, :rows],
            positions=self._wide[None, :rows],
            drawing=np.arange(rows),
            drawn_at=self._drawn_at[:rows],
            starts=starts,
            lengths=np.ones(rows, dtype=np.int32),
            decode_rows=rows,
            groups=tuple(
                GroupStep(np.zeros((rows, 1), dtype=np.int32), np.zeros(rows, dtype=np.int64))
                for _ in self._tables
            ),
        )
        for number, tables in enumerate(self._tables):
            at = most + number * _APART
            step.prepared[rows_key(number, device)] = PagedRows(
                slots=self._wide[(1 + number) * most :][:rows],
                tables=tables,
                width=self._narrow[at : at + 1],
                lengths=self._narrow[:rows],
                starts=self._starts[: rows + 1],
            )
        return step


def record_plainly(compute: Callable[[], None]) -> Replay:
    """No recording at all: what is played back is computed."""
    return compute


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory, since no two are ever played at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], None]) -> Replay:
        """A `Record`. Raises RuntimeError for what waits for the GPU, which no graph can."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                compute()  # kernels are compiled, and what is made once is made
                with _no_waiting():
                    compute()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                compute()
        replay: Replay = graph.replay
        return replay


@contextmanager
def _no_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
