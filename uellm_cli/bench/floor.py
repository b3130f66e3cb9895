"""The seconds below which a machine cannot do the work, whatever the engine.

Two things have to be done, at best at once, so the floor is the longer of them:

- Every prompt token goes through all layers, and every output token through the head; each output
  token but an answer's last goes through the layers, too. A weight is a multiplication and an
  addition.
- A step gives at most one token to each of the sequences that run together. So there are at least
  as many steps as the longest answer has tokens, and as many as all output tokens take with every
  seat taken. Each of these steps reads all weights, and for each token but an answer's first the
  keys and values of the tokens before it.

No schedule is below it: a sum of maxima is no less than the maximum of sums. It says nothing about
engines that share what texts begin with or guess several tokens ahead; the bench lets none. Left
out are attention's own arithmetic, activations, sampling, and all that is not a matrix: the true
bound is higher. Rates are the best that this machine reached in any way that was tried, when
nothing else was to be done; they are measured on the spot, so the floor moves with the machine.
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
GPU_READ_BYTES = 2**31
# Products [rows, inner] x [inner, outer], beside those of the model's own width.
SHAPES = ((512, 1024, 1024), (512, 1024, 4096))
OWN_ROWS = 512
GPU_SHAPES = ((2048, 8192, 8192), (8192, 8192, 8192), (16384, 8192, 8192))
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
    """The best that this machine reaches: reading memory, and products.

    `weights_bytes_per_s` is of reading as much as a step reads of weights, again and again: what
    fits into a cache is read faster than memory can be.
    """

    memory_bytes_per_s: float
    weights_bytes_per_s: float
    flops_per_s: float

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Of whatever a step reads: keys and values may be in a cache where weights are."""
        return max(self.memory_bytes_per_s, self.weights_bytes_per_s)


def floor_s(
    lengths: Iterable[tuple[int, int]],
    sizes: Sizes,
    rates: Rates,
    *,
    element_bytes: int,
    max_sequences: int,
) -> float:
    """Seconds that no engine can be below; `lengths` are (prompt tokens, output tokens)."""
    works = [(prompt, made) for prompt, made in lengths if made]
    output_tokens = sum(made for _, made in works)
    through_layers = sum(prompt + made - 1 for prompt, made in works)
    flops = 2.0 * (through_layers * sizes.layer_parameters + output_tokens * sizes.head_parameters)
    read = least_steps([made for _, made in works], max_sequences) * sizes.parameters
    # Of a prompt's tokens, then of one more each time; the first token is made while they are.
    cached_tokens = sum(prompt * (made - 1) + math.comb(made - 1, 2) for prompt, made in works)
    read += cached_tokens * sizes.kv_values_per_token
    return max(flops / rates.flops_per_s, read * element_bytes / rates.bandwidth_bytes_per_s)


def least_steps(output_tokens: list[int], max_sequences: int) -> int:
    """Steps in which so many answers can be made at best, `max_sequences` tokens at a time."""
    return max(max(output_tokens, default=0), -(-sum(output_tokens) // max_sequences))


def measure_rates(device: str, dtype: str, threads: int, sizes: Sizes, rows: int) -> Rates:
    """The best of several turns of each way; `rows` are of a decode step. Takes some seconds."""
    import torch

    kind = getattr(torch, dtype)
    weights = sizes.parameters * ELEMENT_BYTES[dtype]
    with torch.inference_mode():
        if device == "cuda":
            return Rates(
                _gpu_bytes_per_s(torch, GPU_READ_BYTES),
                _gpu_bytes_per_s(torch, min(weights, GPU_READ_BYTES)),
                max(_gpu_flops_per_s(torch, kind, *shape) for shape in GPU_SHAPES),
            )
        torch.set_num_threads(threads)
        width = sizes.hidden_size
        own = [(count, width, 4 * width) for count in (rows, OWN_ROWS)]
        return Rates(
            _read_bytes_per_s(torch, READ_BYTES),
            _read_bytes_per_s(torch, weights),
            max(_linear_flops_per_s(torch, kind, *shape) for shape in (*own, *SHAPES)),
        )


def _read_bytes_per_s(torch: Any, size: int) -> float:
    values = torch.ones(max(1, size // 4))
    ways = (values.sum, values.amax, lambda: torch.dot(values, values))
    return float(values.nbytes / min(_best_s(way) for way in ways))


def _linear_flops_per_s(torch: Any, kind: Any, rows: int, inner: int, outer: int) -> float:
    """The fastest way known of a product [rows, inner] x [inner, outer].

    oneDNN with weights laid out beforehand is several times faster than `F.linear` on some
    processors; torch has it without a name of its own.
    """
    x = torch.randn(rows, inner).to(kind)
    weight = torch.randn(outer, inner).to(kind)
    onednn = torch.ops.mkldnn
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    for laid_out_for in (rows, None):
        try:
            packed = onednn._reorder_linear_weight(weight, laid_out_for)
            onednn._linear_pointwise(x, packed, None, "none", [], "")
        except (RuntimeError, AttributeError):  # not built in, or not for this dtype
            continue
        ways.append(lambda p=packed: onednn._linear_pointwise(x, p, None, "none", [], ""))  # type: ignore[misc]
    return 2.0 * rows * inner * outer / min(_best_s(way) for way in ways)


def _gpu_bytes_per_s(torch: Any, size: int) -> float:
    """Read alone, or read by one and written by another half."""
    wait = torch.cuda.synchronize
    values = torch.ones(max(2, size // 4), device="cuda")
    half = len(values) // 2
    reading_s = min(_best_s(lambda way=way: (way(), wait())) for way in (values.sum, values.amax))  # type: ignore[misc]
    copying_s = _best_s(lambda: (values[:half].copy_(values[-half:]), wait()))
    return float(max(values.nbytes / reading_s, 2 * half * 4 / copying_s))


def _gpu_flops_per_s(torch: Any, kind: Any, rows: int, inner: int, outer: int) -> float:
    wait = torch.cuda.synchronize
    x = torch.randn(rows, inner, dtype=kind, device="cuda")
    weight = torch.randn(inner, outer, dtype=kind, device="cuda")
    return 2.0 * rows * inner * outer / _best_s(lambda: (x @ weight, wait()))


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
