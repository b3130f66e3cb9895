"""Bringing numbers to a device, and back, without anybody waiting for what it is at work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Where an array begins in what is sent: kernels are compiled once more for addresses that are less
# even than this.
ALIGNMENT = 256

_TORCH = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32}


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Arrays of 32- or 64-bit integers on `device`: in one transfer, or themselves on the host."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    begins = _begins(arrays)
    there = _staged(arrays, begins, device).to(device, non_blocking=True)
    return [
        there[begin : begin + array.nbytes].view(_TORCH[array.dtype]).view(array.shape)
        for begin, array in zip(begins, arrays, strict=False)
    ]


def upload_into(target: torch.Tensor, array: NDArray[Any]) -> None:
    """Overwrites the beginning of `target`, of one dimension and the array's type."""
    staged = _staged([array], [0, array.nbytes], target.device).view(target.dtype)
    target[: array.size].copy_(staged, non_blocking=True)


def _begins(arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Where each array begins, and where the last one ends, in bytes."""
    begins = [0]
    for array in arrays:
        begins.append(begins[-1] + -(-array.nbytes // ALIGNMENT) * ALIGNMENT)
    return begins


def _staged(
    arrays: Sequence[NDArray[Any]], begins: Sequence[int], device: torch.device
) -> torch.Tensor:
    """The bytes of `arrays`, where `device` can fetch them from on its own.

    torch keeps such memory until the transfer is over, and then uses it again.
    """
    staged = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    flat = staged.numpy()
    for begin, array in zip(begins, arrays, strict=False):
        flat[begin : begin + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return staged


class Download:
    """Numbers on their way from a device to the host."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if numbers.device.type != "cuda":
            self._numbers = numbers
            return
        self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        with torch.cuda.device(numbers.device):
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def numbers(self) -> torch.Tensor:
        """Waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers
