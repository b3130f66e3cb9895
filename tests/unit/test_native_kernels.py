"""The compiled kernels against plain torch, for every instruction set that this machine has."""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.engine_cases import answers, inflight_engine, model_work
from uellm_cli.engines.inflight import native, packed
from uellm_cli.engines.inflight.native import library

COMPILER = os.environ.get("CXX") or next(
    (name for name in ("c++", "g++", "clang++") if shutil.which(name)), None
)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
LEVELS = native.machine_levels()
DTYPES = native.DTYPES
BF16_ULP = 2.0**-7


@pytest.fixture(scope="session", autouse=True)
def _keep_what_is_built(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """In pytest's own cache, so that only the first run of the tests compiles."""
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("uellm") if cache else tmp_path_factory.mktemp("uellm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UELLM_CACHE_DIR", str(folder))
        patch.delenv("UELLM_KERNELS", raising=False)
        yield


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """`load` tries anew, in the test and after it."""
    library._attempt.cache_clear()
    yield
    library._attempt.cache_clear()


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def kernels(level: str) -> native.Kernels:
    loaded = native.load(level)
    assert loaded is not None, native.why_not(level)
    return loaded


@dataclass(frozen=True)
class Case:
    """Rows of (new tokens, KV length); everything else of a call to `attend`."""

    rows: list[tuple[int, int]]
    q_heads: int = 4
    kv_heads: int = 2
    k_dim: int = 64
    v_dim: int = 64
    page_size: int = 16
    window: int = 0
    softcap: float = 0.0
    with_sinks: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass
class Inputs:
    """`keys[r]` and `values[r]` are row r's, in order; the pools hold them, and NaN elsewhere."""

    case: Case
    q: Tensor = field(init=False)
    k_pool: Tensor = field(init=False)
    v_pool: Tensor = field(init=False)
    table: Tensor = field(init=False)
    sinks: Tensor | None = field(init=False)
    keys: list[Tensor] = field(init=False)
    values: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        case, size = self.case, self.case.page_size
        random = torch.Generator().manual_seed(case.seed)
        counts = [math.ceil(kv_len / size) for _, kv_len in case.rows]
        pages = torch.randperm(sum(counts) + 3, generator=random).tolist()

        def numbers(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random).to(case.dtype)

        tokens = sum(new for new, _ in case.rows)
        # A slice of something wider, as the queries of a fused projection are.
        self.q = numbers(tokens, case.q_heads + 2, case.k_dim + 3)[:, 1:-1, 2:-1]
        self.k_pool = torch.full((len(pages), size, case.kv_heads, case.k_dim), math.nan)
        self.v_pool = torch.full((len(pages), size, case.kv_heads, case.v_dim), math.nan)
        self.k_pool, self.v_pool = self.k_pool.to(case.dtype), self.v_pool.to(case.dtype)
        self.table = torch.full((len(case.rows), max(counts) + 1), 2**30, dtype=torch.int32)
        self.sinks = torch.randn(case.q_heads, generator=random) if case.with_sinks else None
        self.keys, self.values = [], []
        for row, (new, kv_len) in enumerate(case.rows):
            self.keys.append(numbers(kv_len, case.kv_heads, case.k_dim))
            self.values.append(numbers(kv_len, case.kv_heads, case.v_dim))
            first = max(0, kv_len - new - case.window + 1) if case.window else 0
            for position in range(first, kv_len):
                at = position // size
                if position == first or position % size == 0:
                    self.table[row, at] = pages.pop()
                page = int(self.table[row, at])
                self.k_pool[page, position % size] = self.keys[row][position]
                self.v_pool[page, position % size] = self.values[row][position]

    def attended(self, level: str, rows: list[int] | None = None) -> Tensor:
        """By the kernel; of some rows only, if they are given."""
        case = self.case
        chosen = range(len(case.rows)) if rows is None else rows
        starts = [0]
        for new, _ in case.rows:
            starts.append(starts[-1] + new)
        q = torch.cat([self.q[starts[row] : starts[row + 1]] for row in chosen])
        if rows is None:
            q = self.q
        lengths = [case.rows[row] for row in chosen]
        query_start = torch.tensor([0, *(new for new, _ in lengths)], dtype=torch.int32)
        native_kernels = kernels(level)
        plan = native_kernels.plan(
            query_start.cumsum(0, dtype=torch.int32),
            torch.tensor([kv_len for _, kv_len in lengths], dtype=torch.int32),
            self.table[list(chosen)].contiguous(),
        )
        return native_kernels.attend(
            *(q, self.k_pool, self.v_pool, plan, case.k_dim**-0.5),
            *(case.window, case.softcap, self.sinks),
        )

    def expected(self) -> Tensor:
        """In float64, one row after the other."""
        answers, begin = [], 0
        for (new, kv_len), key, value in zip(self.case.rows, self.keys, self.values, strict=True):
            q = self.q[begin : begin + new].double()
            begin += new
            answers.append(attention(self.case, self.sinks, q, kv_len, key, value))
        return torch.cat(answers)


def attention(
    case: Case, sinks: Tensor | None, q: Tensor, kv_len: int, key: Tensor, value: Tensor
) -> Tensor:
    group = case.q_heads // case.kv_heads
    key = key.double().repeat_interleave(group, 1)
    value = value.double().repeat_interleave(group, 1)
    scores = torch.einsum("lhd,nhd->hln", q, key) * case.k_dim**-0.5
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    position = torch.arange(kv_len - q.shape[0], kv_len)[:, None]
    at = torch.arange(kv_len)[None]
    unseen = (at > position) | (at <= position - case.window if case.window else at < 0)
    scores = scores.masked_fill(unseen, -math.inf)
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand(-1, q.shape[0], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(-1)[..., :kv_len]
    return torch.einsum("hln,nhd->lhd", weights, value)


def assert_close(found: Tensor, expected: Tensor, ulps: float = 1.0) -> None:
    """Within float32's rounding of a few sums, or within `ulps` bfloat16 steps."""
    assert not found.isnan().any()
    if found.dtype == torch.bfloat16:
        limit = ulps * BF16_ULP
        torch.testing.assert_close(found.double(), expected.double(), rtol=limit, atol=1e-3)
    else:
        torch.testing.assert_close(found.double(), expected.double(), rtol=3e-6, atol=3e-6)


MIXED = [(1, 1), (1, 37), (5, 5), (3, 70), (1, 64), (90, 100), (2, 130)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 20, 32, 64, 80, 96, 128, 192, 256])
def test_attention_over_pages_is_plain_attention_for_every_head_size(
    level: str, dtype: torch.dtype, dim: int
) -> None:
    case = Inputs(Case(MIXED, k_dim=dim, v_dim=dim, dtype=dtype))
    assert_close(case.attended(level), case.expected())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (14, 2), (9, 3), (20, 1), (80, 1), (8, 8)])
