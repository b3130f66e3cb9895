"""Seconds of a step from a device's peaks alone, before anything has been measured.

A decode step reads every weight that its tokens use and every token of its KV cache, and computes
two FLOPs a weight and token; the slower of the two is its time (Williams et al., 2009), on top of
what launching a layer costs the host. Peaks are not reached, so these are optimistic: DESIGN.md,
decision 2, replaces them by calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from uellm_cli.hardware.links import assumed_link
from uellm_cli.types import (
    Device,
    DeviceKind,
    LayerSpec,
    Link,
    ModelSpec,
    Placement,
    Source,
    Stage,
    StepTimes,
    Topology,
    layer_kv_bytes,
)

# Seconds the host takes for one layer of one step in transformers' eager mode: assumed, from a
# dozen kernel launches of 5 µs on CUDA, and from small models on two cores of a CPU.
CUDA_LAYER_S = 60e-6
CPU_LAYER_S = 350e-6

FloatOrArray = TypeVar("FloatOrArray", float, NDArray[np.float64])


def layer_overhead_s(device: Device) -> float:
    return CPU_LAYER_S if device.kind is DeviceKind.CPU else CUDA_LAYER_S


def element_bytes(model: ModelSpec) -> int:
    """Bytes of one activation: weights may be stored in less, but are computed with in 2 or 4."""
    return 4 if model.dtype_bytes >= 4 else 2


def weight_read_bytes(layer: LayerSpec, rows: int) -> float:
    """Weights that a step of `rows` tokens reads; a mixture of experts reads more with each row.

    One row leaves the share q = 1 - active/weight untouched, and each further row, choosing on its
    own, leaves q of what is left: weight·(1 - q^rows). Exact but for the dense part of the layer.
    """
    untouched = 1 - layer.active_bytes / layer.weight_bytes if layer.weight_bytes else 0.0
    return layer.weight_bytes * (1 - untouched**rows)


def layer_read_bytes(layer: LayerSpec, rows: int, tokens: int) -> float:
    """What a decode step of `rows` sequences with `tokens` tokens each reads in a layer."""
    return weight_read_bytes(layer, rows) + rows * layer_kv_bytes(layer, tokens)


def layer_flops(model: ModelSpec, layer: LayerSpec, tokens: int) -> float:
    """Two FLOPs for each weight and token; attention itself is left out."""
    return 2 * tokens * layer.active_bytes / model.dtype_bytes


def head_read_bytes(model: ModelSpec) -> int:
    """The output projection's bytes; tied ones are read where the embedding is."""
    return model.head_bytes or model.embedding_bytes


def head_flops(model: ModelSpec, rows: int) -> float:
    return 2.0 * rows * model.vocab_size * model.hidden_size


def roofline_s(
    device: Device, read_bytes: FloatOrArray, flops: FloatOrArray, layers: FloatOrArray
) -> FloatOrArray:
    """Seconds to read `read_bytes` while computing `flops` in `layers` layers; arrays alike."""
    bound = np.maximum(read_bytes / device.bandwidth_bytes_per_s, flops / device.flops_per_s)
    return bound + layers * layer_overhead_s(device)  # type: ignore[no-any-return]


def stage_decode_s(
    model: ModelSpec, device: Device, first: int, last: int, rows: int, tokens: int
) -> float:
    """One decode step of `rows` sequences of `tokens` tokens in layers [first, last).

    The stage with the last layer also projects to the vocabulary.
    """
    layers = model.layers[first:last]
    read = sum(layer_read_bytes(layer, rows, tokens) for layer in layers)
    flops = sum(layer_flops(model, layer, rows) for layer in layers)
    if last == len(model.layers):
        read += head_read_bytes(model)
        flops += head_flops(model, rows)
    return float(roofline_s(device, read, flops, float(last - first)))


def transfer_s(model: ModelSpec, link: Link, tokens: int) -> float:
    """Seconds to send the hidden states of `tokens` tokens from one stage to the next."""
    return link.latency_s + tokens * model.hidden_size * element_bytes(model) / link.bytes_per_s


def links_between(topology: Topology, device_ids: Sequence[str]) -> list[Link]:
    """The link from each device to the next; the slowest kind where none is known."""
    return [topology.link(a, b) or assumed_link(a, b) for a, b in pairwise(device_ids)]


def step_times(model: ModelSpec, topology: Topology, placement: Placement) -> StepTimes:
    """The time model of a replica, whose stages run one after the other.

    Per row it is the line through the roofline at one row and at `placement.rows`, so that a
    full step costs what the roofline says. KV beyond a sliding window counts as if it were read.
    """
    stages = placement.replicas[0].stages
    devices = {device.id: device for device in topology.devices}
    between = links_between(topology, [stage.device_id for stage in stages])

    def step_s(rows: int) -> float:
        computing = (
            stage_decode_s(model, devices[s.device_id], s.first_layer, s.last_layer, rows, 0)
            for s in stages
        )
        return sum(computing) + sum(transfer_s(model, link, rows) for link in between)

    rows = max(2, placement.rows)
    per_row_s = (step_s(rows) - step_s(1)) / (rows - 1)
    hidden_bytes = model.hidden_size * element_bytes(model)
    return StepTimes(
        fixed_s=max(0.0, step_s(1) - per_row_s),
        per_prefill_token_s=sum(_prefill_token_s(model, devices[s.device_id], s) for s in stages)
        + sum(hidden_bytes / link.bytes_per_s for link in between),
        per_sequence_s=per_row_s,
        per_cached_token_s=sum(
            layer.kv_bytes_per_token / devices[s.device_id].bandwidth_bytes_per_s
            for s in stages
            for layer in model.layers[s.first_layer : s.last_layer]
        ),
        source=rates_source([devices[s.device_id] for s in stages]),
    )


def rates_source(devices: Sequence[Device]) -> Source:
    """The least believable source among the devices' rates."""
    ranks = list(Source)
    return max((device.rate_source for device in devices), key=ranks.index)


def _prefill_token_s(model: ModelSpec, device: Device, stage: Stage) -> float:
    layers = model.layers[stage.first_layer : stage.last_layer]
    return sum(layer_flops(model, layer, 1) for layer in layers) / device.flops_per_s
