"""The kernels as Python calls them: tensors in, shapes checked, pointers out.

`load` gives the kernels for this machine, or None where they cannot be had, and `why_not` says why.
Tensors are float32 or bfloat16 and on the CPU; sums are always float32. A call costs a few
microseconds more than its work. Nothing here is differentiable.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from uellm_cli.engines.inflight.native.build import LEVELS, BuildError, open_library

DTYPES = (torch.float32, torch.bfloat16)


class _AttendArgs(ctypes.Structure):
    """`AttendArgs` in attention.hpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("query_start", "kv_len", "table")),
        *((name, c_void_p) for name in ("q", "k_pool", "v_pool", "sinks", "out")),
        *((name, c_int64) for name in ("q_token_stride", "q_head_stride")),
        *((name, c_int32) for name in ("rows", "table_stride", "page_size")),
        *((name, c_int32) for name in ("q_heads", "kv_heads", "k_dim", "v_dim")),
        ("window", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("is_bf16", c_int32),
    )


class _StoreArgs(ctypes.Structure):
    """`StoreArgs` in attention.hpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("k", "v", "k_pool", "v_pool", "slots")),
        *((name, c_int64) for name in ("k_token_stride", "k_head_stride")),
        *((name, c_int64) for name in ("v_token_stride", "v_head_stride", "tokens")),
        *((name, c_int32) for name in ("kv_heads", "k_dim", "v_dim", "is_bf16")),
    )


class _RopeArgs(ctypes.Structure):
    """`RopeArgs` in fused.hpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "cos", "sin")),
        *((name, c_void_p) for name in ("k_pool", "v_pool", "slots")),
        *((name, c_int64) for name in ("q_token_stride", "q_head_stride")),
        *((name, c_int64) for name in ("k_token_stride", "k_head_stride")),
        *((name, c_int64) for name in ("v_token_stride", "v_head_stride", "tokens")),
        *((name, c_int32) for name in ("q_heads", "kv_heads", "dim", "v_dim")),
        *((name, c_int32) for name in ("rotary_dim", "is_bf16")),
    )


class AttendPlan:
    """The rows of one step, made once and used by every layer; see `Kernels.plan`."""

    __slots__ = ("_shapes", "args", "longest", "pointer", "rows", "tensors", "tokens")

    def __init__(self, tensors: tuple[Tensor, Tensor, Tensor], tokens: int, longest: int) -> None:
        query_start, kv_len, block_table = self.tensors = tensors
        self.tokens = tokens
        self.longest = longest
        self.rows = kv_len.shape[0]
        self.args = _AttendArgs(
            query_start=query_start.data_ptr(),
            kv_len=kv_len.data_ptr(),
            table=block_table.data_ptr(),
            rows=self.rows,
            table_stride=block_table.shape[1],
        )
        self.pointer = byref(self.args)
        self._shapes: tuple[object, ...] | None = None

    def use(self, q: Tensor, k_pool: Tensor, v_pool: Tensor, out: Tensor) -> None:
        """Sets all that the tensors say; cheap when they are shaped as in the call before."""
        args = self.args
        args.q = q.data_ptr()
        args.k_pool = k_pool.data_ptr()
        args.v_pool = v_pool.data_ptr()
        args.out = out.data_ptr()
        shapes = (
            *(q.shape, q.stride(), k_pool.shape, v_pool.shape),
            *(q.dtype, k_pool.dtype, v_pool.dtype),
        )
        if shapes != self._shapes:
            self._set_shapes(q, k_pool, v_pool)
            self._shapes = shapes

    def _set_shapes(self, q: Tensor, k_pool: Tensor, v_pool: Tensor) -> None:
        _check_pools(k_pool, v_pool)
        _check(q.is_cpu and q.dim() == 3 and q.stride(2) == 1, "q must be [T, Hq, Dk] on the CPU")
        tokens, q_heads, k_dim = q.shape
        page_size, kv_heads, pool_k_dim = k_pool.shape[1:]
        _check(tokens == self.tokens, "q must have the plan's tokens")
        _check(k_dim == pool_k_dim and q_heads % kv_heads == 0, "q must fit the pools' heads")
        _check(q.dtype == k_pool.dtype, "q must have the pools' dtype")
        reach = self.args.table_stride * page_size
        _check(self.longest <= reach, "the block table must hold every row's pages")
        args = self.args
        args.q_token_stride, args.q_head_stride, _ = q.stride()
        args.page_size, args.kv_heads, args.k_dim = page_size, kv_heads, k_dim
        args.q_heads, args.v_dim = q_heads, v_pool.shape[3]
        args.is_bf16 = q.dtype == torch.bfloat16


