"""The GPU's path on a CPU: the same code, but for kernels and graphs, which have stand-ins.

Triton's kernels run in its interpreter where triton is installed and TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed
from numpy.typing import NDArray

from tests.unit.architectures import model_maker
from tests.unit.engine_cases import answers, context, model_work
from uellm_cli.clock import SystemClock
from uellm_cli.engines import ENGINES
from uellm_cli.engines.inflight import cuda_start
from uellm_cli.engines.inflight.cache import LayerCache, layer_groups
from uellm_cli.engines.inflight.cuda_attention import (
    AttentionByDevice,
    CudaAttention,
    PagedKernels,
    PagedRows,
    PromptBlocks,
)
from uellm_cli.engines.inflight.cuda_graphs import GraphedModel, bucket, record_plainly
from uellm_cli.engines.inflight.cuda_memory import LEAST_SPARE_BYTES, share_with_room
from uellm_cli.engines.inflight.cuda_prompts import FlashPrompts
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.lookahead import PlainDraw
from uellm_cli.engines.inflight.step import GroupStep, Step
from uellm_cli.engines.inflight.torch_attention import TorchAttention
from uellm_cli.engines.inflight.uploads import ALIGNMENT, Download, upload
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.types import Budget, Completion, EngineRequest, SamplingParams

CPU = torch.device("cpu")
ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
DEVICE = torch.device("cuda", 0) if ON_GPU else CPU
HAS_TRITON = importlib.util.find_spec("triton") is not None and (
    ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"
)
needs_triton = pytest.mark.skipif(
    not HAS_TRITON, reason="needs triton, and a GPU or TRITON_INTERPRET=1"
)
KERNELS = ["reference", pytest.param("triton", marks=needs_triton)]
BLOCK_TOKENS = 3


# --- Stand-ins -----------------------------------------------------------------------------------


class ReferenceKernels:
    """`PagedKernels` one token after the other, and told nothing but what is on the device."""

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens

    def store(
        self, key: torch.Tensor, value: torch.Tensor, cache: LayerCache, slots: torch.Tensor
    ) -> None:
        cache.keys.view(-1, *key.shape[1:])[slots] = key
        cache.values.view(-1, *value.shape[1:])[slots] = value

    def decode(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        count: int,
    ) -> None:
        for row in range(count):
            length = int(rows.lengths[row])
            output[row] = self._one(layer, cache, query[row], rows, row, length)

    def prompts(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        blocks: PromptBlocks,
    ) -> None:
        for row, first in zip(blocks.rows.tolist(), blocks.tokens.tolist(), strict=True):
            start, end = rows.starts[row : row + 2].tolist()
            for token in range(start + first, min(start + first + BLOCK_TOKENS, end)):
                seen = int(rows.lengths[row]) - (end - token) + 1
                output[token] = self._one(layer, cache, query[token], rows, row, seen)

    def prompt_tokens(self, layer: AttentionLayer) -> int:
        return BLOCK_TOKENS

    def _one(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        rows: PagedRows,
        row: int,
        seen: int,
    ) -> torch.Tensor:
        first = max(0, seen - (layer.window or seen))
        positions = torch.arange(first, seen, device=query.device)
        blocks = positions // self.page_tokens
        pages = rows.tables.flatten()[row * int(rows.width) + blocks].long()
        slots = pages * self.page_tokens + positions % self.page_tokens
        heads = layer.query_heads // layer.kv_heads
        keys, values = (
            part.view(-1, *part.shape[2:])[slots].float().repeat_interleave(heads, 1)
            for part in (cache.keys, cache.values)
        )
        scores = torch.einsum("hd,khd->hk", query.float(), keys) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        if layer.sinks is not None:
            scores = torch.cat([scores, layer.sinks.float()[:, None]], 1)
        weights = scores.softmax(-1)[:, : len(positions)]
        return torch.einsum("hk,khd->hd", weights, values).to(query.dtype)


def kernels(name: str, page_tokens: int) -> PagedKernels:
    if name == "reference":
        return ReferenceKernels(page_tokens)
    from uellm_cli.engines.inflight.triton_attention import TritonKernels

    return TritonKernels(page_tokens)


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch's `varlen_attn` as its documentation has it, from 2.12 on."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    output = torch.empty_like(query)
    heads = query.shape[1] // key.shape[1]
    bounds = [pairwise(ends.tolist()) for ends in (cu_seq_q, cu_seq_k)]
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        keys, values = (x[k0:k1].float().repeat_interleave(heads, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1].float(), keys)
        scores = scores * (query.shape[2] ** -0.5 if scale is None else scale)
        at = torch.arange(k1 - k0)
        own = at[q0 - q1 :, None]
        if window_size[1] == 0:
            scores = scores.masked_fill(at > own, -torch.inf)
        if window_size[0] >= 0:
            scores = scores.masked_fill(at < own - window_size[0], -torch.inf)
        output[q0:q1] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(query.dtype)
    return output


def oldest_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: object = None,
) -> torch.Tensor:
    """torch's `varlen_attn` of 2.10."""
    assert return_aux is None
    grouped = query.shape[1] != key.shape[1]
    return flash(
        *(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k),
        window_size=(-1, 0) if is_causal else (-1, -1),
        enable_gqa=grouped,
    )