def test_attention_shares_a_kv_head_among_any_number_of_query_heads(
    level: str, dtype: torch.dtype, heads: tuple[int, int]
) -> None:
    q_heads, kv_heads = heads
    case = Inputs(Case(MIXED, q_heads=q_heads, kv_heads=kv_heads, dtype=dtype))
    assert_close(case.attended(level), case.expected())


ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 90)).map(lambda row: (row[0], sum(row))),
    min_size=1,
    max_size=5,
)
CASES = st.builds(
    Case,
    rows=st.one_of(ROWS, ROWS.map(lambda rows: [(1, kv_len) for _, kv_len in rows])),
    q_heads=st.sampled_from([2, 6]),
    kv_heads=st.sampled_from([1, 2]),
    k_dim=st.sampled_from([4, 20, 32, 48]),
    v_dim=st.sampled_from([5, 32, 64]),
    page_size=st.sampled_from([1, 3, 16, 64]),
    window=st.sampled_from([0, 0, 1, 17, 64]),
    softcap=st.sampled_from([0.0, 2.0, 30.0]),
    with_sinks=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(case=CASES)
def test_attention_is_plain_attention_whatever_the_rows_and_options(level: str, case: Case) -> None:
    inputs = Inputs(case)
    assert_close(inputs.attended(level), inputs.expected())


LONG = [(1, 2500), (1, 1024), (3, 1025), (20, 2100), (1, 3)]
LONG_CASES = [
    Case(LONG),
    Case(LONG, window=1500, softcap=20.0, with_sinks=True),
    Case(LONG, q_heads=24, kv_heads=1, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", LONG_CASES)
def test_attention_joins_the_parts_of_a_long_row(level: str, case: Case) -> None:
    inputs = Inputs(case)
    assert_close(inputs.attended(level), inputs.expected())


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*LONG_CASES, Case(MIXED, window=30), Case(MIXED, q_heads=24)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(level: str, case: Case) -> None:
    inputs = Inputs(case)
    together = inputs.attended(level)
    assert torch.equal(together, inputs.attended(level))
    alone = torch.cat([inputs.attended(level, [row]) for row in range(len(case.rows))])
    assert torch.equal(together, alone)
    torch.set_num_threads(1)
    assert torch.equal(together, inputs.attended(level))


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_without_tokens_is_passed_over(level: str) -> None:
    inputs = Inputs(Case([(2, 9), (0, 5), (3, 3)]))
    assert_close(inputs.attended(level), inputs.expected())


@pytest.mark.parametrize("level", LEVELS)
def test_scores_far_apart_neither_overflow_nor_lose_the_largest(level: str) -> None:
    inputs = Inputs(Case([(1, 200), (70, 200)]))
    inputs.q = inputs.q * 300  # scores in the thousands, themselves known to about 1e-4
    torch.testing.assert_close(
        inputs.attended(level).double(), inputs.expected(), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("level", LEVELS)
def test_nan_in_a_key_shows_in_the_answer(level: str) -> None:
    inputs = Inputs(Case([(1, 40), (30, 40)]))
    inputs.k_pool[int(inputs.table[0, 1]), 3] = math.nan
    inputs.k_pool[int(inputs.table[1, 0]), 3] = math.nan
    assert inputs.attended(level).isnan().all()


Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q.double(), k, v), "dtype"),
        (lambda q, k, v: (q, k, v.bfloat16()), "pools"),
        (lambda q, k, v: (q[1:], k, v), "tokens"),
        (lambda q, k, v: (q[:, :3], k, v), "heads"),
        (lambda q, k, v: (q.transpose(1, 2), k, v), "q must"),
        (lambda q, k, v: (q, k[:, :4], v[:, :4]), "contiguous"),
        (lambda q, k, v: (q, k[:, :4].contiguous(), v[:, :4].contiguous()), "pages"),
    ],
)
def test_attend_refuses_tensors_that_do_not_fit(change: Change, message: str) -> None:
    inputs = Inputs(Case([(1, 40), (30, 40)]))
    native_kernels = kernels(LEVELS[-1])
    starts, lengths = torch.tensor([0, 1, 31]), torch.tensor([40, 40])
    plan = native_kernels.plan(starts.int(), lengths.int(), inputs.table)
    q, k_pool, v_pool = change(inputs.q, inputs.k_pool, inputs.v_pool)
    with pytest.raises(ValueError, match=message):
        native_kernels.attend(q, k_pool, v_pool, plan, 1.0)


