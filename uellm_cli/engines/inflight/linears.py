"""Linear layers whose weights lie as oneDNN reads them, where that is faster.

A CPU's matrix product begins by bringing the weights into the order that its inner loop reads. For
few rows that takes as long as the product. Done once, at the start, it costs nothing more; and
oneDNN's product is the faster one on many processors, packed or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import nn

# Rows of the products that are timed: a step that decodes, and one that computes prompts too.
TIMED_ROWS = (32, 256)
_TIMES = 5
# Where packing helps it helps a lot, and where it does not it costs nothing: a short timing that
# says otherwise has to say it clearly.
CLEARLY_SLOWER = 1.15

_DTYPES = (torch.float32, torch.bfloat16)

# The time that each of several calls takes, in seconds.
Timer = Callable[..., Sequence[float]]


class PackedLinear(nn.Module):
    """`F.linear` of a weight [out, in] that is kept in oneDNN's order only.

    Models look at a layer's `weight` to learn its type and device. Of one number, it tells these;
    and whoever computes with it gets what is no number, which no trial overlooks.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight.detach().new_full((), math.nan).expand(weight.shape)
        self.bias = None if bias is None else bias.detach()
        self._packed = _pack(weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return _product(rows, self._packed, self.bias)


class Packing:
    """Decides shape by shape whether packing pays, by trying it once."""

    def __init__(self, timer: Timer | None = None) -> None:
        self._timer = timer or shortest_s
        self._pays: dict[tuple[object, ...], bool] = {}

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
        """The packed layer; None where the plain one is as good, or packing is not to be had."""
        key = (*weight.shape, weight.dtype, bias is None)
        if key not in self._pays:
            plain_bias = None if bias is None else bias.detach()
            self._pays[key] = _pays(weight.detach(), plain_bias, self._timer)
        return PackedLinear(weight, bias) if self._pays[key] else None


def _pays(weight: torch.Tensor, bias: torch.Tensor | None, timer: Timer) -> bool:
    if weight.dtype not in _DTYPES or weight.device.type != "cpu" or weight.dim() != 2:
        return False
    try:
        with torch.inference_mode():
            packed = _pack(weight)
            return _is_right(weight, packed, bias) and _is_faster(weight, packed, bias, timer)
    except (RuntimeError, AttributeError):
        return False  # this torch, or this processor, has no such operation


def _is_right(weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> bool:
    rows = _rows(3, weight)
    plain = F.linear(rows, weight, bias)
    off = (plain.float() - _product(rows, packed, bias).float()).abs().max()
    tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
    return bool(off <= tolerance * plain.float().abs().max())


def _is_faster(
    weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, timer: Timer
) -> bool:
    """Whether the packed product is not clearly the slower one; per row, over `TIMED_ROWS`."""
    plain_s = packed_s = 0.0
    for count in TIMED_ROWS:
        rows = _rows(count, weight)
        plain, other = timer(
            partial(F.linear, rows, weight, bias), partial(_product, rows, packed, bias)
        )
        plain_s += plain / count
        packed_s += other / count
    return packed_s < CLEARLY_SLOWER * plain_s


def shortest_s(*calls: Callable[[], torch.Tensor]) -> list[float]:
    """The shortest time of each call, in turns, so that a busy moment is not one call's alone."""
    shortest = [math.inf] * len(calls)
    for _ in range(_TIMES):
        for i, call in enumerate(calls):
            began_s = time.perf_counter()
            call()
            shortest[i] = min(shortest[i], time.perf_counter() - began_s)
    return shortest


def _rows(count: int, weight: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, weight.shape[1], generator=generator).to(weight.dtype)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight.detach().contiguous(), TIMED_ROWS[0]
    )
    return packed


def _product(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return output
