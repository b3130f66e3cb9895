# ruff: noqa: N802 - the calls keep the names and arguments that NVML gives them
"""A pretended NVML: any machine, GPUs that fail among them, for tests and what-ifs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace


class FakeNvmlError(Exception):
    """What a failing call of the pretended library raises."""


@dataclass(frozen=True, slots=True)
class FakeGpu:
    """One pretended GPU. `switch_links` are NVLinks to a switch; `fails` breaks all its calls."""

    name: str = "NVIDIA H100 80GB HBM3"
    total_bytes: int = 80 * 2**30
    free_bytes: int = 79 * 2**30
    compute_capability: tuple[int, int] = (9, 0)
    numa_node: int | None = 0
    switch_links: int = 0
    memory_clock_mhz: int | None = None
    bus_width_bits: int | None = None
    pcie_generation: int | None = 4
    fails: bool = False


@dataclass(frozen=True)
class FakeNvml:
    """A machine of `gpus`; a handle is an index.

    `nvlinks` counts direct links of a pair, `ancestors` gives its common-ancestor level (50, the
    farthest, where it is silent); pairs are written with the lower index first.
    """

    gpus: Sequence[FakeGpu] = ()
    nvlinks: Mapping[tuple[int, int], int] = field(default_factory=dict)
    ancestors: Mapping[tuple[int, int], int] = field(default_factory=dict)
    has_driver: bool = True
    NVMLError: type[Exception] = FakeNvmlError

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise FakeNvmlError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:
        """Nothing is held."""

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int, /) -> str:
        return self._gpu(handle).name

    def nvmlDeviceGetUUID(self, handle: int, /) -> str:
        self._gpu(handle)
        return f"GPU-{handle:08d}-fake"

    def nvmlDeviceGetMemoryInfo(self, handle: int, /) -> SimpleNamespace:
        gpu = self._gpu(handle)
        return SimpleNamespace(total=gpu.total_bytes, free=gpu.free_bytes)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int, /) -> tuple[int, int]:
        return self._gpu(handle).compute_capability

    def nvmlDeviceGetPciInfo(self, handle: int, /) -> SimpleNamespace:
        self._gpu(handle)
        return SimpleNamespace(busId=f"00000000:{handle:02X}:00.0")

    def nvmlDeviceGetMemoryAffinity(self, handle: int, words: int, scope: int, /) -> list[int]:
        return [1 << _known(self._gpu(handle).numa_node)]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int, /) -> int:
        return _known(self._gpu(handle).memory_clock_mhz)

    def nvmlDeviceGetMemoryBusWidth(self, handle: int, /) -> int:
        return _known(self._gpu(handle).bus_width_bits)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int, /) -> int:
        return _known(self._gpu(handle).pcie_generation)

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int, /) -> int:
        self._gpu(handle)
        return 16

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int, /) -> int:
        self._peer(handle, link)
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int, /) -> int:
        return 2 if self._peer(handle, link) is None else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int, /) -> SimpleNamespace:
        peer = self._peer(handle, link)
        if peer is None:
            raise FakeNvmlError("Not Supported")
        return SimpleNamespace(busId=f"0000:{peer:02x}:00.0")

    def nvmlDeviceGetTopologyCommonAncestor(self, a: int, b: int, /) -> int:
        return self.ancestors.get((min(a, b), max(a, b)), 50)

    def _gpu(self, handle: int) -> FakeGpu:
        gpu = self.gpus[handle]
        if gpu.fails:
            raise FakeNvmlError("GPU is lost")
        return gpu

    def _peer(self, handle: int, link: int) -> int | None:
        """The GPU at the other end of a link, None for a switch; fails beyond the last link."""
        ends: list[int | None] = [None] * self._gpu(handle).switch_links
        for (a, b), count in self.nvlinks.items():
            if handle in (a, b):
                ends += [b if handle == a else a] * count
        if link >= len(ends):
            raise FakeNvmlError("Not Supported")
        return ends[link]


def _known(value: int | None) -> int:
    if value is None:
        raise FakeNvmlError("Not Supported")
    return value