# --- Attention -----------------------------------------------------------------------------------


@dataclass
class Rows:
    """A step of rows that decode, by their lengths, and of prompts: tokens before, and in it."""

    decoding: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...]
    page_tokens: int
    seed: int = 0
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = [*self.decoding, *(before + tokens for before, tokens in self.prompts)]

    def step(self, window: int | None) -> tuple[Step, int]:
        """Its pages are in no order; those that a window is past are somebody else's. How many."""
        size = self.page_tokens
        counts = [1] * len(self.decoding) + [tokens for _, tokens in self.prompts]
        blocks = [-(-length // size) for length in self.lengths]
        pages = np.random.default_rng(self.seed).permutation(sum(blocks) + 2)
        tables = np.full((len(counts), max(blocks)), pages[-1], dtype=np.int32)
        slots: list[int] = []
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            passed = 0 if window is None else max(0, length - count - window + 1) // size
            own = pages[sum(blocks[:row]) : sum(blocks[: row + 1])]
            tables[row, passed : len(own)] = own[passed:]
            slots += [own[at // size] * size + at % size for at in range(length - count, length)]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        step = Step(
            token_ids=torch.zeros(1, sum(counts), dtype=torch.long),
            positions=torch.zeros(1, sum(counts), dtype=torch.long),
            drawing=np.arange(len(counts)),
            drawn_at=torch.zeros(0, dtype=torch.long),
            starts=starts,
            lengths=np.array(self.lengths, dtype=np.int32),
            decode_rows=len(self.decoding),
            groups=(GroupStep(tables, np.array(slots, dtype=np.int64)),),
        )
        return step, len(pages)


def layer(
    heads: tuple[int, int],
    sizes: tuple[int, int],
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AttentionLayer:
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(heads[0], generator=generator).to(DEVICE, dtype) if sinks else None
    scale = 1.3 * sizes[0] ** -0.5
    return AttentionLayer(0, *heads, *sizes, scale, window, softcap, own, dtype, DEVICE)


def error_of(
    one: AttentionLayer,
    rows: Rows,
    paged: PagedKernels,
    prompts: FlashPrompts | None = None,
) -> float:
    """How far attention over pages is off from torch's, of its norm; caches are compared, too."""
    generator = torch.Generator().manual_seed(rows.seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, one.dtype)

    _, pages = rows.step(one.window)
    shape = (pages, rows.page_tokens, one.kv_heads)
    cache = LayerCache(drawn(*shape, one.key_size), drawn(*shape, one.value_size))
    other = LayerCache(cache.keys.clone(), cache.values.clone())
    tokens = int(rows.step(None)[0].starts[-1])
    # As models hand them over: transposed views.
    query = drawn(one.query_heads, tokens, one.key_size).transpose(0, 1)
    key = drawn(one.kv_heads, tokens, one.key_size).transpose(0, 1)
    value = drawn(tokens, one.kv_heads, one.value_size)
    size = rows.page_tokens
    backend = CudaAttention(size, paged, prompts)
    made = backend.attend(one, cache, 0, rows.step(one.window)[0], query, key, value)
    wanted = TorchAttention(size).attend(one, other, 0, rows.step(one.window)[0], query, key, value)
    assert torch.equal(cache.keys, other.keys)
    # Of a page that is begun torch's way overwrites what nobody sees, too.
    slots = torch.from_numpy(rows.step(one.window)[0].groups[0].slots).to(DEVICE)
    stored, expected = (each.values.flatten(0, 1)[slots] for each in (cache, other))
    assert torch.equal(stored, expected)
    return float((made.float() - wanted.float()).norm() / wanted.float().norm())


MIXED = Rows((5, 9, 1, 33), ((0, 7), (6, 3), (0, 40)), 4)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LAYERS = {
    "plain": layer((4, 2), (16, 16)),
    "one KV head": layer((7, 1), (64, 64)),
    "no power of two": layer((6, 2), (80, 80)),
    "sizes differ": layer((4, 2), (24, 16), window=5),
    "capped in a window": layer((8, 4), (32, 32), window=6, softcap=3.0),
    "sinks": layer((4, 4), (16, 16), sinks=True),
    "sinks in a window": layer((8, 2), (16, 16), window=3, sinks=True),
    "half": layer((4, 2), (64, 64), dtype=torch.float16),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", LAYERS)
def test_attention_over_pages_is_attention(kind: str, name: str) -> None:
    one = LAYERS[kind]
    off = error_of(one, MIXED, kernels(name, MIXED.page_tokens))
    assert off < TOLERANCE[one.dtype]


@pytest.mark.skipif(not ON_GPU, reason="Triton's interpreter has no products of bfloat16")
@pytest.mark.parametrize("window", [None, 500])
def test_attention_in_bfloat16_is_attention(window: int | None) -> None:
    one = layer((32, 8), (128, 128), window, dtype=torch.bfloat16)
    rows = Rows((1500, 9, 3000, 31), ((0, 700), (600, 30)), 32)
    for prompts in (None, FlashPrompts.of_torch()):
        assert error_of(one, rows, kernels("triton", 32), prompts) < TOLERANCE[one.dtype]


@needs_triton
@pytest.mark.parametrize("window", [None, 700])
def test_long_rows_are_read_in_parts_that_add_up(window: int | None) -> None:
    one = layer((4, 2), (16, 16), window, sinks=True)
    rows = Rows((300, 1, 2100, 256), ((513, 5),), 16)
    assert error_of(one, rows, kernels("triton", 16)) < 1e-5


@needs_triton
@settings(max_examples=15)
@given(
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1), (6, 6)]),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    window=st.none() | st.integers(1, 30),
    softcap=st.none() | st.just(2.0),
    sinks=st.booleans(),
    decoding=st.lists(st.integers(1, 60), max_size=4).map(tuple),
    prompts=st.lists(st.tuples(st.integers(0, 40), st.integers(2, 40)), max_size=3).map(tuple),
    page_tokens=st.sampled_from([1, 3, 16]),
)
def test_attention_over_pages_is_attention_whatever_the_shapes(
    heads: tuple[int, int],
    sizes: tuple[int, int],
    window: int | None,
    softcap: float | None,
    sinks: bool,
    decoding: tuple[int, ...],
    prompts: tuple[tuple[int, int], ...],
    page_tokens: int,
) -> None:
    rows = Rows(decoding or (3,), prompts, page_tokens)
    one = layer(heads, sizes, window, softcap, sinks)
    assert error_of(one, rows, kernels("triton", page_tokens)) < 1e-5


def test_pages_of_nobody_between_others_weigh_nothing_whatever_is_in_them() -> None:
    one, size = LAYERS["plain"], 4
    rows = Rows((5, 9, 7), (), size)
    step, pages = rows.step(None)
    used = {slot // size for slot in step.groups[0].slots.tolist()} | {
        int(step.groups[0].tables[row, block])
        for row, length in enumerate(rows.lengths)
        for block in range(-(-length // size))
    }
    unused = [page for page in range(pages) if page not in used]
    assert min(unused) < max(used)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, 16, generator=generator).to(DEVICE) for heads in (4, 2, 2)
    )
    made = []
    for number in (0.0, torch.nan):
        cache = LayerCache(*(torch.ones(pages, size, 2, 16, device=DEVICE) for _ in range(2)))
        for page in unused:
            cache.keys[page] = number
            cache.values[page] = number
        made.append(TorchAttention(size).attend(one, cache, 0, step, query, key, value))
    assert made[0].isfinite().all()
    assert torch.equal(*made)


def test_layers_on_other_devices_have_attention_of_their_own() -> None:
    one, size = LAYERS["plain"], MIXED.page_tokens
    wrong = CudaAttention(size, ReferenceKernels(size), None)
    both = AttentionByDevice({DEVICE.type: TorchAttention(size), "elsewhere": wrong})
    step, pages = MIXED.step(None)
    tokens = int(step.starts[-1])
    query, key = (torch.ones(tokens, heads, 16, device=DEVICE) for heads in (4, 2))
    cache = LayerCache(*(torch.ones(pages, size, 2, 16, device=DEVICE) for _ in range(2)))
    output = both.attend(one, cache, 0, step, query, key, key)
    assert torch.allclose(output, torch.ones_like(output))


# --- Prompts by FlashAttention -------------------------------------------------------------------

HALF = layer((4, 2), (16, 16), dtype=torch.float16)


@pytest.mark.skipif(ON_GPU, reason="the stand-in is for a CPU")
@pytest.mark.parametrize("window", [None, 5])
def test_prompts_are_handed_over_as_flash_attention_takes_them(window: int | None) -> None:
    one, calls = replace(HALF, window=window), 0

    @wraps(flash)
    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return flash(*arguments, **options)

    prompts = FlashPrompts(watched)
    for rows in (MIXED, Rows((), ((0, 7), (0, 40)), 4), Rows((3,), ((30, 2),), 16)):
        assert error_of(one, rows, ReferenceKernels(rows.page_tokens), prompts) < 2e-3
    assert calls == 1 + 3  # tried once


@pytest.mark.skipif(ON_GPU, reason="the stand-in is for a CPU")
def test_the_oldest_flash_attention_does_for_layers_of_the_usual_scale_without_a_window() -> None:
    prompts = FlashPrompts(oldest_flash)
    usual = replace(HALF, scale=16**-0.5)
    assert prompts.fits(usual)
    assert error_of(usual, MIXED, ReferenceKernels(4), prompts) < 2e-3
    assert not prompts.fits(HALF)
    assert not prompts.fits(replace(usual, window=5))


def test_flash_attention_that_computes_something_else_is_not_used() -> None:
    def same(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return query

    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("not compiled with it")

    assert not FlashPrompts(same).fits(replace(HALF, scale=0.25))
    assert not FlashPrompts(broken).fits(replace(HALF, scale=0.25))


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.float32},
        {"softcap": 3.0},
        {"value_size": 24},
        {"key_size": 512, "value_size": 512},
        {"key_size": 12, "value_size": 12},
    ],
)
def test_what_flash_attention_does_not_compute_is_left_to_the_kernels(
    changed: dict[str, Any],
) -> None:
    assert not FlashPrompts(flash).fits(replace(HALF, **changed))


