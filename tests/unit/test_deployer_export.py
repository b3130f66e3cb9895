"""Placements as transformers and JSON take them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

import sample_data
from tests.unit.deployer_cases import BARE, ONE_ROW, a_machine, a_model
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.export import (
    cuda_visible_devices,
    device_map,
    export_notes,
    max_memory,
    placement_document,
)
from uellm_cli.deployer.verify import check_placement
from uellm_cli.errors import PlacementError
from uellm_cli.hardware import load_topology
from uellm_cli.models.spec import load_model_spec
from uellm_cli.types import DeviceKind, Placement, Topology, Workload

SAMPLES = Path(sample_data.__file__).parent
MODELS = sorted((SAMPLES / "models").glob("*.json"))
TOPOLOGIES = sorted((SAMPLES / "topologies").glob("*.yaml"))


@pytest.fixture
def machine() -> Topology:
    return a_machine((1300, 1800, 1800))


@pytest.fixture
def split(machine: Topology) -> Placement:
    placement = PLACEMENTS.build("he", BARE).place(a_model((1000, 1000)), machine, ONE_ROW)
    assert len(placement.device_ids) == 2
    return placement


def positions(placement: Placement, *stages: int) -> tuple[int, ...]:
    """Where the devices of these stages are among the machine's g0, g1, …"""
    return tuple(int(placement.device_ids[stage].removeprefix("g")) for stage in stages)


@pytest.mark.parametrize(
    ("architecture", "first", "layer", "last"),
    [
        ("LlamaForCausalLM", "model.embed_tokens", "model.layers.0", "lm_head"),
        ("GPT2LMHeadModel", "transformer.wpe", "transformer.h.0", "transformer.ln_f"),
        ("GPTNeoXForCausalLM", "gpt_neox.embed_in", "gpt_neox.layers.0", "lm_head"),
        ("FalconForCausalLM", "transformer.word_embeddings", "transformer.h.0", "lm_head"),
        ("OPTForCausalLM", "model.decoder.embed_positions", "model.decoder.layers.0", "lm_head"),
        (
            "ChatGLMModel",
            "transformer.embedding",
            "transformer.encoder.layers.0",
            "transformer.output_layer",
        ),
    ],
)
def test_modules_have_their_familys_names(
    split: Placement, machine: Topology, architecture: str, first: str, layer: str, last: str
) -> None:
    model = replace(a_model((1000, 1000)), architecture=architecture)
    mapped = device_map(split, model, machine)
    assert (mapped[first], mapped[layer], mapped[last]) == (0, 0, 1)
    assert export_notes(model) == ()


@pytest.mark.parametrize("architecture", ["Strange", "Gemma3ForConditionalGeneration"])
def test_an_unknown_family_gets_llamas_names_and_a_note(
    split: Placement, machine: Topology, architecture: str
) -> None:
    model = replace(a_model((1000, 1000)), architecture=architecture)
    assert "model.layers.1" in device_map(split, model, machine)
    assert architecture in export_notes(model)[0]


def test_gpus_are_numbered_as_the_exported_variable_shows_them(
    split: Placement, machine: Topology
) -> None:
    assert cuda_visible_devices(split, machine) == ",".join(map(str, positions(split, 0, 1)))
    with_uuids = replace(
        machine, devices=tuple(replace(d, uuid=f"GPU-{d.id}") for d in machine.devices)
    )
    expected = ",".join(f"GPU-{name}" for name in split.device_ids)
    assert cuda_visible_devices(split, with_uuids) == expected
    assert list(max_memory(split, machine)) == [0, 1]
    document = placement_document(split, a_model((1000, 1000)), machine)
    assert document["device_map"]["model.layers.0"] == 0
    assert document["device_map"]["lm_head"] == 1
    assert list(document["max_memory"]) == ["0", "1"]


def test_a_cpu_is_called_cpu_and_needs_no_variable() -> None:
    machine = a_machine((9000,))
    host = replace(machine.devices[0], id="host", kind=DeviceKind.CPU)
    machine = replace(machine, devices=(host,))
    placement = PLACEMENTS.build("helr", BARE).place(a_model(), machine, ONE_ROW)
    assert set(device_map(placement, a_model(), machine).values()) == {"cpu"}
    assert cuda_visible_devices(placement, machine) is None
    assert max_memory(placement, machine) == {"cpu": 4200}


def test_the_document_is_json_and_adds_up(split: Placement, machine: Topology) -> None:
    model = a_model((1000, 1000))
    document = json.loads(json.dumps(placement_document(split, model, machine)))
    stages = document["replicas"][0]["stages"]
    assert [stage["total_bytes"] for stage in stages] == [
        stage.total_bytes for stage in split.replicas[0].stages
    ]
    assert sum(stage["weight_bytes"] for stage in stages) == model.weight_bytes == 2200
    assert document["step_source"] == "specified"
    assert len(document["device_map"]) == 2 + 2 + 2


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_sample_models_on_sample_machines_are_placed_or_refused_with_numbers(
    model: Path, topology: Path
) -> None:
    spec, machine = load_model_spec(model), load_topology(topology)
    for name in PLACEMENTS.names():
        begun = time.perf_counter()
        algorithm, workload = PLACEMENTS.build(name), Workload(16, 1024, 4096)
        if spec.weight_bytes > sum(device.free_bytes for device in machine.devices) * 0.9:
            with pytest.raises(PlacementError, match="GB are missing"):
                algorithm.place(spec, machine, workload)
        else:
            placement = algorithm.place(spec, machine, workload)
            assert check_placement(placement, spec, machine) == []
            placement_document(placement, spec, machine)
        assert time.perf_counter() - begun < 3.0


def test_a_70b_model_in_bfloat16_takes_two_h100() -> None:
    machine = load_topology(SAMPLES / "topologies" / "8xh100.yaml")
    model = load_model_spec(SAMPLES / "models" / "llama-70b.json")
    assert model.weight_bytes == pytest.approx(141.1e9, rel=1e-3)
    placement = PLACEMENTS.build("he").place(model, machine, Workload(16, 1024, 4096))
    assert placement.device_ids == ("gpu0", "gpu1")


def test_a_7b_model_runs_on_one_3090() -> None:
    machine = load_topology(SAMPLES / "topologies" / "4x3090.yaml")
    model = load_model_spec(SAMPLES / "models" / "llama-7b.json")
    placement = PLACEMENTS.build("helr").place(model, machine, Workload(8, 1024, 2048))
    assert placement.device_ids == ("gpu0",)
    assert placement.rows == 8


def test_a_mixture_of_experts_is_split_over_uneven_a100() -> None:
    machine = load_topology(SAMPLES / "topologies" / "2xa100.yaml")
    model = load_model_spec(SAMPLES / "models" / "moe-8x7b.json")
    placement = PLACEMENTS.build("helr").place(model, machine, Workload(16, 1024, 4096))
    layers = {s.device_id: s.last_layer - s.first_layer for s in placement.replicas[0].stages}
    # 79 GiB are free on the first and 52 GiB on the second.
    assert layers["gpu0"] > layers["gpu1"]
