"""GPUs through NVML, on machines that are pretended."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from uellm_cli.hardware import detect_topology
from uellm_cli.hardware.fake import FakeGpu, FakeNvml
from uellm_cli.hardware.nvml import nvml_topology
from uellm_cli.hardware.rates import known_rates
from uellm_cli.types import DeviceKind, Source, Topology


def detect(machine: FakeNvml, environment: Mapping[str, str] | None = None) -> Topology:
    found = nvml_topology(machine, environment or {})
    assert found is not None
    return found


def test_a_gpu_is_described_by_what_nvml_says() -> None:
    device = detect(FakeNvml([FakeGpu(numa_node=1, switch_links=18)])).devices[0]
    assert (device.id, device.name, device.kind) == (
        "gpu0",
        "NVIDIA H100 80GB HBM3",
        DeviceKind.CUDA,
    )
    assert (device.memory_bytes, device.free_bytes) == (80 * 2**30, 79 * 2**30)
    assert (device.bandwidth_bytes_per_s, device.flops_per_s) == (3350e9, 989e12)
    assert (device.compute_capability, device.numa_node) == ("9.0", 1)
    assert (device.pci_id, device.uuid) == ("0000:00:00.0", "GPU-00000000-fake")
    assert device.rate_source is Source.SPECIFIED


def test_gpus_on_switches_are_linked_all_to_all() -> None:
    machine = detect(FakeNvml([FakeGpu(switch_links=18)] * 4))
    assert len(machine.links) == 6
    assert {link.type for link in machine.links} == {"NV18"}
    # 18 links of 20.6 GB/s.
    assert machine.links[0].bytes_per_s == pytest.approx(370.8e9)
    assert machine.links[0].source is Source.SPECIFIED
    assert machine.notes == ()


def test_direct_nvlinks_are_counted_for_each_pair() -> None:
    gpus = [FakeGpu("Tesla V100-SXM2-16GB", compute_capability=(7, 0))] * 3
    machine = detect(FakeNvml(gpus, nvlinks={(0, 1): 2, (1, 2): 1}))
    types = {(link.a, link.b): link.type for link in machine.links}
    assert types == {("gpu0", "gpu1"): "NV2", ("gpu1", "gpu2"): "NV1", ("gpu0", "gpu2"): "SYS"}
    first = machine.link("gpu0", "gpu1")
    assert first is not None
    assert first.bytes_per_s == 40e9


@pytest.mark.parametrize(
    ("level", "path", "gb_s"),
    [
        (0, "PIX", 24),
        (10, "PIX", 24),
        (20, "PXB", 24),
        (30, "PHB", 24),
        (40, "NODE", 24),
        (50, "SYS", 10),
        (99, "SYS", 10),
    ],
)
def test_without_nvlink_the_common_ancestor_decides(level: int, path: str, gb_s: float) -> None:
    machine = detect(FakeNvml([FakeGpu()] * 2, ancestors={(0, 1): level}))
    assert (machine.links[0].type, machine.links[0].bytes_per_s) == (path, gb_s * 1e9)
    assert machine.links[0].source is Source.ASSUMED
    assert any("PCIe" in note for note in machine.notes)


def test_the_slower_pcie_end_decides() -> None:
    gpus = [FakeGpu(pcie_generation=5), FakeGpu(pcie_generation=3)]
    machine = detect(FakeNvml(gpus, ancestors={(0, 1): 10}))
    assert machine.links[0].bytes_per_s == 12e9


def test_a_failing_gpu_is_left_out_and_named() -> None:
    machine = detect(FakeNvml([FakeGpu(switch_links=18), FakeGpu(fails=True), FakeGpu()]))
    assert [device.id for device in machine.devices] == ["gpu0", "gpu2"]
    assert machine.notes[0] == "gpu1 is left out: NVML says: GPU is lost"


def test_a_gpu_that_is_in_no_table_is_estimated_from_its_memory() -> None:
    # 10 GHz twice a clock over 256 bits: 2 · 1e10 · 32 = 640 GB/s.
    gpu = FakeGpu("Strange GPU", memory_clock_mhz=10_000, bus_width_bits=256)
    machine = detect(FakeNvml([gpu]))
    device = machine.devices[0]
    assert device.bandwidth_bytes_per_s == 640e9
    assert device.flops_per_s == 640e9 * 150
    assert device.rate_source is Source.ASSUMED
    assert "gpu0 (Strange GPU)" in machine.notes[0]


def test_what_a_driver_does_not_know_is_left_open() -> None:
    gpu = FakeGpu("Strange GPU", numa_node=None, pcie_generation=None)
    machine = detect(FakeNvml([gpu, gpu], ancestors={(0, 1): 10}))
    assert machine.devices[0].numa_node is None
    assert machine.devices[0].bandwidth_bytes_per_s == 500e9
    assert machine.links[0].bytes_per_s == 24e9


@pytest.mark.parametrize(
    ("name", "gb_s", "tflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 1555, 312),
        ("NVIDIA A100-SXM4-80GB", 2039, 312),
        ("NVIDIA A100 80GB PCIe", 1935, 312),
        ("NVIDIA A100-PCIE-40GB", 1555, 312),
        ("NVIDIA A10G", 600, 70),
        ("NVIDIA A10", 600, 125),
        ("NVIDIA H100 PCIe", 2000, 756),
        ("NVIDIA H100 NVL", 3900, 835),
        ("NVIDIA H200", 4800, 989),
        ("NVIDIA B200", 8000, 2250),
        ("NVIDIA L4", 300, 121),
        ("NVIDIA L40S", 864, 362),
        ("Tesla T4", 320, 65),
        ("Tesla V100-PCIE-32GB", 900, 112),
        ("Tesla V100-SXM2-16GB", 900, 125),
        ("NVIDIA GeForce RTX 3090", 936, 71),
        ("NVIDIA GeForce RTX 4090", 1008, 165),
    ],
)
def test_well_known_gpus_are_found_by_their_nvml_name(
    name: str, gb_s: float, tflops: float
) -> None:
    rates = known_rates(name)
    assert rates is not None
    assert (rates.bandwidth_bytes_per_s, rates.flops_per_s) == (gb_s * 1e9, tflops * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA T400", "NVIDIA L40", "CPU"])
def test_similar_names_are_not_taken_for_well_known_gpus(name: str) -> None:
    assert known_rates(name) is None


# --- CUDA_VISIBLE_DEVICES ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("2,0", ["gpu2", "gpu0"]),
        (" 1 ", ["gpu1"]),
        ("GPU-00000002", ["gpu2"]),
        ("GPU-00000001-fake,0", ["gpu1", "gpu0"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["gpu0"]),
        ("0,0,1", ["gpu0"]),
        ("GPU-0", []),
        ("MIG-1/2/3", []),
    ],
)
def test_visible_devices_are_honoured_as_cuda_does(value: str, ids: list[str]) -> None:
    machine = detect(FakeNvml([FakeGpu()] * 3), {"CUDA_VISIBLE_DEVICES": value})
    assert [device.id for device in machine.devices] == ids
    assert f"CUDA_VISIBLE_DEVICES={value} is honoured" in machine.notes
    assert len(machine.links) == len(ids) * (len(ids) - 1) // 2


def test_an_entry_that_names_no_gpu_is_noted() -> None:
    machine = detect(FakeNvml([FakeGpu()] * 2), {"CUDA_VISIBLE_DEVICES": "0,MIG-1/2/3"})
    assert any("'MIG-1/2/3' names no usable GPU" in note for note in machine.notes)


def test_indexes_of_different_gpus_are_unsure_unless_the_order_is_set() -> None:
    machine = FakeNvml([FakeGpu(), FakeGpu("NVIDIA L4")])
    unsure = detect(machine, {"CUDA_VISIBLE_DEVICES": "0"})
    assert any("CUDA_DEVICE_ORDER" in note for note in unsure.notes)
    by_uuid = detect(machine, {"CUDA_VISIBLE_DEVICES": "GPU-00000001-fake"})
    assert not any("CUDA_DEVICE_ORDER" in note for note in by_uuid.notes)
    assert any("CUDA_DEVICE_ORDER" in note for note in detect(machine).notes)
    sure = detect(machine, {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert not any("CUDA_DEVICE_ORDER" in note for note in sure.notes)


# --- Machines without a usable GPU ---------------------------------------------------------------


def test_without_a_driver_there_are_no_gpus() -> None:
    assert nvml_topology(FakeNvml(has_driver=False), {}) is None


@pytest.mark.parametrize("machine", [FakeNvml(has_driver=False), FakeNvml()])
def test_without_gpus_the_cpu_is_the_machine(
    machine: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = detect_topology(machine)
    assert [device.kind for device in found.devices] == [DeviceKind.CPU]


def test_gpus_that_all_fail_leave_the_cpu_and_their_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = detect_topology(FakeNvml([FakeGpu(fails=True)]))
    assert [device.id for device in found.devices] == ["cpu"]
    assert "gpu0 is left out" in found.notes[0]


def test_gpus_are_found_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = detect_topology(FakeNvml([FakeGpu()] * 2))
    assert [device.id for device in found.devices] == ["gpu1"]


def test_this_machine_can_be_read() -> None:
    assert detect_topology().devices
