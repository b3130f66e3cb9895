"""What the placement algorithms share: search, choose, and say what was decided and why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from uellm_cli.deployer import memory
from uellm_cli.deployer.balance import balance
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.search import Candidate, SearchResult, search
from uellm_cli.errors import PlacementError
from uellm_cli.timing.roofline import rates_source
from uellm_cli.types import ModelSpec, Placement, Replica, Topology, Workload

Choose = Callable[[Sequence[Candidate]], Candidate]


def place(
    algorithm: str,
    model: ModelSpec,
    topology: Topology,
    workload: Workload,
    rules: MemoryRules,
    choose: Choose,
) -> Placement:
    """One replica by `choose` among the fastest candidates.

    Sequences are halved, down to one, until the model and their KV cache fit; a note says so.
    Raises PlacementError, with what is missing, when not even the longest sequence fits.
    """
    fitted, found = _fit(model, topology, workload, rules)
    chosen = balance(choose(found.candidates), model, fitted, rules)
    stages = tuple(
        memory.make_stage(model, device, layers, fitted, rules)
        for device, layers in zip(chosen.devices, chosen.layers, strict=True)
    )
    return Placement(
        algorithm=algorithm,
        model=model.name,
        replicas=(Replica(stages),),
        rows=fitted.sequences,
        step_s=chosen.step_s,
        step_source=rates_source(chosen.devices),
        notes=(*found.notes, *_notes(chosen, topology, workload, fitted)),
    )


def _fit(
    model: ModelSpec, topology: Topology, workload: Workload, rules: MemoryRules
) -> tuple[Workload, SearchResult]:
    sequences = workload.sequences
    while True:
        fitted = replace(workload, sequences=sequences)
        found = search(model, topology, fitted, rules)
        if found.candidates:
            return fitted, found
        if sequences == 1:
            raise PlacementError(_what_is_missing(model, topology, fitted, rules))
        sequences //= 2


def _notes(
    chosen: Candidate, topology: Topology, asked: Workload, fitted: Workload
) -> tuple[str, ...]:
    notes = []
    if fitted.sequences < asked.sequences:
        notes.append(
            f"there is room for {fitted.sequences} of {asked.sequences} sequences at a time "
            f"({asked.tokens_per_sequence} tokens each, the longest {asked.longest_tokens})"
        )
    used = len(chosen.devices)
    idle = len(memory.usable_devices(topology)) - used
    if idle >= used:
        holders = "one device holds" if used == 1 else f"{used} devices hold"
        notes.append(
            f"{holders} the model and {idle} more stay idle: this version makes one replica, "
            "with tensor-parallel degree 1"
        )
    return tuple(notes)


def _what_is_missing(
    model: ModelSpec, topology: Topology, one: Workload, rules: MemoryRules
) -> str:
    devices = memory.usable_devices(topology)
    kv = sum(memory.layers_kv_bytes(model, one))
    free = sum(device.free_bytes for device in devices)
    activations = memory.activation_bytes(model, one, rules)
    room = sum(
        max(0, memory.usable_bytes(d, rules) - memory.overhead_bytes(d, rules) - activations)
        for d in devices
    )
    missing = model.weight_bytes + kv + memory.logit_bytes(model, one) - room
    needs = (
        f"the model needs {_gb(model.weight_bytes)} for weights and {_gb(kv)} for one sequence of "
        f"{one.longest_tokens} tokens, but the {_count(len(devices))} {_gb(free)} free "
        f"({_gb(room)} beside activations, overhead and margin)"
    )
    remedy = "use more devices, a quantised model or fewer tokens"
    if missing > 0:
        return f"{needs}; {_gb(missing)} are missing — {remedy}"
    return f"{needs}, and no split into whole layers fits each of them — {remedy}"


def _count(devices: int) -> str:
    return "one usable device has" if devices == 1 else f"{devices} usable devices have"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 0.95e9 else f"{size / 1e6:.1f} MB"
