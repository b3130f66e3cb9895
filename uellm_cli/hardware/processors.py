"""What a process that computes tells its runtime and the system, before torch is loaded.

Each of these has a default that is right for a machine that does nothing else and is all ours.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

from uellm_cli.hardware.cpu import SYSTEM_ROOT, allowed_cpus, usable_cores

# Iterations that a waiting OpenMP thread spins before it sleeps. By default so many that beside
# another busy process a step takes a hundred times as long (docs/LOG.md).
SPINS = "10000"

# Linux's numbers of set_mempolicy and get_mempolicy, and of the policies.
_SYSTEM_CALLS = {"x86_64": (238, 239), "aarch64": (237, 236)}
_DEFAULT_POLICY, _INTERLEAVE = 0, 3
_MOST_NODES = 1024

# Sets, and tells, the memory policy of this thread and those it will start: nodes to interleave
# over; whether that is in force, which it is not where another policy was chosen.
Interleave = Callable[[Sequence[int]], bool]


def prepare(
    environ: MutableMapping[str, str],
    cores: int | None = None,
    nodes: Sequence[int] | None = None,
    interleave: Interleave | None = None,
) -> None:
    """Sets threads and memory for this process; what the user has set stays.

    As many threads as there are `cores`, by default those that this process may use: a runtime
    left alone counts hyperthreads, and all of a host's cores where a container has a few of them.
    Memory comes from all NUMA `nodes` in turn, where there are several: weights that all threads
    read would else lie on the node of the one that loaded them, behind its bandwidth alone.
    """
    environ.setdefault("OMP_NUM_THREADS", str(cores or usable_cores()))
    environ.setdefault("GOMP_SPINCOUNT", SPINS)
    own = numa_nodes() if nodes is None else nodes
    if len(own) > 1:
        (interleave or interleave_memory)(own)


def numa_nodes(system_root: Path = SYSTEM_ROOT) -> list[int]:
    """The nodes with processors that this process may run on."""
    allowed = allowed_cpus()
    nodes = []
    for folder in (system_root / "node").glob("node[0-9]*"):
        try:
            cpus = _numbers((folder / "cpulist").read_text())
        except (OSError, ValueError):
            continue
        if cpus & allowed:
            nodes.append(int(folder.name.removeprefix("node")))
    return sorted(nodes)


def interleave_memory(nodes: Sequence[int]) -> bool:
    """An `Interleave` by Linux's own call; False too where the system knows none or refuses."""
    numbers = _SYSTEM_CALLS.get(platform.machine())
    if os.name != "posix" or platform.system() != "Linux" or numbers is None:
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    set_policy, get_policy = numbers
    policy = ctypes.c_int(-1)
    # Somebody may have chosen one for us, with numactl say.
    if call(get_policy, ctypes.byref(policy), None, 0, None, 0) != 0:
        return False
    if policy.value != _DEFAULT_POLICY:
        return policy.value == _INTERLEAVE
    mask = sum(1 << node for node in nodes if node < _MOST_NODES)
    words = [mask >> shift & (2**64 - 1) for shift in range(0, _MOST_NODES, 64)]
    bits = (ctypes.c_uint64 * len(words))(*words)
    return bool(call(set_policy, _INTERLEAVE, bits, ctypes.c_ulong(_MOST_NODES)) == 0)


def _numbers(ranges: str) -> set[int]:
    """Of Linux's "0-3,8,10-11"."""
    numbers: set[int] = set()
    for part in filter(None, ranges.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
