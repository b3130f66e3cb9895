"""The topology file: what it may say, what it must not, and that it survives a round trip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import sample_data
from uellm_cli.errors import DocumentError, TopologyError
from uellm_cli.hardware import dump_topology, load_topology
from uellm_cli.hardware.cpu import cpu_topology
from uellm_cli.hardware.fake import FakeGpu, FakeNvml
from uellm_cli.hardware.nvml import nvml_topology
from uellm_cli.hardware.sizes import parse_bytes
from uellm_cli.types import DeviceKind, Source, Topology

SAMPLES = sorted((Path(sample_data.__file__).parent / "topologies").glob("*.yaml"))
TWO = """
devices:
  - {id: a, name: NVIDIA A100-SXM4-80GB, memory: 80GiB, compute_capability: "8.0"}
  - {id: b, name: NVIDIA A100-SXM4-80GB, memory: 80GiB, compute_capability: "8.0"}
"""
THREE = TWO + "  - {id: c, name: NVIDIA A100-SXM4-80GB, memory: 80GiB}\n"

Read = Callable[[str], Topology]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str) -> Topology:
        file = tmp_path / "topology.yaml"
        file.write_text(text)
        return load_topology(file)

    return read_text


def test_a_known_gpu_needs_a_name_and_memory_only(read: Read) -> None:
    device = read(TWO).devices[0]
    assert (device.memory_bytes, device.free_bytes) == (80 * 2**30, 80 * 2**30)
    assert (device.bandwidth_bytes_per_s, device.flops_per_s) == (2039e9, 312e12)
    assert device.rate_source is Source.SPECIFIED


def test_what_is_stated_beats_the_table(read: Read) -> None:
    entry = "{id: a, memory: 24 GB, free: 1000, bandwidth_gb_s: 100, bf16_tflops: 2.5}"
    device = read(f"devices: [{entry}]").devices[0]
    assert (device.memory_bytes, device.free_bytes) == (24 * 10**9, 1000)
    assert (device.bandwidth_bytes_per_s, device.flops_per_s) == (100e9, 2.5e12)
    assert device.rate_source is Source.SPECIFIED


def test_an_unknown_gpu_without_rates_is_assumed_and_noted(read: Read) -> None:
    machine = read("devices: [{id: a, name: Strange, memory: 8GiB}]")
    assert machine.devices[0].rate_source is Source.ASSUMED
    assert "a (Strange)" in machine.notes[0]


def test_links_have_the_rates_of_their_type_unless_stated(read: Read) -> None:
    machine = read(
        THREE + "links:\n"
        "  - {a: a, b: b, type: NV12}\n"
        "  - {a: b, b: c, type: PIX, gb_s: 11, latency_us: 5}\n"
        "  - {a: a, b: c, type: PHB}\n"
    )
    nvlink, stated, path = machine.links
    # 12 links of 20 GB/s, and 10 µs.
    assert (nvlink.bytes_per_s, nvlink.latency_s) == (240e9, 1e-5)
    assert nvlink.source is Source.SPECIFIED
    assert (stated.bytes_per_s, stated.latency_s) == (11e9, 5e-6)
    assert (path.bytes_per_s, path.source) == (24e9, Source.ASSUMED)


@pytest.mark.parametrize("between", ["all", "[a, b, c]"])
def test_between_links_every_pair(read: Read, between: str) -> None:
    machine = read(THREE + f"links: [{{between: {between}, type: NV4}}]")
    assert {(link.a, link.b) for link in machine.links} == {("a", "b"), ("a", "c"), ("b", "c")}


def test_a_pair_without_a_link_is_assumed_slow_and_noted(read: Read) -> None:
    machine = read(THREE + "links: [{a: a, b: b, type: NV4}]")
    missing = machine.link("a", "c")
    assert missing is not None
    assert (missing.type, missing.source) == ("SYS", Source.ASSUMED)
    assert machine.notes == (
        "no link is given for 2 of 3 pairs of GPUs (a-c, b-c): SYS at 10 GB/s is assumed",
    )


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ("{a: a, b: z, type: PIX}", "link 1: there is no device 'z'; there are: a, b"),
        ("{a: a, b: a, type: PIX}", "link 1: links a to itself"),
        ("{between: [a, b, a], type: PIX}", "link 1: links a to itself"),
        ("{a: a, b: b, type: PIX}, {a: b, b: a, type: SYS}", "link 2: b and a are linked already"),
        ("{a: a, b: b, type: PIX}, {between: all, type: SYS}", "link 2: a and b are linked"),
    ],
)
def test_links_that_contradict_the_devices_are_refused(read: Read, links: str, reason: str) -> None:
    with pytest.raises(TopologyError, match=reason):
        read(TWO + f"links: [{links}]")


def test_two_devices_with_one_id_are_refused(read: Read) -> None:
    with pytest.raises(TopologyError, match="two devices have the id 'a'"):
        read("devices: [{id: a, memory: 1GiB}, {id: a, memory: 1GiB}]")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("devices: []", "devices"),
        ("devices:\n  - {id: a, memory: 0}", ":2: .*greater than 0"),
        ("devices:\n  - {id: a, memory: many}", ":2: .*'many' is no memory size"),
        ("devices:\n  - {id: a, memory: true}", "True is no memory size"),
        ("devices:\n  - {id: a, memory: 1GiB, free: 2GiB}", "is more than memory"),
        ("devices:\n  - {id: a, memory: 1GiB, speed: 3}", ":2: .*unknown key"),
        ("devices:\n  - {id: a}", ":2: .*memory"),
        ("devices:\n  - {id: a, memory: 1GiB, bandwidth_gb_s: 0}", ":2: .*greater than 0"),
        ("devices:\n  - {id: a, memory: 1GiB, bf16_tflops: .inf}", ":2: .*finite"),
        ("devices:\n  - {id: a, memory: 1GiB, kind: tpu}", ":2: .*'cuda' or 'cpu'"),
        (TWO + "links:\n  - {a: a, b: b, type: FAST}", ":6: .*no link type 'FAST'"),
        (TWO + "links:\n  - {a: a, b: b, type: NV0}", "no link type 'NV0'"),
        (TWO + "links:\n  - {a: a, type: PIX}", "needs either a and b, or between"),
        (TWO + "links:\n  - {a: a, b: b, between: all, type: PIX}", "needs either a and b"),
        (TWO + "links:\n  - {type: PIX}", "needs either a and b, or between"),
        (TWO + "links:\n  - {a: a, b: b, type: PIX, gb_s: -1}", ":6: .*greater than 0"),
        ("", "is empty"),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_reason(
    read: Read, text: str, reason: str
) -> None:
    with pytest.raises(DocumentError, match=reason):
        read(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("1.5 gib", 3 * 2**29), ("7", 7), (7, 7)],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_survive_a_round_trip(path: Path, read: Read) -> None:
    machine = load_topology(path)
    again = read(dump_topology(machine))
    assert replace(again, origin=machine.origin) == machine


def test_a_detected_machine_survives_a_round_trip(read: Read, tmp_path: Path) -> None:
    gpus = [FakeGpu(switch_links=6), FakeGpu("Strange"), FakeGpu(switch_links=6, numa_node=None)]
    detected = nvml_topology(FakeNvml(gpus), {})
    assert detected is not None
    for machine in (detected, cpu_topology(cgroup_root=tmp_path)):
        again = read(dump_topology(machine))
        assert replace(again, origin=machine.origin) == machine


def test_the_samples_are_what_they_are_called() -> None:
    machines = {path.stem: load_topology(path) for path in SAMPLES}
    assert len(machines["8xh100"].devices) == 8
    assert len(machines["8xh100"].links) == 28
    assert {device.numa_node for device in machines["8xh100"].devices} == {0, 1}
    assert sorted(link.type for link in machines["4x3090"].links) == ["PIX", "PXB"] + ["SYS"] * 4
    assert len({device.free_bytes for device in machines["2xa100"].devices}) == 2
    assert [device.kind for device in machines["cpu"].devices] == [DeviceKind.CPU]
    assert all(machine.notes == () for machine in machines.values())