@pytest.mark.parametrize("starts", [[0, 3, 2], [1, 2, 3], [0, 1, 9]])
def test_plan_refuses_rows_that_make_no_sense(starts: list[int]) -> None:
    table = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="query_start"):
        kernels(LEVELS[-1]).plan(torch.tensor(starts).int(), torch.tensor([4, 4]).int(), table)


# --- the rest of a layer --------------------------------------------------------------------------


def pools(pages: int, size: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (pages, size, heads, dim)
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 33, 700])
def test_store_puts_every_token_into_its_slot_and_touches_no_other(
    level: str, dtype: torch.dtype, tokens: int
) -> None:
    fused = torch.randn(tokens, 5, 3, 24).to(dtype)
    k, v = fused[:, 1], fused.transpose(1, 2)[:, :, 4]
    k_pool, v_pool = pools(200, 4, 3, 24, dtype)
    slots = torch.randperm(800)[:tokens]
    kernels(level).store(k, v, k_pool, v_pool, slots)
    expected_k, expected_v = torch.zeros(800, 3, 24).to(dtype), torch.zeros(800, 3, 24).to(dtype)
    expected_k[slots], expected_v[slots] = k, v
    assert torch.equal(k_pool.flatten(0, 1), expected_k)
    assert torch.equal(v_pool.flatten(0, 1), expected_v)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers' apply_rotary_pos_emb, for the first dimensions of a head."""
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = cos.shape[-1] // 2
    rotate_half = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    return torch.cat([turned * cos[:, None] + rotate_half * sin[:, None], kept], dim=-1)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (80, 20), (20, 20), (128, 128), (6, 2)])
