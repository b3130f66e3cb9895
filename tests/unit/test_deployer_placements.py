"""The placement algorithms: what holds for all of them, and what each one prefers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.unit.deployer_cases import BARE, MIB, ONE_ROW, a_gpu, a_machine, a_model, placement_cases
from uellm_cli.deployer import DEFAULT_PLACEMENT, PLACEMENTS
from uellm_cli.deployer.verify import check_placement
from uellm_cli.errors import PlacementError, UsageError
from uellm_cli.types import (
    DeviceKind,
    ModelSpec,
    Placement,
    PlacementAlgorithm,
    Replica,
    Source,
    Stage,
    Topology,
    Workload,
)

Case = tuple[ModelSpec, Topology, Workload]


def bare(name: str, **options: float) -> PlacementAlgorithm:
    return PLACEMENTS.build(name, BARE | options)


def layers_by_device(placement: Placement) -> dict[str, tuple[int, int]]:
    stages = placement.replicas[0].stages
    return {stage.device_id: (stage.first_layer, stage.last_layer) for stage in stages}


@settings(max_examples=60, deadline=None)
@given(placement_cases())
def test_every_algorithm_places_every_layer_once_within_memory(case: Case) -> None:
    model, machine, workload = case
    for name in PLACEMENTS.names():
        try:
            placement = bare(name).place(model, machine, workload)
        except PlacementError:
            continue
        assert check_placement(placement, model, machine) == []
        assert placement.algorithm == name
        assert 1 <= placement.rows <= workload.sequences
        assert placement.step_s > 0


@settings(max_examples=40, deadline=None)
@given(placement_cases())
def test_all_algorithms_agree_on_whether_the_model_fits(case: Case) -> None:
    outcomes = set()
    for name in PLACEMENTS.names():
        try:
            outcomes.add(bare(name).place(*case).rows)
        except PlacementError:
            outcomes.add(0)
    assert len(outcomes) == 1


def test_the_default_is_registered() -> None:
    assert DEFAULT_PLACEMENT in PLACEMENTS.names()


def test_he_takes_the_fewest_devices_and_fills_them_most() -> None:
    # 2 layers of 1,000 + embedding and head of 100 each + 10 KV bytes a layer + 220 activations
    # (2 bytes · 10 tokens · hidden size 1 · 11) + 4 of logits = 2,444 bytes: 3,000 is enough.
    model = a_model((1000, 1000))
    machine = a_machine((9000, 3000, 2000, 2000))
    placement = bare("he").place(model, machine, ONE_ROW)
    assert layers_by_device(placement) == {"g1": (0, 2)}
    assert placement.replicas[0].stages[0].total_bytes == 2444


def test_lr_takes_the_faster_devices_even_if_they_are_more() -> None:
    # The slow GPU holds all 4 layers, 4,200 bytes at 1 MB/s = 4.2 ms; two fast ones take 42 µs
    # and a transfer of 10 µs.
    model = a_model()
    slow, *fast = (a_gpu("slow", 9000, 1e6), a_gpu("g1", 3000, 1e8), a_gpu("g2", 3000, 1e8))
    machine = replace(a_machine((1, 1, 1)), devices=(slow, *fast))
    assert layers_by_device(bare("lr").place(model, machine, ONE_ROW)).keys() == {"g1", "g2"}
    assert layers_by_device(bare("he").place(model, machine, ONE_ROW)).keys() == {"slow"}


def test_helr_may_use_more_devices_only_within_its_tolerance() -> None:
    model = a_model()
    devices = (a_gpu("slow", 9000, 1e6), a_gpu("g1", 3000, 1e8), a_gpu("g2", 3000, 1e8))
    machine = replace(a_machine((1, 1, 1)), devices=devices)
    # Fewest is 1: a tolerance of 0.9 allows floor(1.9) = 1 device, one of 1.0 allows 2.
    for tolerance, used in ((0.1, {"slow"}), (0.9, {"slow"}), (1.0, {"g1", "g2"})):
        placement = bare("helr", tolerance=tolerance).place(model, machine, ONE_ROW)
        assert set(placement.device_ids) == used


def test_equally_fast_placements_prefer_the_device_with_more_free_memory() -> None:
    placement = bare("helr").place(a_model(), a_machine((6000, 9000)), ONE_ROW)
    assert placement.device_ids == ("g1",)


def test_equally_fast_cuts_leave_the_tightest_stage_the_most_room_for_kv() -> None:
    # 8 alike layers on 2 alike devices: any cut that fits takes as long; half and half is roomiest.
    placement = bare("lr").place(a_model((1000,) * 8), a_machine((8000, 8000)), ONE_ROW)
    assert layers_by_device(placement) == {"g0": (0, 4), "g1": (4, 8)}


def test_sequences_are_halved_until_they_fit_and_a_note_says_so() -> None:
    # 2 layers of 10 KV bytes a token: one sequence of 10 tokens takes 200 bytes. Beside weights
    # (2,200), activations (220 for 10 tokens, 22 more for each further row of prompt) and logits
    # there is room for 2 sequences of 8, not for 4.
    model = a_model((1000, 1000), kv_bytes_per_token=10)
    placement = bare("helr", prefill_tokens=1).place(model, a_machine((3000,)), Workload(8, 10, 10))
    assert placement.rows == 2
    assert "room for 2 of 8 sequences" in placement.notes[0]


def test_room_is_made_for_one_sequence_of_the_longest_size() -> None:
    model = a_model((1000,), kv_bytes_per_token=1)
    placement = bare("helr").place(model, a_machine((10**6,)), Workload(3, 10, 500))
    assert placement.replicas[0].stages[0].kv_bytes == 2 * 10 + 500


def test_idle_devices_are_noted() -> None:
    placement = bare("helr").place(a_model(), a_machine((9000,) * 8), ONE_ROW)
    assert "one device holds the model and 7 more stay idle" in placement.notes[0]


def test_cpu_devices_are_not_used_beside_gpus() -> None:
    machine = a_machine((9000, 9000))
    cpu = replace(machine.devices[0], id="cpu", kind=DeviceKind.CPU, bandwidth_bytes_per_s=1e15)
    both = replace(machine, devices=(cpu, *machine.devices))
    assert "cpu" not in bare("lr").place(a_model(), both, ONE_ROW).device_ids
    alone = replace(machine, devices=(cpu,))
    assert bare("lr").place(a_model(), alone, ONE_ROW).device_ids == ("cpu",)


def test_overhead_and_margin_are_kept_free() -> None:
    # 1,000 MiB free, 10 % margin and 0.5 GiB of context leave 900 - 512 = 388 MiB.
    model = a_model((388 * MIB,), embedding=0, head=0, kv_bytes_per_token=0)
    machine = a_machine((1000 * MIB,))
    options = {"margin": 0.1, "cuda_overhead_gib": 0.5}
    with pytest.raises(PlacementError):
        PLACEMENTS.build("helr", options).place(model, machine, ONE_ROW)
    smaller = a_model((387 * MIB,), embedding=0, head=0, kv_bytes_per_token=0)
    placement = PLACEMENTS.build("helr", options).place(smaller, machine, ONE_ROW)
    assert placement.replicas[0].stages[0].overhead_bytes == 512 * MIB


def test_a_tied_head_is_copied_to_another_device_only() -> None:
    tied = a_model((1000, 1000), embedding=500, head=0)
    whole = bare("he").place(tied, a_machine((9000,)), ONE_ROW)
    assert whole.replicas[0].stages[0].weight_bytes == 2500
    split = bare("he").place(tied, a_machine((1800, 1800)), ONE_ROW)
    assert [stage.weight_bytes for stage in split.replicas[0].stages] == [1500, 1500]


def test_a_model_that_is_too_large_says_by_how_much() -> None:
    # 3 layers of 10 GB and 1 GB each of embedding and head; 1 MB of KV a token and layer for
    # 1,000 tokens is 3 GB; two GPUs of 12 GB.
    giga = 10**9
    model = a_model((10 * giga,) * 3, kv_bytes_per_token=10**6, embedding=giga, head=giga)
    with pytest.raises(PlacementError) as caught:
        bare("helr").place(model, a_machine((12 * giga,) * 2), Workload(4, 1000, 1000))
    assert str(caught.value) == (
        "the model needs 32.0 GB for weights and 3.0 GB for one sequence of 1000 tokens, but the "
        "2 usable devices have 24.0 GB free (24.0 GB beside activations, overhead and margin); "
        "11.0 GB are missing — use more devices, a quantised model or fewer tokens"
    )


def test_layers_that_cannot_be_split_are_named_as_the_reason() -> None:
    # 3 layers of 1,000 on two devices of 1,700: 3,600 of 3,400 - no; on 1,900, 3,400 fit in all,
    # but one device would have to hold two layers.
    model = a_model((1000,) * 3, kv_bytes_per_token=0)
    with pytest.raises(PlacementError, match="no split into whole layers fits"):
        bare("lr").place(model, a_machine((1900, 1900)), ONE_ROW)


def test_a_machine_without_devices_holds_nothing() -> None:
    with pytest.raises(PlacementError, match="0 usable devices have"):
        bare("lr").place(a_model(), Topology((), (), "nothing"), ONE_ROW)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("helr", {"tolerance": -0.1}),
        ("helr", {"margin": 1.0}),
        ("he", {"cuda_overhead_gib": -1}),
        ("lr", {"prefill_tokens": 0}),
        ("lr", {"tolerance": 0.1}),
    ],
)
def test_an_option_that_means_nothing_is_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        PLACEMENTS.build(name, options)


def test_the_checker_finds_each_kind_of_defect() -> None:
    model, machine = a_model((1000, 1000)), a_machine((3000, 3000))
    good = bare("he").place(model, machine, ONE_ROW)

    def with_stages(*stages: Stage) -> Placement:
        return replace(good, replicas=(Replica(stages),))

    stage = good.replicas[0].stages[0]
    half = replace(stage, last_layer=1)
    assert check_placement(good, model, machine) == []
    defects = {
        "not 0 to 1 in order": with_stages(half),
        "used twice": with_stages(half, replace(half, first_layer=1, last_layer=2)),
        "not in the topology": with_stages(replace(stage, device_id="g9")),
        "has no layer": with_stages(stage, replace(stage, device_id="g1", first_layer=2)),
        "are on no device": with_stages(replace(stage, weight_bytes=1)),
        "needs": with_stages(replace(stage, kv_bytes=10_000)),
        "no replica": replace(good, replicas=()),
    }
    for words, placement in defects.items():
        assert any(words in problem for problem in check_placement(placement, model, machine))


def test_the_source_of_a_step_is_the_least_believable_of_its_devices() -> None:
    machine = a_machine((1800, 1800))
    guessed = replace(machine.devices[1], rate_source=Source.ASSUMED)
    mixed = replace(machine, devices=(machine.devices[0], guessed))
    tight = a_model((1000, 1000))
    assert bare("lr").place(tight, mixed, ONE_ROW).step_source is Source.ASSUMED
    assert bare("lr").place(tight, machine, ONE_ROW).step_source is Source.SPECIFIED
