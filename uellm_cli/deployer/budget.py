"""From requests to what a placement must hold, and from a placement to what a schedule may take."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from uellm_cli.deployer.memory import MemoryRules, usable_bytes
from uellm_cli.types import (
    Budget,
    Device,
    ModelSpec,
    Placement,
    ProfiledRequest,
    Stage,
    Topology,
    Workload,
    layer_kv_bytes,
)

# Placement makes room for sequences of this quantile of size; only one is as long as the longest.
SIZE_QUANTILE = 0.9


def workload_of(profiled: Sequence[ProfiledRequest], max_sequences: int) -> Workload:
    """What placement has to make room for; sizes are prompt plus 0.9 quantile of the output.

    Raises ValueError without requests, or without a sequence.
    """
    if not profiled or max_sequences < 1:
        raise ValueError("a workload has at least one request and one sequence at a time")
    sizes = sorted(r.prompt_tokens + ceil(min(r.output.p90, r.max_tokens)) for r in profiled)
    usual = sizes[ceil(SIZE_QUANTILE * len(sizes)) - 1]
    return Workload(
        sequences=min(max_sequences, len(sizes)),
        tokens_per_sequence=usual,
        longest_tokens=sizes[-1],
    )


def plan_budget(
    model: ModelSpec,
    topology: Topology,
    placement: Placement,
    rules: MemoryRules | None = None,
) -> Budget:
    """KV cache that the placement's devices have room for beside everything else.

    A sequence's cache is spread over the stages like its layers, so the tightest stage decides:
    with room_s bytes on stage s, and at most the share_s of any sequence's cache there, all
    sequences together may take min over s of room_s/share_s. What the placement itself made room
    for is in the budget in any case.
    """
    rules = rules or MemoryRules()
    devices = {device.id: device for device in topology.devices}
    stages = [stage for replica in placement.replicas for stage in replica.stages]
    limits = [
        _room(stage, devices[stage.device_id], rules) / share
        for stage in stages
        if (share := _largest_share(model, stage)) > 0
    ]
    planned = sum(stage.kv_bytes for stage in stages)
    return Budget(
        kv_bytes=max(planned, int(min(limits, default=0.0))),
        max_sequences=placement.rows,
        prefill_tokens=rules.prefill_tokens,
    )


def _room(stage: Stage, device: Device, rules: MemoryRules) -> int:
    beside = stage.weight_bytes + stage.activation_bytes + stage.overhead_bytes
    return max(stage.kv_bytes, usable_bytes(device, rules) - beside)


def _largest_share(model: ModelSpec, stage: Stage) -> float:
    """The most of any sequence's cache that lies on this stage.

    Between two window sizes the share moves in one direction, so its maximum is at one of them.
    """
    layers = model.layers[stage.first_layer : stage.last_layer]
    windows = {layer.kv_window_tokens for layer in model.layers}
    shares = [
        sum(layer_kv_bytes(layer, tokens) for layer in layers) / whole
        for tokens in (1, model.context_tokens, *(w for w in windows if w is not None))
        if (whole := model.kv_bytes(tokens)) > 0
    ]
    return max(shares, default=0.0)