def test_rope_store_rounds_as_transformers_does(
    level: str, dtype: torch.dtype, dim: int, rotary_dim: int
) -> None:
    tokens, q_heads, kv_heads = 70, 6, 2
    fused = torch.randn(tokens, q_heads + 2 * kv_heads, dim).to(dtype)
    q, k, v = fused[:, :q_heads], fused[:, q_heads:-kv_heads], fused[:, -kv_heads:]
    cos, sin = torch.rand(2, tokens, rotary_dim).to(dtype).unbind()
    k_pool, v_pool = pools(20, 4, kv_heads, dim, dtype)
    slots = torch.randperm(80)[:tokens]
    expected_q, expected_k, v_before = rotated(q, cos, sin), rotated(k, cos, sin), v.clone()
    kernels(level).rope_store(q, k, v, cos, sin, k_pool, v_pool, slots)
    assert torch.equal(q, expected_q)
    assert torch.equal(k_pool.flatten(0, 1)[slots], expected_k)
    assert torch.equal(v_pool.flatten(0, 1)[slots], v_before)


def llama_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """transformers' LlamaRMSNorm."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (3, 64), (40, 1000), (2, 3, 129)])
def test_rms_norm_is_llamas(level: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, residual = torch.randn(2, *shape).to(dtype).unbind()
    weight = torch.randn(shape[-1]).to(dtype)
    normed = kernels(level).rms_norm(x, weight, 1e-5)
    assert_close(normed, llama_norm(x, weight, 1e-5), ulps=2)
    summed = residual + x
    normed = kernels(level).add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, summed)
    assert_close(normed, llama_norm(summed, weight, 1e-5), ulps=2)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 60), (9, 5000)])
def test_silu_mul_is_torchs(level: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = (torch.randn(shape) * 20).to(dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    assert_close(kernels(level).silu_mul(gate_up), F.silu(gate) * up, ulps=2)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (2, 40_000), (0, 4)])
def test_argmax_is_the_first_of_the_largest_and_nan_is_largest_of_all(
    level: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    logits = torch.randn(shape[0], shape[1] + 3).to(dtype)[:, 2:-1]
    if shape[1] > 30:
        logits[:, [7, 20, -1]] = 9.0
        logits[0, 5:] = logits[0, 5:].clamp(max=-1.0)
        logits[1, [-2, 30]] = math.nan
    ids, values = kernels(level).argmax(logits)
    if shape[0]:
        assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(values, logits.float().amax(-1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("level", LEVELS)
@given(row=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 1.0, math.nan]), min_size=1))
def test_argmax_finds_what_torch_finds_among_infinities_and_nan(
    level: str, row: list[float]
) -> None:
    logits = torch.tensor([row])
    ids, values = kernels(level).argmax(logits)
    assert int(ids[0]) == int(logits.argmax())
    torch.testing.assert_close(values, logits.amax(-1), rtol=0, atol=0, equal_nan=True)


# --- threads and their memory ---------------------------------------------------------------------


# 1e-40, made of its bits: who flushes denormals cannot write one down. Enough of them that torch
# shares them out, in whole rows, over two threads and over four.
DENORMALS = torch.full((64, 4096), 71362, dtype=torch.int32).view(torch.float32)


def zeros_of_a_product() -> set[bool]:
    """Whether rows of a product of `DENORMALS` are zero, of each thread's rows."""
    product = (DENORMALS * 1.0).view(torch.int32)
    return {*(product == 0).any(1).tolist(), *(product == 0).all(1).tolist()}


def every_thread_flushes() -> bool:
    (answer,) = zeros_of_a_product()
    return answer


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("level", LEVELS)
def test_denormals_are_zero_in_every_thread_inside_and_themselves_outside(level: str) -> None:
    assert not every_thread_flushes()
    with kernels(level).without_denormals():
        assert every_thread_flushes()
    assert not every_thread_flushes()


@pytest.mark.usefixtures("_two_threads")
def test_denormals_come_back_after_an_error() -> None:
    with pytest.raises(KeyError), kernels(LEVELS[-1]).without_denormals():
        raise KeyError
    assert not every_thread_flushes()


@pytest.mark.usefixtures("_two_threads")
def test_threads_that_join_inside_see_denormals_outside() -> None:
    with kernels(LEVELS[-1]).without_denormals():
        torch.set_num_threads(4)
        assert every_thread_flushes()
    assert not every_thread_flushes()


