"""The seconds below which a machine cannot do the work, whatever the engine.

A step reads every weight and the KV cache of all that is in it, and multiplies each token by each
weight; it takes at least the longer of the two at the rates that this machine reaches when nothing
else is to be done. Left out are attention's own arithmetic, activations, sampling, and all that is
not a matrix: the true bound is higher. Rates are measured on the spot, so the floor moves with the
machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from uellm_cli.types import ModelSpec

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
READ_BYTES = 2**30
GPU_COPY_BYTES = 2**31
PREFILL_ROWS = 512
# Of the turns of a product or a reading the best counts; so many at least, and for so long.
TURNS = 7
TURNS_S = 0.2


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a step reads and multiplies by. `layer_parameters` are of all layers together."""

    layer_parameters: int
    head_parameters: int
    kv_values_per_token: int
    hidden_size: int

    @classmethod
    def of(cls, spec: ModelSpec) -> Sizes:
        """A tied head is the embedding, read whole; of an untied embedding only rows are read."""
        layers = sum(layer.active_bytes for layer in spec.layers)
        return cls(
            layer_parameters=round(layers / spec.dtype_bytes),
            head_parameters=round((spec.head_bytes or spec.embedding_bytes) / spec.dtype_bytes),
            kv_values_per_token=round(spec.kv_bytes(1) / spec.dtype_bytes),
            hidden_size=spec.hidden_size,
        )

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.head_parameters


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine reaches: reading memory, and products with few rows and with many.

    `weights_bytes_per_s` is of reading as much as a step reads of weights, again and again: what
    fits into a cache is read faster than memory can be.
    """

    memory_bytes_per_s: float
    weights_bytes_per_s: float
    decode_flops_per_s: float
    prefill_flops_per_s: float

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return max(self.memory_bytes_per_s, self.weights_bytes_per_s)

    @property
    def flops_per_s(self) -> float:
        return max(self.decode_flops_per_s, self.prefill_flops_per_s)


@dataclass(slots=True)
class _Row:
    cached_tokens: int
    left_tokens: int


def floor_s(
    lengths: Iterable[tuple[int, int]],
    sizes: Sizes,
    rates: Rates,
    *,
    element_bytes: int,
    max_sequences: int,
    prefill_tokens: int,
) -> float:
    """Seconds of an in-flight schedule, longest answer first, in which every step is at its bound.

    `lengths` are (prompt tokens, output tokens). A prompt is computed whole, in the step that makes
    its first token.
    """
    waiting = sorted(lengths, key=lambda length: length[1])
    rows: list[_Row] = []
    seconds = 0.0
    while waiting or rows:
        flops = 2.0 * len(rows) * sizes.parameters
        cached_tokens = sum(row.cached_tokens for row in rows)
        room = prefill_tokens
        while waiting and len(rows) < max_sequences and (room >= waiting[-1][0] or not rows):
            prompt_tokens, output_tokens = waiting.pop()
            room -= prompt_tokens
            flops += 2.0 * (prompt_tokens * sizes.layer_parameters + sizes.head_parameters)
            rows.append(_Row(prompt_tokens, output_tokens))
        read = (sizes.parameters + cached_tokens * sizes.kv_values_per_token) * element_bytes
        seconds += max(read / rates.bandwidth_bytes_per_s, flops / rates.flops_per_s)
        for row in rows:
            row.cached_tokens += 1
            row.left_tokens -= 1
        rows = [row for row in rows if row.left_tokens > 0]
    return seconds


def measure_rates(device: str, dtype: str, threads: int, sizes: Sizes, rows: int) -> Rates:
    """The best of several turns of each; `rows` are of a decode step. Takes a few seconds."""
    import torch

    if device == "cuda":
        return _gpu_rates(torch, getattr(torch, dtype), rows)
    torch.set_num_threads(threads)
    weights = sizes.parameters * ELEMENT_BYTES[dtype]
    with torch.inference_mode():
        return Rates(
            _read_bytes_per_s(torch, READ_BYTES),
            _read_bytes_per_s(torch, weights),
            _linear_flops_per_s(torch, dtype, rows, sizes.hidden_size),
            _linear_flops_per_s(torch, dtype, PREFILL_ROWS, sizes.hidden_size),
        )


def _read_bytes_per_s(torch: Any, size: int) -> float:
    values = torch.ones(max(1, size // 4))
    ways = (values.sum, values.amax, lambda: torch.dot(values, values))
    return float(values.nbytes / min(_best_s(way) for way in ways))


def _linear_flops_per_s(torch: Any, dtype: str, rows: int, width: int) -> float:
    """The fastest way known of a product [rows, width] x [width, 4 width].

    oneDNN with weights laid out beforehand is several times faster than `F.linear` on some
    processors; torch has it without a name of its own.
    """
    kind = getattr(torch, dtype)
    outer = 4 * width
    x = torch.randn(rows, width).to(kind)
    weight = torch.randn(outer, width).to(kind)
    onednn = torch.ops.mkldnn
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    for laid_out_for in (rows, None):
        try:
            packed = onednn._reorder_linear_weight(weight, laid_out_for)
            onednn._linear_pointwise(x, packed, None, "none", [], "")
        except (RuntimeError, AttributeError):  # not built in, or not for this dtype
            continue
        ways.append(lambda p=packed: onednn._linear_pointwise(x, p, None, "none", [], ""))  # type: ignore[misc]
    return 2.0 * rows * width * outer / min(_best_s(way) for way in ways)


def _gpu_rates(torch: Any, dtype: Any, rows: int) -> Rates:
    source = torch.empty(GPU_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize
    copy_s = _best_s(lambda: (target.copy_(source), wait()))
    weight = torch.randn(8192, 8192, dtype=dtype, device="cuda")

    def flops_per_s(rows: int) -> float:
        x = torch.randn(rows, 8192, dtype=dtype, device="cuda")
        return float(2.0 * rows * 8192**2 / _best_s(lambda: (x @ weight, wait())))

    bytes_per_s = 2 * GPU_COPY_BYTES / copy_s
    return Rates(bytes_per_s, bytes_per_s, flops_per_s(rows), flops_per_s(8192))


def _best_s(work: Callable[[], object]) -> float:
    """The least seconds of one call; short ones are made many times a turn."""
    began = time.perf_counter()
    work()
    calls = max(1, round(0.005 / max(time.perf_counter() - began, 1e-7)))
    best = math.inf
    turns = 0
    until = time.perf_counter() + TURNS_S
    while turns < TURNS or time.perf_counter() < until:
        best = min(best, _turn_s(work, calls))
        turns += 1
    return best


def _turn_s(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls
