"""Bytes that a stage takes on its device, and bytes that a device can give."""

from __future__ import annotations

from dataclasses import dataclass

from uellm_cli.timing.roofline import element_bytes, head_read_bytes
from uellm_cli.types import (
    Device,
    DeviceKind,
    ModelSpec,
    Stage,
    Topology,
    Workload,
    layer_kv_bytes,
)

# Activation bytes are about tokens · hidden · c elements (vllm's profile runs: PAPER.md, 5).
DENSE_ACTIVATIONS = 11
MOE_ACTIVATIONS = 22
LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class MemoryRules:
    """What is kept free, as options of every placement algorithm.

    `margin` is the share of a device's free memory that is never planned for. `cuda_overhead_gib`
    is the CUDA context with its libraries' workspaces (assumed). `prefill_tokens` bounds how many
    prompt tokens one forward pass computes; a single prompt is always computed whole.
    """

    margin: float = 0.05
    cuda_overhead_gib: float = 0.8
    prefill_tokens: int = 16_384

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be at least 0 and below 1, not {self.margin}")
        if self.cuda_overhead_gib < 0:
            raise ValueError(f"cuda_overhead_gib cannot be negative ({self.cuda_overhead_gib})")
        if self.prefill_tokens < 1:
            raise ValueError(f"prefill_tokens must be at least 1, not {self.prefill_tokens}")


def usable_devices(topology: Topology) -> tuple[Device, ...]:
    """The GPUs where there are any, else the CPUs: layers on the CPU would slow every step down."""
    gpus = tuple(d for d in topology.devices if d.kind is DeviceKind.CUDA)
    return gpus or topology.devices


def usable_bytes(device: Device, rules: MemoryRules) -> int:
    return int(device.free_bytes * (1 - rules.margin))


def overhead_bytes(device: Device, rules: MemoryRules) -> int:
    return int(rules.cuda_overhead_gib * 2**30) if device.kind is DeviceKind.CUDA else 0


def layers_kv_bytes(model: ModelSpec, workload: Workload) -> list[int]:
    """KV cache of each layer: all sequences at their usual size, but one of them the longest."""
    usual, longest = workload.tokens_per_sequence, workload.longest_tokens
    return [
        (workload.sequences - 1) * layer_kv_bytes(layer, usual) + layer_kv_bytes(layer, longest)
        for layer in model.layers
    ]


def activation_bytes(model: ModelSpec, workload: Workload, rules: MemoryRules) -> int:
    """What a forward pass holds beside weights and cache: 2·tokens·h·c bytes (PAPER.md, 5)."""
    at_once = min(workload.sequences * workload.tokens_per_sequence, rules.prefill_tokens)
    tokens = max(workload.longest_tokens, workload.sequences, at_once)
    factor = MOE_ACTIVATIONS if model.is_moe else DENSE_ACTIVATIONS
    return element_bytes(model) * tokens * model.hidden_size * factor


def logit_bytes(model: ModelSpec, workload: Workload) -> int:
    return workload.sequences * model.vocab_size * LOGIT_BYTES


def end_weight_bytes(model: ModelSpec, is_first: bool, is_last: bool) -> int:
    """Weights beside the layers: the embedding on the first stage, norm and head on the last.

    A tied head costs nothing beside its embedding, and a copy of it on any other device.
    """
    size = model.embedding_bytes if is_first else 0
    if is_last:
        size += model.norm_bytes + (model.head_bytes if is_first else head_read_bytes(model))
    return size


def make_stage(
    model: ModelSpec,
    device: Device,
    layers: range,
    workload: Workload,
    rules: MemoryRules,
) -> Stage:
    """The stage of `layers` on `device` with all that it needs, whether or not that fits."""
    is_last = layers.stop == len(model.layers)
    weights = sum(model.layers[i].weight_bytes for i in layers)
    return Stage(
        device_id=device.id,
        first_layer=layers.start,
        last_layer=layers.stop,
        weight_bytes=weights + end_weight_bytes(model, layers.start == 0, is_last),
        kv_bytes=sum(layers_kv_bytes(model, workload)[i] for i in layers),
        activation_bytes=activation_bytes(model, workload, rules)
        + (logit_bytes(model, workload) if is_last else 0),
        overhead_bytes=overhead_bytes(device, rules),
    )
