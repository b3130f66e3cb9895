"""What every possible stage would cost on a device: one matrix of seconds, infinite where it
does not fit.

Entry [k, i] is the stage of layers [k, i). Stages of a transformers model run one after the other
(DESIGN.md, decision 5), so the seconds of a placement are a sum of such entries and of transfers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm_cli.deployer import memory
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.timing import roofline
from uellm_cli.types import Device, ModelSpec, Workload

FloatMatrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StageSizes:
    """Bytes and work of every stage [k, i) that do not depend on the device.

    `fixed_bytes` are weights, activations and logits, which do not grow with the sequences.
    """

    fixed_bytes: FloatMatrix
    kv_bytes: FloatMatrix
    read_bytes: FloatMatrix
    flops: FloatMatrix
    layers: FloatMatrix


def stage_sizes(model: ModelSpec, workload: Workload, rules: MemoryRules) -> StageSizes:
    """Sizes of all stages, by differences of running sums; where i <= k they mean nothing."""
    rows, tokens = workload.sequences, workload.tokens_per_sequence
    fixed = _spans(layer.weight_bytes for layer in model.layers)
    fixed += memory.activation_bytes(model, workload, rules)
    # The ends: embedding with the first layer, norm, head and logits with the last.
    fixed[0, :-1] += memory.end_weight_bytes(model, is_first=True, is_last=False)
    fixed[1:, -1] += memory.end_weight_bytes(model, is_first=False, is_last=True)
    fixed[0, -1] += memory.end_weight_bytes(model, is_first=True, is_last=True)
    fixed[:, -1] += memory.logit_bytes(model, workload)

    read = _spans(roofline.layer_read_bytes(layer, rows, tokens) for layer in model.layers)
    read[:, -1] += roofline.head_read_bytes(model)
    flops = _spans(roofline.layer_flops(model, layer, rows) for layer in model.layers)
    flops[:, -1] += roofline.head_flops(model, rows)
    kv = _spans(memory.layers_kv_bytes(model, workload))
    return StageSizes(fixed, kv, read, flops, _spans(1 for _ in model.layers))


def stage_seconds(sizes: StageSizes, device: Device, rules: MemoryRules) -> FloatMatrix:
    """Seconds of one decode step of every stage on `device`; infinite where it cannot be."""
    seconds = roofline.roofline_s(device, sizes.read_bytes, sizes.flops, sizes.layers)
    is_stage = sizes.layers > 0
    fits = sizes.fixed_bytes + sizes.kv_bytes <= _room(device, rules)
    return np.where(is_stage & fits, seconds, np.inf)


def stage_headroom(sizes: StageSizes, device: Device, rules: MemoryRules) -> FloatMatrix:
    """How many times the workload's KV cache would fit on `device` in every stage; at least 1
    where it fits at all, infinite where no layer has a cache."""
    left = _room(device, rules) - sizes.fixed_bytes
    return np.divide(left, sizes.kv_bytes, out=np.full_like(left, np.inf), where=sizes.kv_bytes > 0)


def _room(device: Device, rules: MemoryRules) -> int:
    return memory.usable_bytes(device, rules) - memory.overhead_bytes(device, rules)


def _spans(values: Iterable[float]) -> FloatMatrix:
    """Entry [k, i] is the sum of values[k:i]. Sums stay below 2**53, so bytes are exact."""
    running = np.concatenate(([0.0], np.cumsum(np.fromiter(values, dtype=np.float64))))
    return np.asarray(running[None, :] - running[:, None])
