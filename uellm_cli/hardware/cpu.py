"""This host's CPU and memory as one device."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from uellm_cli.types import Device, DeviceKind, Source, Topology

# Assumed of one core: its share of DDR4 or DDR5 bandwidth, and fused multiply-adds of 256-bit
# vectors in float32 at 3 GHz. A calibration replaces both.
BANDWIDTH_PER_CORE_BYTES_PER_S = 10e9
FLOPS_PER_CORE = 50e9
# Memory controllers saturate long before all cores of a server do.
MAX_BANDWIDTH_BYTES_PER_S = 200e9

CGROUP_ROOT = Path("/sys/fs/cgroup")
SYSTEM_ROOT = Path("/sys/devices/system")
_LIMIT_FILES = (  # cgroup v2, then v1: limit, use, statistics, and the name of reclaimable cache
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def cpu_topology(notes: Sequence[str] = (), cgroup_root: Path = CGROUP_ROOT) -> Topology:
    """The host as a single CPU device; memory is the container's where a limit is set."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = _cgroup_memory(cgroup_root)
    if limit is not None and limit[0] < total:
        total, free = limit[0], min(free, limit[1])
    cores = usable_cores(cgroup_root)
    bandwidth = min(cores * BANDWIDTH_PER_CORE_BYTES_PER_S, MAX_BANDWIDTH_BYTES_PER_S)
    device = Device(
        id="cpu",
        name=f"CPU, {cores} cores",
        kind=DeviceKind.CPU,
        memory_bytes=total,
        free_bytes=free,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=cores * FLOPS_PER_CORE,
        rate_source=Source.ASSUMED,
    )
    assumed = (
        f"cpu: memory bandwidth ({bandwidth / 1e9:.0f} GB/s) and FLOP/s "
        f"({cores * FLOPS_PER_CORE / 1e9:.0f} GFLOP/s) are assumed from {cores} cores"
    )
    return Topology((device,), (), origin="this machine", notes=(*notes, assumed))


def usable_cores(cgroup_root: Path = CGROUP_ROOT, system_root: Path = SYSTEM_ROOT) -> int:
    """Cores this process may keep busy: hyperthreads of one count once, and a container's share."""
    allowed = allowed_cpus()
    siblings = {_siblings(cpu, system_root) for cpu in allowed}
    share = _cgroup_cpus(cgroup_root)
    cores = len(siblings) if share is None else min(len(siblings), math.ceil(share))
    return max(1, cores)


def allowed_cpus() -> frozenset[int]:
    """The numbers of the processors that the system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(psutil.cpu_count(logical=False) or 1))


def _siblings(cpu: int, system_root: Path) -> str:
    """What hyperthreads of one core have in common, and no others."""
    try:
        return (system_root / f"cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _cgroup_cpus(root: Path) -> float | None:
    """How many processors' time the container gets; None without a limit."""
    try:  # v2, in one file; "max" where there is no limit
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None  # v1 writes -1 for no limit


def _cgroup_memory(root: Path) -> tuple[int, int] | None:
    """The container's (limit, free) bytes; None without a limit. Cache it could drop is free."""
    for limit_name, used_name, stat_name, cache_name in _LIMIT_FILES:
        try:
            limit = int((root / limit_name).read_text())
            used = int((root / used_name).read_text())
            statistics = (root / stat_name).read_text()
        except (OSError, ValueError):  # no such cgroup version, or "max": no limit
            continue
        counters = dict(line.split() for line in statistics.splitlines() if line.count(" ") == 1)
        used -= min(used, int(counters.get(cache_name, "0")))
        return limit, max(0, limit - used)
    return None