def test_torch_has_flash_attention_for_rows_of_any_length() -> None:
    assert FlashPrompts.of_torch() is not None


# --- Whole engines -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """How an engine computes; `kernels` are named where those of a GPU stand in."""

    kernels: str | None = None
    graphs: bool = False
    lookahead: bool = False

    def __str__(self) -> str:
        parts = [self.kernels or "", "graphs" * self.graphs, "lookahead" * self.lookahead]
        return "-".join(filter(None, parts)) or "plain"


PATHS = [Way(), Way(lookahead=True)] + [
    Way(name, graphs, lookahead)
    for name, graphs, lookahead in product(["reference"], [False, True], [False, True])
]


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    use(request.param, monkeypatch)
    assert isinstance(request.param, Way)
    return request.param


def use(path: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels_for(_: torch.device, page_tokens: int) -> PagedKernels | None:
        return None if path.kernels is None else kernels(path.kernels, page_tokens)

    monkeypatch.setattr(cuda_start, "kernels_for", kernels_for)
    monkeypatch.setattr(
        cuda_start, "recorder_for", lambda _: record_plainly if path.graphs else None
    )
    monkeypatch.setattr(cuda_start, "looks_ahead", lambda _: path.lookahead)


def engine_of(model: str, kv_bytes: int = 2**24, **options: Any) -> InflightEngine:
    notes: list[str] = []
    here = context(
        model,
        SystemClock(),
        budget=Budget(kv_bytes=kv_bytes, max_sequences=6, prefill_tokens=64),
        note=notes.append,
    )
    engine = ENGINES.build("inflight", options).start(here)
    assert not notes
    assert isinstance(engine, InflightEngine)
    return engine


def varied_work(model: str) -> list[EngineRequest]:
    """Plain rows of many lengths, some that draw at random, and some that stop at strings."""
    asked = [
        SamplingParams(),
        SamplingParams(temperature=1.5, seed=3, n=2),
        SamplingParams(stop=("5", "a")),
        SamplingParams(min_tokens=6),
        SamplingParams(frequency_penalty=0.5),
    ]
    return [
        changed(
            one,
            custom_id=f"{one.custom_id}-{number}",
            max_tokens=tokens,
            sampling=changed(asked[number % len(asked)], max_tokens=tokens),
        )
        for number, (tokens, one) in enumerate(product([1, 2, 30, 7, 17], model_work(model)))
    ]


def told(completions: dict[str, Completion]) -> dict[str, list[tuple[str, int, object]]]:
    assert not [done.failure for done in completions.values() if done.failure]
    return {
        name: [(answer.text, answer.output_tokens, answer.finish_reason) for answer in done.answers]
        for name, done in completions.items()
    }


@pytest.mark.parametrize("path", PATHS, indirect=True, ids=str)
@pytest.mark.parametrize("pages", [8, 400])
def test_every_path_gives_the_same_answers(
    path: Way, pages: int, tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = varied_work(tiny_llm)
    # First in company of rows that have to be waited for, then plain ones alone.
    plain = [changed(one, custom_id=f"p{one.custom_id}", sampling=SamplingParams()) for one in work]
    engine = engine_of(tiny_llm, page_tokens=16)
    token_bytes = engine.packed.cache.groups[0].bytes_per_token
    engine = engine_of(tiny_llm, kv_bytes=token_bytes * 16 * pages, page_tokens=16)
    assert isinstance(engine.packed, GraphedModel) == path.graphs
    assert engine.lookahead == path.lookahead
    made = told(answers(engine, work, plain))
    use(Way(), monkeypatch)
    assert made == told(answers(engine_of(tiny_llm), work, plain))


@needs_triton
@pytest.mark.parametrize("lookahead", [False, True])
def test_an_engine_of_triton_s_kernels_gives_the_same_answers(
    lookahead: bool, tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ON_GPU:
        pytest.skip("the engine here runs on the CPU")
    work = [changed(one, max_tokens=6) for one in model_work(tiny_llm)]
    wanted = told(answers(engine_of(tiny_llm), work))
    use(Way("triton", True, lookahead), monkeypatch)
    engine = engine_of(tiny_llm, page_tokens=16)
    assert isinstance(engine.packed, GraphedModel)
    assert told(answers(engine, work)) == wanted


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gpt2"])
def test_every_kind_of_layer_is_computed_by_steps_that_are_filled_up(
    name: str, tiny_llm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.architectures import ARCHITECTURES

    names = [known for known in ARCHITECTURES if known.replace("-", "_") == name]
    if not names:
        pytest.skip(f"there is no {name}")
    folder = str(model_maker(Path(tiny_llm), tmp_path)(names[0]))
    work = [
        EngineRequest(str(i), tuple(range(5 + i, 9 + 9 * i)), 5 + 7 * i, SamplingParams())
        for i in range(4)
    ]
    wanted = told(answers(engine_of(folder), work))
    use(Way("reference", True, True), monkeypatch)
    assert told(answers(engine_of(folder, page_tokens=4), work)) == wanted


def test_a_model_that_cannot_be_recorded_computes_all_the_same(
    tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    work = model_work(tiny_llm)
    wanted = told(answers(engine_of(tiny_llm), work))
    use(Way("reference", True, True), monkeypatch)
    monkeypatch.setattr(cuda_start, "recorder_for", lambda _: waits)
    engine = engine_of(tiny_llm)
    notes: list[str] = []
    assert isinstance(engine.packed, GraphedModel)
    engine.packed._note = notes.append
    assert told(answers(engine, work)) == wanted
    assert notes == [
        "steps are computed without CUDA graphs, since called a synchronizing CUDA operation"
    ]


def test_kernels_that_do_not_work_are_passed_over_with_a_remark(
    tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ReferenceKernels):
        def store(self, *_: object) -> None:
            raise OSError("no ptxas")

    class Wrong(ReferenceKernels):
        def decode(self, *arguments: Any) -> None:
            arguments[3].fill_(1.0)

    for broken, why in ((Broken, "OSError: no ptxas"), (Wrong, "its scores are off")):
        monkeypatch.setattr(cuda_start, "kernels_for", lambda _, size, kind=broken: kind(size))
        notes: list[str] = []
        here = context(tiny_llm, SystemClock(), note=notes.append)
        engine = ENGINES.build("inflight").start(here)
        assert isinstance(engine, InflightEngine)
        assert len(notes) == 1
        assert why in notes[0]


# --- Looking ahead -------------------------------------------------------------------------------


class Watched:
    """A model that notes, step by step, which tokens were known when it was computed."""

    def __init__(self, engine: InflightEngine) -> None:
        self._packed, self._engine = engine.packed, engine
        self.unknown: list[int] = []
        self.fails_at: int | None = None
        engine.packed = self

    @property
    def cache(self) -> Any:
        return self._packed.cache

    def logits(self, step: Step) -> torch.Tensor:
        self.unknown.append(sum(f.tokens[-1] < 0 for f in self._engine.flights.running))
        if len(self.unknown) == self.fails_at:
            raise RuntimeError("it broke")
        return self._packed.logits(step)


def test_plain_rows_do_not_wait_for_their_tokens_and_others_do(tiny_llm: str) -> None:
    for sampling, ahead in ((SamplingParams(), True), (SamplingParams(temperature=1.0), False)):
        engine = engine_of(tiny_llm)
        engine.lookahead = True
        watched = Watched(engine)
        told(answers(engine, [changed(one, sampling=sampling) for one in model_work(tiny_llm)]))
        assert any(watched.unknown) == ahead


@pytest.mark.parametrize("fails_at", [1, 2, 3, 8])
def test_a_step_that_breaks_costs_nobody_a_token(tiny_llm: str, fails_at: int) -> None:
    work = model_work(tiny_llm)
    wanted = told(answers(engine_of(tiny_llm), work))
    engine = engine_of(tiny_llm)
    engine.lookahead = True
    Watched(engine).fails_at = fails_at
    assert told(answers(engine, work)) == wanted


def test_a_run_that_is_stopped_hands_back_what_its_last_step_ended(tiny_llm: str) -> None:
    (work, *_) = model_work(tiny_llm)
    engine = engine_of(tiny_llm)
    engine.lookahead = True
    watched = Watched(engine)
    engine.context = replace(engine.context, stop=lambda: len(watched.unknown) == 3)
    done = answers(engine, [changed(work, max_tokens=3)])
    assert [one.output_tokens for one in done.values()] == [3]


def test_a_score_that_is_no_number_fails_its_row_though_it_is_seen_late() -> None:
    rows = [
        Row(EngineRequest(str(i), (1,), 5, SamplingParams()), RowSampling(0.0, 1.0, 0), seed=0)
        for i in range(2)
    ]
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, torch.nan, 1.0]])
    assert PlainDraw(rows, logits).read() == [1, None]
    assert rows[0].failure is None
    assert rows[1].failure is not None
    assert "not finite" in rows[1].failure.message


# --- Parts ---------------------------------------------------------------------------------------


@given(rows=st.integers(1, 2000))
def test_a_step_is_filled_up_by_little(rows: int) -> None:
    assert rows <= bucket(rows) <= max(rows + 15, 1.25 * rows, 2 * rows * (rows < 8))
    assert bucket(bucket(rows)) == bucket(rows)


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=needs_gpu)])
def test_arrays_arrive_as_they_were_and_at_even_addresses(device: torch.device) -> None:
    arrays: list[NDArray[Any]] = [
        np.arange(5),
        np.zeros((2, 0), np.int32),
        np.arange(6, dtype=np.int32).reshape(2, 3),
    ]
    there = upload(arrays, device)
    for array, tensor in zip(arrays, there, strict=True):
        assert tensor.cpu().numpy().dtype == array.dtype
        assert np.array_equal(tensor.cpu().numpy(), array)
        assert device == CPU or tensor.data_ptr() % ALIGNMENT == 0
    assert Download(there[0]).numbers().tolist() == [0, 1, 2, 3, 4]


def test_a_cache_is_made_to_fit_the_memory_that_is_left() -> None:
    on = [replace(LAYERS["plain"], device=torch.device("cuda", i)) for i in range(2)]
    groups = layer_groups(on)
    # Two layers of 2·(16 + 16) floats: 256 bytes a token on each GPU; 2^20 pages of 16 are 4 GiB.
    gib = 2**30

    def free(device: torch.device) -> tuple[int, int]:
        return (2 * gib + LEAST_SPARE_BYTES if device.index else 100 * gib), 8 * gib

    assert share_with_room(groups, 16, [2**20], free) == 0.5
    assert share_with_room(groups, 16, [2**18], free) == 1.0
    assert share_with_room(layer_groups([LAYERS["plain"]]), 16, [2**40], free) == 1.0
