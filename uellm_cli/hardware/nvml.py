# ruff: noqa: N802 - the calls keep the names that NVML gives them
"""GPUs and the links between them, asked of NVML (the NVIDIA management library).

NVML knows all GPUs of the machine and ignores CUDA_VISIBLE_DEVICES; that is applied here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from uellm_cli.hardware import links
from uellm_cli.hardware.rates import GpuRates, estimated_rates, known_rates
from uellm_cli.hardware.visible import visible_gpus
from uellm_cli.types import Device, DeviceKind, Link, Source, Topology

MAX_NVLINKS = 36
SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
MEMORY_CLOCK = 2  # NVML_CLOCK_MEM
NODE_SCOPE = 0  # NVML_AFFINITY_SCOPE_NODE

# nvmlGpuTopologyLevel_t of two GPUs' common ancestor. 0 is two GPUs of one board.
ANCESTOR_PATHS: Mapping[int, str] = {
    0: "PIX",
    10: "PIX",
    20: "PXB",
    30: "PHB",
    40: "NODE",
    50: "SYS",
}

T = TypeVar("T")


class NvmlApi(Protocol):
    """The calls of `pynvml` that are used here; `NVMLError` is what a failing call raises.

    Memory is in bytes, clocks in MHz, bus width in bits; `busId` is a PCI address as text.
    """

    @property
    def NVMLError(self) -> type[Exception]: ...

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any, /) -> str: ...
    def nvmlDeviceGetUUID(self, handle: Any, /) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, /) -> Any: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, /) -> tuple[int, int]: ...
    def nvmlDeviceGetPciInfo(self, handle: Any, /) -> Any: ...
    def nvmlDeviceGetMemoryAffinity(
        self, handle: Any, words: int, scope: int, /
    ) -> Sequence[int]: ...
    def nvmlDeviceGetMaxClockInfo(self, handle: Any, clock: int, /) -> int: ...
    def nvmlDeviceGetMemoryBusWidth(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any, /) -> int: ...
    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int, /) -> int: ...
    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Any, link: int, /) -> int: ...
    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: Any, link: int, /) -> Any: ...
    def nvmlDeviceGetTopologyCommonAncestor(self, a: Any, b: Any, /) -> int: ...


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A GPU as NVML describes it; NVLinks are counted by the PCI id of their other end."""

    handle: Any
    device: Device
    pcie_bytes_per_s: float
    switch_links: int
    peer_links: Mapping[str, int] = field(default_factory=dict)