class _WithoutDenormals:
    """See `Kernels.without_denormals`; a class, for a generator takes twice as long."""

    __slots__ = ("_before", "_flush", "_restore")

    def __init__(
        self, flush: Callable[[], int | None], restore: Callable[[int | None], None]
    ) -> None:
        self._flush = flush
        self._restore = restore

    def __enter__(self) -> None:
        self._before = self._flush()

    def __exit__(self, *_: object) -> None:
        self._restore(self._before)


class Kernels:
    """`level` is the instruction set they were compiled for: one of `LEVELS`."""

    def __init__(self, level: str) -> None:
        """Raises BuildError."""
        self.level = level
        openmp = _openmp()
        if openmp is None and torch.get_num_threads() > 1:
            raise BuildError(
                "this torch has no OpenMP runtime whose threads could be shared: on one thread, "
                f"the kernels would be slower than torch on its {torch.get_num_threads()}"
            )
        library = open_library(level)
        self._attend = library.uellm_attend
        self._store = library.uellm_store
        self._store.restype = None
        self._rope_store = library.uellm_rope_store
        self._rope_store.restype = None
        self._rms_norm = library.uellm_rms_norm
        self._rms_norm.argtypes = (*[c_void_p] * 4, c_int64, c_int64, c_float, c_int)
        self._rms_norm.restype = None
        self._silu_mul = library.uellm_silu_mul
        self._silu_mul.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_int)
        self._silu_mul.restype = None
        self._argmax = library.uellm_argmax
        self._argmax.argtypes = (c_void_p, *[c_int64] * 3, c_void_p, c_void_p, c_int)
        self._check_plan = library.uellm_check_plan
        self._check_plan.argtypes = (c_void_p, c_void_p, c_int64, c_void_p)
        self._threads = library.uellm_threads
        self._flush_denormals = library.uellm_flush_denormals
        self._flush_denormals.restype = c_void_p
        self._restore_denormals = library.uellm_restore_denormals
        self._restore_denormals.argtypes = (c_void_p,)
        self._restore_denormals.restype = None
        library.uellm_use_openmp.argtypes = [c_void_p] * 4
        library.uellm_use_openmp(*(openmp or [None] * 4))

    def threads(self) -> int:
        """How many threads share a big call: torch's own number, or 1 without its OpenMP."""
        return int(self._threads())

    def without_denormals(self) -> _WithoutDenormals:
        """Numbers next to zero are zero here, in this thread and in those that it shares work with.

        After it, each thread does as it did before.
        """
        return _WithoutDenormals(self._flush_denormals, self._restore_denormals)

    # --- attention --------------------------------------------------------------------------------

    def store(self, k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, slots: Tensor) -> None:
        """Puts T tokens into the cache: token t at `slots[t] = page * page_size + offset`.

        k is [T, Hkv, Dk] and v [T, Hkv, Dv], of any token and head strides; the pools are
        [pages, page_size, Hkv, D], contiguous; slots is int64 [T] and is not checked.
        """
        tokens, kv_heads, dim = k.shape
        v_dim = _check_tokens((tokens, kv_heads, dim), k, v, k_pool, v_pool, slots)
        k_token, k_head, _ = k.stride()
        v_token, v_head, _ = v.stride()
        args = _StoreArgs(
            *(k.data_ptr(), v.data_ptr(), k_pool.data_ptr(), v_pool.data_ptr(), slots.data_ptr()),
            *(k_token, k_head, v_token, v_head, tokens),
            *(kv_heads, dim, v_dim, k.dtype == torch.bfloat16),
        )
        self._store(byref(args))

    def plan(self, query_start: Tensor, kv_len: Tensor, block_table: Tensor) -> AttendPlan:
        """The rows of a step, for `attend`. All int32 and contiguous; raises ValueError.

        Row r owns the tokens `query_start[r]` to `query_start[r + 1]` of q, which are the last of
        its `kv_len[r]` positions; entry j of `block_table[r]` is the page of the positions from
        j * page_size on. `query_start` is [R + 1], `kv_len` [R], `block_table` [R, any]. They are
        read by every `attend`, and must not change while the plan is used.
        """
        rows = kv_len.shape[0]
        for tensor in (query_start, kv_len, block_table):
            fits = tensor.dtype == torch.int32 and tensor.is_contiguous() and tensor.is_cpu
            _check(fits, "a plan's tensors must be int32, contiguous and on the CPU")
        _check(query_start.shape == (rows + 1,), "query_start must be [R + 1]")
        _check(
            block_table.dim() == 2 and block_table.shape[0] == rows, "block_table must be [R, _]"
        )
        longest = c_int64()
        tokens = self._check_plan(query_start.data_ptr(), kv_len.data_ptr(), rows, byref(longest))
        _check(tokens >= 0, "query_start must rise from 0, by no more than kv_len")
        return AttendPlan((query_start, kv_len, block_table), tokens, longest.value)

    def attend(
        self,
        q: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        plan: AttendPlan,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of every row over its own pages: [T, Hq, Dv].

        q is [T, Hq, Dk] of any token and head strides. A query at position p sees the positions
        j with p - window < j <= p, all up to p where `window` is 0; pages before those are not
        read. `softcap`, unless 0, bends a scaled score s to softcap * tanh(s / softcap). `sinks`,
        float32 [Hq], is one more logit per head, for the denominator only (GPT-OSS).
        """
        out = q.new_empty((q.shape[0], q.shape[1], v_pool.shape[3]))
        plan.use(q, k_pool, v_pool, out)
        args = plan.args
        args.scale = scale
        args.window = window
        args.softcap = softcap
        if sinks is None:
            args.sinks = None
        else:
            fits = sinks.dtype == torch.float32 and sinks.is_contiguous() and sinks.is_cpu
            _check(fits and sinks.shape == (q.shape[1],), "sinks must be float32 [Hq]")
            args.sinks = sinks.data_ptr()
        if not self._attend(plan.pointer):
            raise MemoryError("attention's scratch memory could not be had")
        return out

    # --- the rest of a layer ----------------------------------------------------------------------

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """transformers' LlamaRMSNorm over the last dimension of a contiguous x."""
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`residual += x`, in place, and the norm of that sum."""
        fits = residual.shape == x.shape and residual.dtype == x.dtype
        _check(fits and residual.is_contiguous(), "residual must be like x")
        return self._norm(x, residual, weight, eps)

    def _norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        dtype = x.dtype
        n = weight.shape[0]
        _check(x.shape[-1] == n and x.is_cpu and dtype in DTYPES, "x must be [..., n] on the CPU")
        _check(weight.dtype == dtype, "x and weight must have one dtype")
        _check(x.is_contiguous() and weight.is_contiguous(), "x and weight must be contiguous")
        out = torch.empty_like(x)
        self._rms_norm(
            *(x.data_ptr(), None if residual is None else residual.data_ptr()),
            *(weight.data_ptr(), out.data_ptr()),
            *(x.numel() // n, n, eps, dtype == torch.bfloat16),
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(first half of the last dimension) * second half; [..., 2n] gives [..., n]."""
        *outer, doubled = gate_up.shape
        dtype = gate_up.dtype
        _check(dtype in DTYPES and doubled % 2 == 0, "gate_up must be [..., 2n] of a known dtype")
        _check(gate_up.is_contiguous() and gate_up.is_cpu, "gate_up must be contiguous, on the CPU")
        n = doubled // 2
        out = gate_up.new_empty((*outer, n))
        if n:
            rows = gate_up.numel() // doubled
            is_bf16 = dtype == torch.bfloat16
            self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, n, is_bf16)
        return out

    def rope_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        slots: Tensor,
    ) -> None:
        """Turns q in place, and puts k, turned, and v into the cache as `store` does.

        transformers' `apply_rotary_pos_emb` on the first Dr dimensions of each head: q [T, Hq, D]
        and k [T, Hkv, D], of any token and head strides, cos and sin [T, Dr]; k is left as it was.
        """
        tokens, q_heads, dim = q.shape
        kv_heads = k.shape[1]
        v_dim = _check_tokens((tokens, kv_heads, dim), k, v, k_pool, v_pool, slots)
        dtype = q.dtype
        q_token, q_head, step = q.stride()
        _check(step == 1 and dtype == k.dtype and q.is_cpu, "q must be [T, Hq, D], like k")
        shape = cos.shape
        rotary_dim = shape[1]
        fits = shape[0] == tokens and sin.shape == shape and cos.dtype == sin.dtype == dtype
        _check(fits and rotary_dim % 2 == 0 and rotary_dim <= dim, "cos and sin must be [T, Dr]")
        contiguous = cos.is_contiguous() and sin.is_contiguous()
        _check(contiguous and cos.is_cpu and sin.is_cpu, "cos and sin must be contiguous")
        k_token, k_head, _ = k.stride()
        v_token, v_head, _ = v.stride()
        args = _RopeArgs(
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), cos.data_ptr(), sin.data_ptr()),
            *(k_pool.data_ptr(), v_pool.data_ptr(), slots.data_ptr()),
            *(q_token, q_head, k_token, k_head, v_token, v_head, tokens),
            *(q_heads, kv_heads, dim, v_dim, rotary_dim, dtype == torch.bfloat16),
        )
        self._rope_store(byref(args))

    def argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row of [R, V]: the index, int64, and the value, float32, of its largest.

        Of several the first; the first NaN, if there is one, as torch has it.
        """
        rows, n = logits.shape
        _check(logits.dtype in DTYPES and logits.is_cpu, "logits must be float32 or bfloat16")
        _check(n > 0 and logits.stride(1) == 1, "logits must be [R, V], V > 0")
        ids = torch.empty(rows, dtype=torch.int64)
        values = torch.empty(rows, dtype=torch.float32)
        is_bf16 = logits.dtype == torch.bfloat16
        shape = (rows, n, logits.stride(0))
        if not self._argmax(logits.data_ptr(), *shape, ids.data_ptr(), values.data_ptr(), is_bf16):
            raise MemoryError("argmax's scratch memory could not be had")
        return ids, values


def load(level: str | None = None) -> Kernels | None:
    """The kernels for `level`, by default UELLM_KERNELS or the best that this machine has.

    Compiled when first asked for, which takes some seconds; the same object ever after. None where
    that fails, or where UELLM_KERNELS is "off": `why_not` then gives the reason.
    """
    found = _attempt(_wanted(level))
    return found if isinstance(found, Kernels) else None


def why_not(level: str | None = None) -> str | None:
    """Why `load` gives None; None where it does not."""
    found = _attempt(_wanted(level))
    return found if isinstance(found, str) else None


def machine_levels() -> tuple[str, ...]:
    """The levels that this machine can run, the best last. ATEN_CPU_CAPABILITY counts here too."""
    best = str(torch.backends.cpu.get_cpu_capability()).lower()
    names = tuple(LEVELS)
    return names[: names.index(best) + 1] if best in names else ("generic",)


def _wanted(level: str | None) -> str:
    return (level or os.environ.get("UELLM_KERNELS") or "auto").lower()


@functools.cache
def _attempt(level: str) -> Kernels | str:
    if level == "off":
        return "they are switched off: UELLM_KERNELS is off"
    levels = machine_levels()
    if level == "auto":
        level = levels[-1]
    if level not in levels:
        return f"UELLM_KERNELS is {level!r}, and this machine has: {', '.join(levels)}"
    try:
        return Kernels(level)
    except BuildError as error:
        return str(error)


def _openmp() -> list[int | None] | None:
    """GOMP_parallel and its like, four, in the OpenMP runtime that torch uses; None without it."""
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (str(torch_cpu), None):
        try:
            library = ctypes.CDLL(name)  # torch's: already loaded, and what it is linked with too
            functions = (
                *(library.GOMP_parallel, library.omp_get_max_threads),
                *(library.omp_get_thread_num, library.omp_get_num_threads),
            )
        except (OSError, AttributeError):
            continue
        return [ctypes.cast(function, c_void_p).value for function in functions]
    return None


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check_pools(k_pool: Tensor, v_pool: Tensor) -> None:
    _check(k_pool.dtype in DTYPES and k_pool.dtype == v_pool.dtype, "float32 or bfloat16 pools")
    fits = k_pool.dim() == 4 and v_pool.dim() == 4 and k_pool.shape[:3] == v_pool.shape[:3]
    _check(fits and k_pool.is_cpu and v_pool.is_cpu, "pools must be [pages, page size, Hkv, D]")
    _check(k_pool.is_contiguous() and v_pool.is_contiguous(), "pools must be contiguous")


def _check_tokens(
    shape: tuple[int, int, int],
    k: Tensor,
    v: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    slots: Tensor,
) -> int:
    """Dv, where all fit `shape`, [T, Hkv, Dk]. Each call to a tensor costs, so there are few."""
    tokens, heads, dim = shape
    pages, page_size, pool_heads, v_dim = v_pool.shape
    fits = k_pool.shape == (pages, page_size, heads, dim) and pool_heads == heads
    _check(fits, "pools must be [pages, page size, Hkv, D]")
    _check(k_pool.is_contiguous() and v_pool.is_contiguous(), "pools must be contiguous")
    fits = k.shape == shape and v.shape == (tokens, heads, v_dim) and slots.shape == (tokens,)
    _check(fits, "k and v must be [T, Hkv, D], slots [T]")
    dtype = k.dtype
    fits = dtype in DTYPES and dtype == v.dtype == k_pool.dtype == v_pool.dtype
    _check(fits, "k, v and the pools must be float32 or bfloat16")
    _check(k.stride(2) == 1 and v.stride(2) == 1, "the last dimension must be contiguous")
    _check(slots.dtype == torch.int64 and slots.is_contiguous(), "slots must be int64, contiguous")
    on_cpu = k.is_cpu and v.is_cpu and k_pool.is_cpu and v_pool.is_cpu and slots.is_cpu
    _check(on_cpu, "all must be on the CPU")
    return v_dim
