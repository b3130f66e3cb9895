"""Devices that a search need not tell apart.

Two devices are interchangeable when they have the same memory and rates and the same link to every
other device: swapping them changes no placement's cost. This is an equivalence (if a~b and b~c,
all links among the three are equal), so a search over how many of each class are used is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod

from uellm_cli.hardware.links import assumed_link
from uellm_cli.types import Device, Link, Topology

# States of the search, used devices by class of the last: each takes some 15 µs at 80 layers.
MAX_STATES = 50_000
COARSE_FREE_BYTES = 2**30

Key = Callable[[Device], Hashable]


@dataclass(frozen=True, slots=True)
class DeviceClasses:
    """Classes in the order of their first member; `links[p][c]` is the link from class to class.

    A class's `device` stands for its members. Of a class with one member, its link to itself is
    never used.
    """

    devices: tuple[Device, ...]
    members: tuple[tuple[Device, ...], ...]
    links: tuple[tuple[Link, ...], ...]
    notes: tuple[str, ...] = ()


def device_classes(
    devices: Sequence[Device], topology: Topology, max_states: int = MAX_STATES
) -> DeviceClasses:
    """Groups of interchangeable devices, or of similar ones where those are too many to search.

    Similar ones are taken at their worst (least memory, lowest rates, slowest link), so that what
    fits and what it costs holds for all of them; a note says so.
    """
    between = _LinkTable(topology)
    exact = _exact_groups(devices, between)
    if _states(exact) <= max_states:
        return _classes(exact, between)
    groups, words = _coarser_groups(devices, max_states)
    note = (
        f"{len(devices)} devices of {len(exact)} kinds are too many to tell all apart: {words} "
        "are taken to be alike, with the least memory and slowest link among them"
    )
    return replace(_classes(groups, between), notes=(note,))


class _LinkTable:
    """Links by pair; `Topology.link` searches a list."""

    def __init__(self, topology: Topology) -> None:
        self._links = {frozenset((link.a, link.b)): link for link in topology.links}

    def get(self, a: Device, b: Device) -> Link:
        return self._links.get(frozenset((a.id, b.id))) or assumed_link(a.id, b.id)

    def speed(self, a: Device, b: Device) -> tuple[float, float]:
        link = self.get(a, b)
        return link.bytes_per_s, link.latency_s


def _rates(device: Device) -> Hashable:
    return device.kind, device.bandwidth_bytes_per_s, device.flops_per_s


def _exact_key(device: Device) -> Hashable:
    return device.free_bytes, _rates(device)


def _coarse_key(device: Device) -> Hashable:
    return device.free_bytes // COARSE_FREE_BYTES, _rates(device)


def _one_key(device: Device) -> Hashable:
    return device.kind


_COARSER: tuple[tuple[Key, str], ...] = (
    (_exact_key, "those of equal memory and rates"),
    (_coarse_key, "those of equal rates and about equal memory"),
    (_rates, "those of equal rates"),
    (_one_key, "all"),
)


def _grouped(devices: Sequence[Device], key: Key) -> list[list[Device]]:
    groups: dict[Hashable, list[Device]] = {}
    for device in devices:
        groups.setdefault(key(device), []).append(device)
    return list(groups.values())


def _coarser_groups(devices: Sequence[Device], max_states: int) -> tuple[list[list[Device]], str]:
    """The finest of the coarser groupings that can be searched, and what it takes for alike."""
    for key, words in _COARSER[:-1]:
        groups = _grouped(devices, key)
        if _states(groups) <= max_states:
            return groups, words
    key, words = _COARSER[-1]
    return _grouped(devices, key), words


def _exact_groups(devices: Sequence[Device], between: _LinkTable) -> list[list[Device]]:
    groups: list[list[Device]] = []
    for device in devices:
        for group in groups:
            if _are_interchangeable(group[0], device, devices, between):
                group.append(device)
                break
        else:
            groups.append([device])
    return groups


def _are_interchangeable(
    a: Device, b: Device, devices: Sequence[Device], between: _LinkTable
) -> bool:
    if _exact_key(a) != _exact_key(b):
        return False
    others = (d for d in devices if d.id not in (a.id, b.id))
    return all(between.speed(a, d) == between.speed(b, d) for d in others)


def _states(groups: Sequence[Sequence[Device]]) -> int:
    return prod(len(group) + 1 for group in groups) * len(groups)


def _classes(groups: Sequence[Sequence[Device]], between: _LinkTable) -> DeviceClasses:
    return DeviceClasses(
        devices=tuple(_worst(group) for group in groups),
        members=tuple(tuple(group) for group in groups),
        links=tuple(tuple(_worst_link(a, b, between) for b in groups) for a in groups),
    )


def _worst(group: Sequence[Device]) -> Device:
    return replace(
        group[0],
        free_bytes=min(d.free_bytes for d in group),
        bandwidth_bytes_per_s=min(d.bandwidth_bytes_per_s for d in group),
        flops_per_s=min(d.flops_per_s for d in group),
    )


def _worst_link(a: Sequence[Device], b: Sequence[Device], between: _LinkTable) -> Link:
    pairs = [between.get(x, y) for x in a for y in b if x.id != y.id]
    if not pairs:
        return assumed_link(a[0].id, b[0].id)
    slowest = min(pairs, key=lambda link: link.bytes_per_s)
    return replace(slowest, latency_s=max(link.latency_s for link in pairs))