def installed_nvml() -> NvmlApi | None:
    """The `pynvml` module of nvidia-ml-py; None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return cast("NvmlApi", pynvml)


def nvml_topology(api: NvmlApi, environment: Mapping[str, str]) -> Topology | None:
    """The GPUs that `CUDA_VISIBLE_DEVICES` in `environment` lets through, and their links.

    None when there is no driver. A GPU whose calls fail is left out, with a note that names it.
    """
    try:
        api.nvmlInit()
    except api.NVMLError:
        return None
    try:
        found, notes = _read_gpus(api)
        kept, more = visible_gpus([gpu.device for gpu in found], environment)
        notes += more
        gpus = [gpu for device in kept for gpu in found if gpu.device.id == device.id]
        notes += [
            f"{gpu.device.id} ({gpu.device.name}): bandwidth and FLOP/s are estimated; "
            "the GPU is in no table"
            for gpu in gpus
            if gpu.device.rate_source is Source.ASSUMED
        ]
        between = [_link(api, a, b) for i, a in enumerate(gpus) for b in gpus[i + 1 :]]
        if any(link.source is Source.ASSUMED for link in between):
            notes.append("speeds of PCIe links are assumed from their generation and path")
        devices = tuple(gpu.device for gpu in gpus)
        return Topology(devices, tuple(between), origin="NVML", notes=tuple(notes))
    finally:
        _or_none(api, api.nvmlShutdown)


def _read_gpus(api: NvmlApi) -> tuple[list[_Gpu], list[str]]:
    gpus: list[_Gpu] = []
    notes: list[str] = []
    try:
        count = api.nvmlDeviceGetCount()
    except api.NVMLError as error:
        return [], [f"NVML cannot count the GPUs: {error}"]
    for index in range(count):
        try:
            gpus.append(_read_gpu(api, index))
        except api.NVMLError as error:
            notes.append(f"gpu{index} is left out: NVML says: {error}")
    return gpus, notes


def _read_gpu(api: NvmlApi, index: int) -> _Gpu:
    """One GPU. Raises `api.NVMLError` where even name, memory or address cannot be had."""
    handle = api.nvmlDeviceGetHandleByIndex(index)
    name = api.nvmlDeviceGetName(handle)
    memory = api.nvmlDeviceGetMemoryInfo(handle)
    major, minor = api.nvmlDeviceGetCudaComputeCapability(handle)
    rates = known_rates(name) or _estimated(api, handle)
    device = Device(
        id=f"gpu{index}",
        name=name,
        kind=DeviceKind.CUDA,
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s,
        flops_per_s=rates.flops_per_s,
        rate_source=rates.source,
        compute_capability=f"{major}.{minor}",
        numa_node=_numa_node(api, handle),
        pci_id=_address(api.nvmlDeviceGetPciInfo(handle).busId),
        uuid=_or_none(api, lambda: api.nvmlDeviceGetUUID(handle)),
    )
    switch_links, peer_links = _nvlinks(api, handle)
    return _Gpu(handle, device, _pcie_bytes_per_s(api, handle), switch_links, peer_links)


def _estimated(api: NvmlApi, handle: Any) -> GpuRates:
    return estimated_rates(
        _or_none(api, lambda: api.nvmlDeviceGetMaxClockInfo(handle, MEMORY_CLOCK)),
        _or_none(api, lambda: api.nvmlDeviceGetMemoryBusWidth(handle)),
    )


def _numa_node(api: NvmlApi, handle: Any) -> int | None:
    """The lowest NUMA node that the GPU is near to; NVML gives a bit for each of them."""
    words = _or_none(api, lambda: api.nvmlDeviceGetMemoryAffinity(handle, 1, NODE_SCOPE))
    mask = int(words[0]) if words is not None else 0
    return (mask & -mask).bit_length() - 1 if mask else None


def _pcie_bytes_per_s(api: NvmlApi, handle: Any) -> float:
    generation = _or_none(api, lambda: api.nvmlDeviceGetMaxPcieLinkGeneration(handle))
    width = _or_none(api, lambda: api.nvmlDeviceGetMaxPcieLinkWidth(handle))
    full = links.PCIE_BYTES_PER_S.get(generation or 0, links.DEFAULT_PCIE_BYTES_PER_S)
    return full * (width or 16) / 16


def _nvlinks(api: NvmlApi, handle: Any) -> tuple[int, dict[str, int]]:
    """Active NVLinks to a switch, and to each other GPU by its PCI address."""
    switch, peers = 0, dict[str, int]()
    for number in range(MAX_NVLINKS):
        try:
            if not api.nvmlDeviceGetNvLinkState(handle, number):
                continue
            remote = api.nvmlDeviceGetNvLinkRemoteDeviceType(handle, number)
            if remote == SWITCH:
                switch += 1
                continue
            peer = _address(api.nvmlDeviceGetNvLinkRemotePciInfo(handle, number).busId)
        except api.NVMLError:
            # A GPU without NVLink, or without this many, says so by failing.
            continue
        peers[peer] = peers.get(peer, 0) + 1
    return switch, peers


def _link(api: NvmlApi, a: _Gpu, b: _Gpu) -> Link:
    direct = a.peer_links.get(b.device.pci_id or "", 0)
    count = direct or min(a.switch_links, b.switch_links)
    ends = (a.device.id, b.device.id)
    if count:
        slower = min(
            links.nvlink_bytes_per_s(count, gpu.device.compute_capability) for gpu in (a, b)
        )
        return Link(*ends, f"NV{count}", slower, links.TRANSFER_LATENCY_S, Source.SPECIFIED)
    level = _or_none(api, lambda: api.nvmlDeviceGetTopologyCommonAncestor(a.handle, b.handle))
    path = ANCESTOR_PATHS.get(50 if level is None else level, links.ASSUMED_PATH)
    rate = links.pcie_bytes_per_s(path, min(a.pcie_bytes_per_s, b.pcie_bytes_per_s))
    return Link(*ends, path, rate, links.TRANSFER_LATENCY_S, Source.ASSUMED)


def _address(bus_id: str) -> str:
    """A PCI address in one spelling: NVML writes the domain with 4 or 8 digits, in either case."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}"


def _or_none(api: NvmlApi, call: Callable[[], T]) -> T | None:
    """What the call returns, None where this GPU or driver does not know it."""
    try:
        return call()
    except api.NVMLError:
        return None
