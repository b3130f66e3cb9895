"""This host's CPU as a device, with and without a container's memory limit."""

from __future__ import annotations

from pathlib import Path

import psutil

from uellm_cli.hardware.cpu import cpu_topology
from uellm_cli.types import DeviceKind, Source

GIB = 2**30


def write_v2(root: Path, limit: str, used: int, cache: int) -> None:
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{used}\n")
    (root / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_the_host_is_one_device_whose_rates_are_assumed(tmp_path: Path) -> None:
    machine = cpu_topology(cgroup_root=tmp_path)
    device = machine.devices[0]
    assert (device.id, device.kind, device.rate_source) == ("cpu", DeviceKind.CPU, Source.ASSUMED)
    assert device.memory_bytes == psutil.virtual_memory().total
    assert 0 < device.free_bytes <= device.memory_bytes
    assert device.bandwidth_bytes_per_s > 0
    assert "assumed from" in machine.notes[-1]


def test_earlier_notes_are_kept(tmp_path: Path) -> None:
    assert cpu_topology(["gpu0 is lost"], tmp_path).notes[0] == "gpu0 is lost"


def test_a_containers_limit_is_the_machine_and_its_file_cache_is_free(tmp_path: Path) -> None:
    # 1 GiB allowed, 768 MiB used of which 512 MiB are cached files: 768 MiB can be had.
    write_v2(tmp_path, str(GIB), 768 * 2**20, 512 * 2**20)
    device = cpu_topology(cgroup_root=tmp_path).devices[0]
    assert (device.memory_bytes, device.free_bytes) == (GIB, 768 * 2**20)


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    write_v2(tmp_path, "max", 0, 0)
    device = cpu_topology(cgroup_root=tmp_path).devices[0]
    assert device.memory_bytes == psutil.virtual_memory().total


def test_a_limit_beyond_the_host_is_no_limit(tmp_path: Path) -> None:
    # cgroup v1 writes a number near 2**63 for "none".
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    (memory / "memory.usage_in_bytes").write_text("0")
    (memory / "memory.stat").write_text("total_inactive_file 0\n")
    device = cpu_topology(cgroup_root=tmp_path).devices[0]
    assert device.memory_bytes == psutil.virtual_memory().total


def test_the_older_cgroups_are_read_too(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text(str(GIB))
    (memory / "memory.usage_in_bytes").write_text(str(GIB))
    (memory / "memory.stat").write_text("total_inactive_file 1024\n")
    device = cpu_topology(cgroup_root=tmp_path).devices[0]
    assert (device.memory_bytes, device.free_bytes) == (GIB, 1024)
