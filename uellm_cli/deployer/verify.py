"""An independent look at a placement: it shares no arithmetic with the search that made it."""

from __future__ import annotations

from uellm_cli.types import ModelSpec, Placement, Replica, Topology


def check_placement(placement: Placement, model: ModelSpec, topology: Topology) -> list[str]:
    """What is wrong with a placement, one sentence each; nothing when it holds.

    Every layer exactly once and in order in each replica, known devices, none used twice, no fewer
    weight bytes than the model has, and no device beyond its free memory.
    """
    free = {device.id: device.free_bytes for device in topology.devices}
    used = placement.device_ids
    problems = [f"device {name} is not in the topology" for name in used if name not in free]
    problems += [f"device {name} is used twice" for name in set(used) if used.count(name) > 1]
    for replica in placement.replicas:
        problems += _layer_problems(replica, len(model.layers))
        weights = sum(stage.weight_bytes for stage in replica.stages)
        if weights < model.weight_bytes:
            problems.append(f"{model.weight_bytes - weights} bytes of weights are on no device")
        problems += [
            f"{stage.device_id} needs {stage.total_bytes} bytes and has {free[stage.device_id]}"
            for stage in replica.stages
            if stage.device_id in free and stage.total_bytes > free[stage.device_id]
        ]
    if not placement.replicas:
        problems.append("there is no replica")
    return problems


def _layer_problems(replica: Replica, layers: int) -> list[str]:
    placed = [i for s in replica.stages for i in range(s.first_layer, s.last_layer)]
    empty = [s.device_id for s in replica.stages if s.last_layer <= s.first_layer]
    problems = [f"the stage on {name} has no layer" for name in empty]
    if placed != list(range(layers)):
        problems.append(f"layers are {placed}, not 0 to {layers - 1} in order")
    return problems
