"""The search for placements against brute force, and what must hold of it whatever the input."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings

from tests.unit.deployer_cases import BARE, ONE_ROW, a_machine, a_model, placement_cases
from uellm_cli.deployer.classes import device_classes
from uellm_cli.deployer.memory import MemoryRules, make_stage, usable_bytes
from uellm_cli.deployer.search import search
from uellm_cli.timing.roofline import links_between, stage_decode_s, transfer_s
from uellm_cli.types import Device, ModelSpec, Topology, Workload

RULES = MemoryRules(**BARE, prefill_tokens=4096)

Case = tuple[ModelSpec, Topology, Workload]


def all_placements(case: Case) -> Iterator[tuple[tuple[Device, ...], tuple[range, ...]]]:
    """Every ordered choice of devices with every cut into layers."""
    model, machine, _ = case
    layers = len(model.layers)
    for count in range(1, min(len(machine.devices), layers) + 1):
        for cut in combinations(range(1, layers), count - 1):
            bounds = (0, *cut, layers)
            stages = tuple(range(a, b) for a, b in pairwise(bounds))
            for devices in permutations(machine.devices, count):
                yield devices, stages


def seconds_by_hand(case: Case, devices: tuple[Device, ...], stages: tuple[range, ...]) -> float:
    """One stage after another, from the scalar functions; infinite where one does not fit."""
    model, machine, workload = case
    rows, tokens = workload.sequences, workload.tokens_per_sequence
    for device, layers in zip(devices, stages, strict=True):
        stage = make_stage(model, device, layers, workload, RULES)
        if stage.total_bytes > usable_bytes(device, RULES):
            return float("inf")
    computing = (
        stage_decode_s(model, device, layers.start, layers.stop, rows, tokens)
        for device, layers in zip(devices, stages, strict=True)
    )
    between = links_between(machine, [device.id for device in devices])
    return sum(computing) + sum(transfer_s(model, link, rows) for link in between)


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    sizes = [draw.randint(500, 3000) for _ in range(draw.randint(2, 6))]
    model = a_model(sizes, draw.choice((0, 5, 30)), embedding=draw.randint(0, 1500))
    if seed % 3 == 0:
        model = replace(model, head_bytes=0)
    count = draw.randint(1, 5)
    kinds = draw.choices((4000, 6000, 9000, 15_000), k=draw.choice((1, 2, 3)))
    free = [draw.choice(kinds) for _ in range(count)]
    speeds = {(i, j): draw.choice((0.001, 0.1, 10)) for j in range(count) for i in range(j)}
    machine = a_machine(free, speeds)
    rates = [draw.choice((1e6, 1e7)) if seed % 2 else 1e6 for _ in range(count)]
    devices = tuple(
        replace(device, bandwidth_bytes_per_s=rate)
        for device, rate in zip(machine.devices, rates, strict=True)
    )
    return model, replace(machine, devices=devices), Workload(draw.randint(1, 4), 8, 12)


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(0, 100, 20)])
def test_lowest_latency_equals_brute_force_over_physical_devices(seeds: range) -> None:
    for seed in seeds:
        case = random_case(seed)
        by_hand = min(seconds_by_hand(case, *plan) for plan in all_placements(case))
        found = search(*case, RULES).candidates
        best = min((c.step_s for c in found), default=float("inf"))
        assert best == pytest.approx(by_hand, rel=1e-9), f"seed {seed}"


@pytest.mark.parametrize("seeds", [range(100, 115)])
def test_every_candidate_costs_what_its_stages_and_transfers_cost(seeds: range) -> None:
    for seed in seeds:
        case = random_case(seed)
        for candidate in search(*case, RULES).candidates:
            by_hand = seconds_by_hand(case, candidate.devices, candidate.layers)
            assert candidate.step_s == pytest.approx(by_hand, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(placement_cases())
def test_renumbering_devices_does_not_change_the_cost(case: Case) -> None:
    model, machine, workload = case
    mirrored = replace(machine, devices=machine.devices[::-1])
    one = sorted(c.step_s for c in search(model, machine, workload, RULES).candidates)
    other = sorted(c.step_s for c in search(model, mirrored, workload, RULES).candidates)
    assert one == pytest.approx(other, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(placement_cases())
def test_more_memory_is_never_slower_and_never_needs_more_devices(case: Case) -> None:
    model, machine, workload = case
    larger = replace(
        machine,
        devices=tuple(
            replace(d, memory_bytes=2 * d.memory_bytes, free_bytes=2 * d.free_bytes)
            for d in machine.devices
        ),
    )
    before = search(model, machine, workload, RULES).candidates
    after = search(model, larger, workload, RULES).candidates
    for candidate in before:
        assert min(c.step_s for c in after) <= candidate.step_s * (1 + 1e-9)
        assert min(len(c.devices) for c in after) <= len(candidate.devices)


def test_a_slow_link_is_avoided() -> None:
    # Two layers of 1,000 bytes on devices of 1,500: two devices, but 0-1 is a thousand times
    # slower than 1-2.
    model = a_model((1000, 1000), kv_bytes_per_token=0)
    machine = a_machine((1500, 1500, 1500), {(0, 1): 1e-6, (0, 2): 1e-6, (1, 2): 1e-3})
    found = search(model, machine, ONE_ROW, RULES).candidates
    fastest = min(found, key=lambda c: c.step_s)
    assert {device.id for device in fastest.devices} == {"g1", "g2"}


def test_equal_gpus_with_equal_links_are_one_class() -> None:
    machine = a_machine((1000,) * 64)
    classes = device_classes(machine.devices, machine)
    assert [len(members) for members in classes.members] == [64]
    assert classes.notes == ()


def test_pairs_behind_their_own_switches_are_two_classes() -> None:
    machine = a_machine((1000,) * 4, {(0, 1): 24, (2, 3): 24})
    classes = device_classes(machine.devices, machine)
    assert [[d.id for d in members] for members in classes.members] == [["g0", "g1"], ["g2", "g3"]]
    assert classes.links[0][0].bytes_per_s == 24e9
    assert classes.links[0][1].bytes_per_s == 10e9


def test_too_many_kinds_are_merged_at_their_worst_and_a_note_says_so() -> None:
    # 20 GPUs, each of its own free memory: 2**20 sets of devices.
    machine = a_machine([5000 + i for i in range(20)], {(0, 1): 0.5})
    classes = device_classes(machine.devices, machine)
    assert [len(members) for members in classes.members] == [20]
    assert classes.devices[0].free_bytes == 5000
    assert classes.links[0][0].bytes_per_s == 0.5e9
    assert "20 devices of 20 kinds" in classes.notes[0]
    found = search(a_model(), machine, ONE_ROW, RULES)
    assert found.candidates
    assert found.notes == classes.notes


def test_even_devices_that_are_all_different_can_be_searched() -> None:
    machine = a_machine([5000 * 2**30 // (i + 1) for i in range(20)])
    devices = tuple(
        replace(d, bandwidth_bytes_per_s=1e9 + i) for i, d in enumerate(machine.devices)
    )
    classes = device_classes(devices, replace(machine, devices=devices))
    assert len(classes.members) == 1
    assert classes.devices[0].bandwidth_bytes_per_s == 1e9