def packed_without_kernels() -> AbstractContextManager[None]:
    return packed._without_denormals()


def packed_with_kernels() -> AbstractContextManager[None]:
    return kernels(LEVELS[-1]).without_denormals()


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("without", [packed_without_kernels, packed_with_kernels])
@pytest.mark.parametrize("was_set", [False, True])
def test_caller_that_flushed_denormals_before_flushes_them_after(
    without: Callable[[], AbstractContextManager[None]], was_set: bool
) -> None:
    small = DENORMALS[0, :1]
    torch.set_flush_denormal(was_set)
    try:
        with without():
            assert float(small * 1.0) == 0.0
        assert (float(small * 1.0) == 0.0) is was_set
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.usefixtures("_two_threads")
def test_engine_with_the_kernels_computes_its_steps_without_denormals(tiny_llm: str) -> None:
    engine = inflight_engine(tiny_llm)
    seen: list[bool] = []
    embedding = engine.loaded.model.get_input_embeddings()
    embedding.register_forward_hook(lambda *_: seen.append(every_thread_flushes()))
    answers(engine, model_work(tiny_llm))
    assert set(seen) == {True}
    assert not every_thread_flushes()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(calls: int, call: Callable[[int], object]) -> int:
    """By how many bytes `call` makes this process grow, once it has been called some times."""
    for number in range(10):
        call(number)
    before = resident_bytes()
    for number in range(calls):
        call(number)
    return resident_bytes() - before


# Each thread's part of the scratch memory is a quarter of a megabyte.
HUNGRY = Case([(200, 200)], k_dim=256, v_dim=256)
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")


@needs_proc
@pytest.mark.usefixtures("_two_threads")
def test_threads_that_come_and_go_take_no_memory_with_them() -> None:
    inputs = Inputs(HUNGRY)

    def attend(number: int) -> None:
        # libgomp ends the threads that a smaller team leaves out: two, each time.
        torch.set_num_threads(2 if number % 2 else 4)
        inputs.attended(LEVELS[-1])

    assert growth(200, attend) < 15e6


@needs_proc
def test_callers_that_end_give_their_memory_back() -> None:
    inputs = Inputs(HUNGRY)

    def attend(_: int) -> None:
        caller = threading.Thread(target=inputs.attended, args=(LEVELS[-1],))
        caller.start()
        caller.join()

    assert growth(200, attend) < 50e6  # of more than 100 MB that they have used


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "reason"), [("off", "switched off"), ("sse9", "this machine has")]
)
def test_environment_chooses_the_level(
    wanted: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UELLM_KERNELS", wanted)
    assert native.load() is None
    assert reason in str(native.why_not())
    monkeypatch.setenv("UELLM_KERNELS", "generic")
    loaded = native.load()
    assert loaded is not None
    assert loaded.level == "generic"
    assert native.why_not() is None


@pytest.mark.usefixtures("_two_threads")
def test_kernels_share_torchs_threads_and_bring_no_openmp_of_their_own() -> None:
    if library._openmp() is None:
        pytest.skip("this torch has no GOMP_parallel")
    maps = Path("/proc/self/maps")
    before = maps.read_text() if maps.exists() else ""
    loaded = library.Kernels(LEVELS[-1])
    assert loaded.threads() == torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert loaded.threads() == 1

    def runtimes(text: str) -> set[str]:
        return {line.split()[-1] for line in text.splitlines() if "libgomp" in line}

    if maps.exists():
        assert runtimes(maps.read_text()) == runtimes(before)


@pytest.mark.usefixtures("_two_threads", "_forgotten")
def test_torch_whose_threads_cannot_be_shared_means_no_kernels_unless_it_has_but_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "_openmp", lambda: None)
    assert native.load() is None
    assert "no OpenMP runtime" in str(native.why_not())
    library._attempt.cache_clear()
    torch.set_num_threads(1)
    inputs = Inputs(Case(MIXED))
    assert_close(inputs.attended(LEVELS[-1]), inputs.expected())


def test_case_builder_itself_gives_rows_the_pages_they_need() -> None:
    case = Case([(2, 40)], window=10)
    inputs = Inputs(replace(case, page_size=8))
    assert inputs.table[0].tolist()[:3] == [2**30] * 3  # positions 0 to 23: before the window
    assert (inputs.table[0, 3:5] < 2**30).all()  # position 29 is the first that is seen
