"""What a computing process is told about its processors and its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from uellm_cli.hardware.cpu import usable_cores
from uellm_cli.hardware.processors import interleave_memory, numa_nodes, prepare


def never(nodes: Sequence[int]) -> bool:
    raise AssertionError(nodes)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on processors 0 to 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_a_runtime_gets_as_many_threads_as_there_are_cores() -> None:
    environ: dict[str, str] = {}
    prepare(environ, cores=6, nodes=[0], interleave=never)
    assert environ == {"OMP_NUM_THREADS": "6", "GOMP_SPINCOUNT": "10000"}


def test_what_the_user_has_set_stays() -> None:
    environ = {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "infinite"}
    prepare(environ, cores=6, nodes=[], interleave=never)
    assert environ == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "infinite"}


def test_memory_comes_from_all_nodes_where_there_are_several() -> None:
    asked: list[Sequence[int]] = []

    def interleave(nodes: Sequence[int]) -> bool:
        asked.append(nodes)
        return True

    prepare({}, cores=6, nodes=[0, 2], interleave=interleave)
    assert asked == [[0, 2]]


@pytest.mark.usefixtures("all_cpus")
def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in range(8):
        name = f"cpu/cpu{cpu}/topology/thread_siblings_list"
        write(tmp_path / name, f"{cpu % 4},{cpu % 4 + 4}\n")
    assert usable_cores(tmp_path / "none", tmp_path) == 4


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("250000 100000", 3), ("1000 100000", 1), ("max 100000", 8)],
)
def test_a_container_s_share_of_processors_is_all_there_is(
    quota: str, cores: int, tmp_path: Path
) -> None:
    write(tmp_path / "cpu.max", quota)
    assert usable_cores(tmp_path, tmp_path / "none") == cores


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8), ("a", 8)])
def test_the_older_cgroups_share_is_read_too(quota: str, cores: int, tmp_path: Path) -> None:
    write(tmp_path / "cpu/cpu.cfs_quota_us", quota)
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path, tmp_path / "none") == cores


@pytest.mark.usefixtures("all_cpus")
def test_nodes_count_whose_processors_may_be_used(tmp_path: Path) -> None:
    for node, cpus in {0: "0-3", 1: "4,6-7\n", 2: "8-11", 3: "\n", 10: "5"}.items():
        write(tmp_path / f"node/node{node}/cpulist", cpus)
    (tmp_path / "node/node4").mkdir()
    assert numa_nodes(tmp_path) == [0, 1, 10]


SCRIPT = """
from pathlib import Path
from uellm_cli.hardware.processors import interleave_memory
print(interleave_memory([0]))
# Memory taken after it, and what the system says of its policy.
taken = bytearray(64 << 20)
print(sum("interleave" in line for line in Path("/proc/self/numa_maps").read_text().splitlines()))
"""


@pytest.mark.skipif(
    not Path("/proc/self/numa_maps").exists(), reason="this system has no NUMA policies"
)
def test_the_system_interleaves_when_asked() -> None:
    # In a process of its own, for a policy stays.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    allowed, areas = done.stdout.split()
    assert (allowed, int(areas) > 0) in [("True", True), ("False", False)]


def test_a_machine_that_knows_no_such_call_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert interleave_memory([0, 1]) is False
