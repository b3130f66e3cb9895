"""How fast a kind of link is, where nothing was measured.

Figures are one way and usable, not the wire's: NVLink from the tables that NCCL plans with
(`src/graph/topo.h`); PCIe about four fifths of the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from uellm_cli.types import Link, Source

# Bytes per second of one NVLink, by compute capability.
NVLINK_BYTES_PER_S: Mapping[str, float] = {
    "6.0": 18e9,
    "7.0": 20e9,
    "8.0": 20e9,
    "8.6": 12e9,
    "9.0": 20.6e9,
    "10.0": 40e9,
}
DEFAULT_NVLINK_BYTES_PER_S = 20e9

# Bytes per second of 16 PCIe lanes, by generation.
PCIE_BYTES_PER_S: Mapping[int, float] = {1: 3e9, 2: 6e9, 3: 12e9, 4: 24e9, 5: 50e9, 6: 100e9}
DEFAULT_PCIE_BYTES_PER_S = PCIE_BYTES_PER_S[4]

# Between sockets 6 to 40 GB/s were seen, by platform; the lower end is the safer guess.
SOCKET_BYTES_PER_S = 10e9

# What sending the hidden states of a step takes before their bytes count: launch, copy, signal.
TRANSFER_LATENCY_S = 10e-6

# Common-ancestor paths as `nvidia-smi topo -m` names them, from the nearest to the farthest.
PCIE_PATHS = ("PIX", "PXB", "PHB", "NODE", "SYS")
ASSUMED_PATH = "SYS"

_NVLINK = re.compile(r"NV([1-9]\d?)")


def nvlink_count(link_type: str) -> int | None:
    """How many NVLinks a type like NV12 stands for; None for other types."""
    match = _NVLINK.fullmatch(link_type)
    return int(match.group(1)) if match else None


def is_link_type(link_type: str) -> bool:
    return link_type in PCIE_PATHS or nvlink_count(link_type) is not None


def nvlink_bytes_per_s(count: int, compute_capability: str | None) -> float:
    """One-way rate of `count` NVLinks between GPUs of this compute capability."""
    one = NVLINK_BYTES_PER_S.get(compute_capability or "", DEFAULT_NVLINK_BYTES_PER_S)
    return count * one


def pcie_bytes_per_s(path: str, lanes_bytes_per_s: float = DEFAULT_PCIE_BYTES_PER_S) -> float:
    """Rate of a PCIe path whose slower end has `lanes_bytes_per_s`; SYS crosses sockets."""
    if path == "SYS":
        return min(SOCKET_BYTES_PER_S, lanes_bytes_per_s)
    return lanes_bytes_per_s


def assumed_link(a: str, b: str) -> Link:
    """What stands for a pair of devices of which nothing is known: the slowest path there is."""
    rate = pcie_bytes_per_s(ASSUMED_PATH)
    return Link(a, b, ASSUMED_PATH, rate, TRANSFER_LATENCY_S, Source.ASSUMED)
