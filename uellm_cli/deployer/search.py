"""All that is worth knowing of layer placements: the fastest for each set of devices used.

UELLM's HELR is a dynamic programme over the topology (arXiv 2409.14961); its recurrence is not
public, so this one is in its spirit. Over states (devices used of each class, layers placed, class
of the last device):

    F[u, c, i] = min over k < i, p of  F[u - c, p, k] + transfer(p, c) + stage(c, k, i)

It is exact: every ordered choice of devices and every cut into consecutive layers is covered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from uellm_cli.deployer.classes import DeviceClasses, device_classes
from uellm_cli.deployer.cost import FloatMatrix, stage_seconds, stage_sizes
from uellm_cli.deployer.memory import MemoryRules, usable_devices
from uellm_cli.timing.roofline import transfer_s
from uellm_cli.types import Device, ModelSpec, Topology, Workload

Used = tuple[int, ...]
FloatVector = NDArray[np.float64]
IntVector = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to split the model: devices in order, the layers of each, and a step's seconds."""

    devices: tuple[Device, ...]
    layers: tuple[range, ...]
    step_s: float

    @property
    def free_bytes(self) -> int:
        return sum(device.free_bytes for device in self.devices)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The fastest candidate for every choice of devices that can hold the model."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _State:
    """Best seconds for each number of layers placed, and where each of them came from."""

    seconds: FloatVector
    previous_layer: IntVector
    previous_class: IntVector


def rank_s(candidate: Candidate) -> float:
    """Seconds to compare by: sums of the same numbers in another order count as equal."""
    return float(f"{candidate.step_s:.9g}")


def search(
    model: ModelSpec, topology: Topology, workload: Workload, rules: MemoryRules
) -> SearchResult:
    """Candidates in a fixed order; none when the model and the workload's KV do not fit."""
    classes = device_classes(usable_devices(topology), topology)
    sizes = stage_sizes(model, workload, rules)
    stages = [stage_seconds(sizes, device, rules) for device in classes.devices]
    transfers = [
        [transfer_s(model, link, workload.sequences) for link in row] for row in classes.links
    ]
    states = _fill(classes, stages, transfers)
    ends = ((used, states[used]) for used in states)
    candidates = (_fastest(used, last, states, classes) for used, last in ends)
    return SearchResult(tuple(c for c in candidates if c is not None), classes.notes)


def _fill(
    classes: DeviceClasses, stages: Sequence[FloatMatrix], transfers: Sequence[Sequence[float]]
) -> dict[Used, dict[int, _State]]:
    """The table, filled from fewer devices to more; states that nothing reaches are left out."""
    states: dict[Used, dict[int, _State]] = {}
    for used in _used_vectors([len(members) for members in classes.members]):
        reached = {
            last: state
            for last in range(len(stages))
            if used[last] > 0
            and (state := _best(last, _without(used, last), states, stages, transfers)) is not None
        }
        if reached:
            states[used] = reached
    return states


def _best(
    last: int,
    before: Used,
    states: dict[Used, dict[int, _State]],
    stages: Sequence[FloatMatrix],
    transfers: Sequence[Sequence[float]],
) -> _State | None:
    """The state that ends with one more stage on class `last`; None if no such stage fits."""
    arrival, came_from = _arrival(last, before, states, transfers, len(stages[last]))
    if arrival is None:
        return None
    totals = arrival[:, None] + stages[last]
    previous_layer = totals.argmin(axis=0)
    seconds = totals.min(axis=0)
    if not np.isfinite(seconds).any():
        return None
    return _State(seconds, previous_layer, came_from[previous_layer])


def _arrival(
    last: int,
    before: Used,
    states: dict[Used, dict[int, _State]],
    transfers: Sequence[Sequence[float]],
    width: int,
) -> tuple[FloatVector | None, IntVector]:
    """Seconds until class `last` has its input, by layers placed, and the class it came from."""
    came_from = np.full(width, -1, dtype=np.int64)
    if not any(before):
        start = np.full(width, np.inf)
        start[0] = 0.0
        return start, came_from
    best: FloatVector | None = None
    for previous, state in states.get(before, {}).items():
        arriving = state.seconds + transfers[previous][last]
        if best is None:
            best = arriving
            came_from[:] = previous
        else:
            came_from[arriving < best] = previous
            best = np.minimum(best, arriving)
    return best, came_from


def _fastest(
    used: Used,
    ends: dict[int, _State],
    states: dict[Used, dict[int, _State]],
    classes: DeviceClasses,
) -> Candidate | None:
    last = min(ends, key=lambda c: (ends[c].seconds[-1], c))
    seconds = float(ends[last].seconds[-1])
    if not np.isfinite(seconds):
        return None
    path = list(_path(used, last, states))[::-1]
    taken: Counter[int] = Counter()
    devices = []
    for number, _ in path:
        devices.append(classes.members[number][taken[number]])
        taken[number] += 1
    return Candidate(tuple(devices), tuple(layers for _, layers in path), seconds)


def _path(
    used: Used, last: int, states: dict[Used, dict[int, _State]]
) -> Iterable[tuple[int, range]]:
    """Class and layers of each stage, from the last to the first."""
    state = states[used][last]
    end = len(state.seconds) - 1
    while True:
        begin = int(state.previous_layer[end])
        yield last, range(begin, end)
        if begin == 0:
            return
        used, last = _without(used, last), int(state.previous_class[end])
        state, end = states[used][last], begin


def _used_vectors(counts: Sequence[int]) -> list[Used]:
    vectors = product(*(range(count + 1) for count in counts))
    # Fewer first, and then the topology's first devices: `min` keeps the first of equals.
    return sorted((v for v in vectors if any(v)), key=lambda v: (sum(v), [-n for n in v]))


def _without(used: Used, number: int) -> Used:
    return (*used[:number], used[number] - 1, *used[number + 1 :])
