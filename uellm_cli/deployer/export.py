"""A placement as others take it: `device_map` and `max_memory` of transformers, and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from uellm_cli.types import DeviceKind, ModelSpec, Placement, Topology

DeviceName = int | str


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """What a family's modules are called: before the layers, a layer, and after them."""

    first: tuple[str, ...]
    layer: str
    last: tuple[str, ...]


_LLAMA = ModuleNames(
    ("model.embed_tokens", "model.rotary_emb"), "model.layers.{}", ("model.norm", "lm_head")
)

# Module names of transformers 5 (`modeling_*.py`); ChatGLM's of its own `modeling_chatglm.py`.
# Keys are what the architecture's name begins with, in lower case and without underscores.
_MODULES: Mapping[str, ModuleNames] = {
    "gpt2": ModuleNames(
        ("transformer.wte", "transformer.wpe", "transformer.drop"),
        "transformer.h.{}",
        ("transformer.ln_f", "lm_head"),
    ),
    "gptneox": ModuleNames(
        ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb"),
        "gpt_neox.layers.{}",
        ("gpt_neox.final_layer_norm", "lm_head"),
    ),
    "falcon": ModuleNames(
        ("transformer.word_embeddings", "transformer.rotary_emb"),
        "transformer.h.{}",
        ("transformer.ln_f", "lm_head"),
    ),
    "bloom": ModuleNames(
        ("transformer.word_embeddings", "transformer.word_embeddings_layernorm"),
        "transformer.h.{}",
        ("transformer.ln_f", "lm_head"),
    ),
    "opt": ModuleNames(
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        "model.decoder.layers.{}",
        ("model.decoder.final_layer_norm", "lm_head"),
    ),
    "chatglm": ModuleNames(
        ("transformer.embedding", "transformer.rotary_pos_emb"),
        "transformer.encoder.layers.{}",
        ("transformer.encoder.final_layernorm", "transformer.output_layer"),
    ),
}
_LLAMA_LIKE = re.compile(
    r"llama|mistral|mixtral|qwen|gemma|phi3|cohere|deepseek|gptoss|granite|olmo|starcoder|glm"
)


def device_map(placement: Placement, model: ModelSpec, topology: Topology) -> dict[str, DeviceName]:
    """The device of each module of the first replica, for transformers' `from_pretrained`.

    GPUs are numbered in the placement's order, as a process sees them that is started with
    `cuda_visible_devices`: CUDA's own order need not be NVML's. A tied head is mapped to the last
    stage like any other.
    """
    names = _module_names(model.architecture) or _LLAMA
    devices = _device_names(placement, topology)
    stages = placement.replicas[0].stages
    mapped: dict[str, DeviceName] = dict.fromkeys(names.first, devices[stages[0].device_id])
    for stage in stages:
        for layer in range(stage.first_layer, stage.last_layer):
            mapped[names.layer.format(layer)] = devices[stage.device_id]
    mapped |= dict.fromkeys(names.last, devices[stages[-1].device_id])
    return mapped


def max_memory(placement: Placement, topology: Topology) -> dict[DeviceName, int]:
    """Bytes of weights that each device may take, for accelerate's automatic placement."""
    devices = _device_names(placement, topology)
    return {devices[s.device_id]: s.weight_bytes for s in placement.replicas[0].stages}


def cuda_visible_devices(placement: Placement, topology: Topology) -> str | None:
    """The value that shows a process exactly the placement's GPUs, in its order; None without any.

    UUIDs where all are known, else their positions among the topology's GPUs.
    """
    gpus = [device for device in topology.devices if device.kind is DeviceKind.CUDA]
    used = [gpu for name in placement.device_ids for gpu in gpus if gpu.id == name]
    if not used:
        return None
    uuids = [gpu.uuid for gpu in used if gpu.uuid is not None]
    if len(uuids) == len(used):
        return ",".join(uuids)
    return ",".join(str(gpus.index(gpu)) for gpu in used)


def export_notes(model: ModelSpec) -> tuple[str, ...]:
    """What the exported module names assume."""
    if _module_names(model.architecture) is not None:
        return ()
    return (f"module names of {model.architecture} are not known: LLaMA's are used",)


def placement_document(
    placement: Placement, model: ModelSpec, topology: Topology
) -> dict[str, Any]:
    """All of a placement for JSON: bytes by kind and device, times, maps and notes."""
    devices = {device.id: device for device in topology.devices}
    return {
        "algorithm": placement.algorithm,
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "layers": len(model.layers),
            "weight_bytes": model.weight_bytes,
            "weight_source": model.weight_source.value,
            "kv_bytes_per_token": sum(layer.kv_bytes_per_token for layer in model.layers),
        },
        "rows": placement.rows,
        "step_s": placement.step_s,
        "step_source": placement.step_source.value,
        "replicas": [
            {
                "tensor_parallel_degree": replica.tensor_parallel_degree,
                "stages": [
                    {
                        **asdict(stage),
                        "total_bytes": stage.total_bytes,
                        "device_name": devices[stage.device_id].name,
                        "free_bytes": devices[stage.device_id].free_bytes,
                    }
                    for stage in replica.stages
                ],
            }
            for replica in placement.replicas
        ],
        "topology": topology.origin,
        "CUDA_VISIBLE_DEVICES": cuda_visible_devices(placement, topology),
        "device_map": device_map(placement, model, topology),
        "max_memory": {str(name): size for name, size in max_memory(placement, topology).items()},
        "notes": [*placement.notes, *topology.notes, *export_notes(model)],
    }


def _module_names(architecture: str) -> ModuleNames | None:
    if architecture.endswith("ForConditionalGeneration"):
        # Models of several media nest the text model under a name of their own.
        return None
    name = architecture.lower().replace("_", "")
    for prefix, modules in _MODULES.items():
        if name.startswith(prefix):
            return modules
    return _LLAMA if _LLAMA_LIKE.match(name) else None


def _device_names(placement: Placement, topology: Topology) -> dict[str, DeviceName]:
    kinds = {device.id: device.kind for device in topology.devices}
    gpus = [name for name in placement.device_ids if kinds[name] is DeviceKind.CUDA]
    return {name: gpus.index(name) if name in gpus else "cpu" for name in placement.device_ids}
