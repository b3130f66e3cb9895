"""The topology file: a machine written down, so that planning needs no GPU.

    devices:
      - {id: gpu0, name: NVIDIA H100 80GB HBM3, memory: 80GiB, free: 79GiB}
    links:
      - {a: gpu0, b: gpu1, type: NV18}
      - {between: all, type: PHB, gb_s: 24}

GB/s and TFLOP/s that are left out come from the GPU's name, or from the link's type. Pairs of GPUs
without a link are taken for the slowest kind, and a note says so.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from uellm_cli.documents import load_document
from uellm_cli.errors import TopologyError
from uellm_cli.hardware import links
from uellm_cli.hardware.rates import estimated_rates, known_rates
from uellm_cli.hardware.sizes import parse_bytes
from uellm_cli.types import Device, DeviceKind, Link, Source, Topology

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
FreeBytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceEntry(_Strict):
    id: str = Field(min_length=1)
    name: str = "GPU"
    kind: DeviceKind = DeviceKind.CUDA
    memory: Bytes
    free: FreeBytes | None = None
    bandwidth_gb_s: Positive | None = None
    bf16_tflops: Positive | None = None
    source: Source | None = None
    compute_capability: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    numa_node: int | None = Field(default=None, ge=0)
    pci_id: str | None = None
    uuid: str | None = None

    @model_validator(mode="after")
    def _free_is_part_of_memory(self) -> DeviceEntry:
        if self.free is not None and self.free > self.memory:
            raise ValueError(f"free ({self.free}) is more than memory ({self.memory})")
        return self


class LinkEntry(_Strict):
    a: str | None = None
    b: str | None = None
    between: Literal["all"] | list[str] | None = None
    type: str
    gb_s: Positive | None = None
    latency_us: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    source: Source | None = None

    @model_validator(mode="after")
    def _is_a_link(self) -> LinkEntry:
        if (self.a is None) != (self.b is None) or (self.a is None) == (self.between is None):
            raise ValueError("a link needs either a and b, or between")
        if not links.is_link_type(self.type):
            kinds = ", ".join(links.PCIE_PATHS)
            raise ValueError(f"there is no link type {self.type!r}; there are NV1, NV2 …, {kinds}")
        return self


class TopologyFile(_Strict):
    devices: list[DeviceEntry] = Field(min_length=1)
    links: list[LinkEntry] = []
    notes: list[str] = []


def load_topology(path: Path) -> Topology:
    """The machine that the file describes.

    Raises DocumentError, with the line, for what is malformed, and TopologyError, with the ids,
    for what contradicts itself.
    """
    document = load_document(path, TopologyFile, "topology")
    notes: list[str] = list(document.notes)
    devices: dict[str, Device] = {}
    for entry in document.devices:
        if entry.id in devices:
            raise TopologyError(f"{path}: two devices have the id {entry.id!r}")
        devices[entry.id] = _device(entry, notes)
    found: dict[frozenset[str], Link] = {}
    for number, link in enumerate(document.links, start=1):
        for a, b in _pairs(link, devices, f"{path}: link {number}"):
            if frozenset((a, b)) in found:
                raise TopologyError(f"{path}: link {number}: {a} and {b} are linked already")
            found[frozenset((a, b))] = _link(link, devices[a], devices[b])
    assumed = _assumed_links(devices, found, notes)
    return Topology(
        tuple(devices.values()), (*found.values(), *assumed), origin=str(path), notes=tuple(notes)
    )


def dump_topology(topology: Topology) -> str:
    """The topology as YAML text that `load_topology` reads back to the same devices and links."""
    document: dict[str, Any] = {
        "devices": [_device_entry(device) for device in topology.devices],
        "links": [_link_entry(link) for link in topology.links],
        "notes": list(topology.notes),
    }
    filled = {key: value for key, value in document.items() if value}
    return yaml.safe_dump(filled, sort_keys=False, allow_unicode=True, width=100)


def _device(entry: DeviceEntry, notes: list[str]) -> Device:
    default = known_rates(entry.name) or estimated_rates(None, None)
    is_stated = entry.bandwidth_gb_s is not None and entry.bf16_tflops is not None
    source = entry.source or (Source.SPECIFIED if is_stated else default.source)
    if source is Source.ASSUMED and entry.source is None:
        notes.append(f"{entry.id} ({entry.name}): GB/s or TFLOP/s are not given and are assumed")
    return Device(
        id=entry.id,
        name=entry.name,
        kind=entry.kind,
        memory_bytes=entry.memory,
        free_bytes=entry.memory if entry.free is None else entry.free,
        bandwidth_bytes_per_s=_scaled(entry.bandwidth_gb_s, 1e9) or default.bandwidth_bytes_per_s,
        flops_per_s=_scaled(entry.bf16_tflops, 1e12) or default.flops_per_s,
        rate_source=source,
        compute_capability=entry.compute_capability,
        numa_node=entry.numa_node,
        pci_id=entry.pci_id,
        uuid=entry.uuid,
    )


def _pairs(link: LinkEntry, devices: dict[str, Device], where: str) -> list[tuple[str, str]]:
    if link.between == "all":
        ids = [d.id for d in devices.values() if d.kind is DeviceKind.CUDA]
    elif link.between is not None:
        ids = link.between
    else:
        ids = [link.a or "", link.b or ""]
    for name in ids:
        if name not in devices:
            known = ", ".join(devices)
            raise TopologyError(f"{where}: there is no device {name!r}; there are: {known}")
    if len(set(ids)) < len(ids):
        raise TopologyError(f"{where}: links {next(i for i in ids if ids.count(i) > 1)} to itself")
    return list(combinations(ids, 2))


def _link(entry: LinkEntry, a: Device, b: Device) -> Link:
    rate = _scaled(entry.gb_s, 1e9)
    latency = _scaled(entry.latency_us, 1e-6)
    count = links.nvlink_count(entry.type)
    source = Source.SPECIFIED
    if rate is None and count is not None:
        rate = min(links.nvlink_bytes_per_s(count, d.compute_capability) for d in (a, b))
    elif rate is None:
        rate, source = links.pcie_bytes_per_s(entry.type), Source.ASSUMED
    return Link(
        a.id,
        b.id,
        entry.type,
        rate,
        links.TRANSFER_LATENCY_S if latency is None else latency,
        entry.source or source,
    )


def _assumed_links(
    devices: dict[str, Device], found: dict[frozenset[str], Link], notes: list[str]
) -> list[Link]:
    gpus = [d.id for d in devices.values() if d.kind is DeviceKind.CUDA]
    pairs = [pair for pair in combinations(gpus, 2) if frozenset(pair) not in found]
    if pairs:
        shown = ", ".join(f"{a}-{b}" for a, b in pairs[:3]) + (" …" if len(pairs) > 3 else "")
        example = links.assumed_link(*pairs[0])
        notes.append(
            f"no link is given for {len(pairs)} of {len(gpus) * (len(gpus) - 1) // 2} pairs of "
            f"GPUs ({shown}): {example.type} at {example.bytes_per_s / 1e9:.0f} GB/s is assumed"
        )
    return [links.assumed_link(a, b) for a, b in pairs]


def _scaled(value: float | None, unit: float) -> float | None:
    # Rounded, so that a file that was written from a topology gives the same numbers back.
    return None if value is None else float(f"{value * unit:.12g}")


def _device_entry(device: Device) -> dict[str, Any]:
    entry = {
        "id": device.id,
        "name": device.name,
        "kind": device.kind.value,
        "memory": device.memory_bytes,
        "free": device.free_bytes,
        "bandwidth_gb_s": device.bandwidth_bytes_per_s / 1e9,
        "bf16_tflops": device.flops_per_s / 1e12,
        "source": device.rate_source.value,
        "compute_capability": device.compute_capability,
        "numa_node": device.numa_node,
        "pci_id": device.pci_id,
        "uuid": device.uuid,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _link_entry(link: Link) -> dict[str, Any]:
    return {
        "a": link.a,
        "b": link.b,
        "type": link.type,
        "gb_s": link.bytes_per_s / 1e9,
        "latency_us": link.latency_s * 1e6,
        "source": link.source.value,
    }
