"""A plan that `uellm plan -o` wrote, followed by `uellm run --plan` if it is one for this run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import msgspec
from msgspec import structs

from uellm_cli.errors import PlanError
from uellm_cli.types import Origin, Plan, Schedule, Topology


def read_plan(path: Path) -> Plan:
    """Raises PlanError for what is no plan, or says not what it was made for."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise PlanError(f"{path}: is no plan of `uellm plan -o`: {error}") from None
    if plan.origin is None:
        raise PlanError(f"{path}: does not say what it was made for; make it with `uellm plan -o`")
    return plan


def refuse_another(
    plan: Plan, path: Path, now: Origin, topology: Topology, requests: Collection[str]
) -> None:
    """PlanError where the plan was made for other files, another model, engine or machine.

    `requests` are the ids of all that would be run.
    """
    then = plan.origin
    if then is None:
        raise PlanError(f"{path}: does not say what it was made for")
    # What a file is called does not matter, nor from where it was named.
    if sorted(then.inputs.values()) != sorted(now.inputs.values()):
        others = sorted(then.inputs.items() ^ now.inputs.items())
        raise _another(path, "other files", f"{others[0][0]} is not what it was")
    if then.model_fingerprint != now.model_fingerprint:
        raise _another(path, "another model", f"it is for {plan.model.name}")
    for name, value in now.settings.items():
        if (before := then.settings.get(name)) != value:
            flag = "--" + name.replace("_", "-")
            raise _another(path, f"another {flag}", f"{before}, not {value}")
    if _devices(plan.topology) != _devices(topology):
        raise _another(path, "another machine", f"it is for {plan.topology.origin}")
    planned = {name for batch in plan.schedule.batches for name in batch.custom_ids}
    planned.update(plan.schedule.oversized)
    if different := planned.symmetric_difference(requests):
        few = f"{min(different)!r} is in one of them only"
        raise _another(path, "other requests", f"{few}; --limit has to be alike")


def left_of(plan: Plan, todo: Collection[str]) -> Plan:
    """The plan without what is done already."""
    batches = []
    for batch in plan.schedule.batches:
        names = tuple(name for name in batch.custom_ids if name in todo)
        if names:
            batches.append(structs.replace(batch, custom_ids=names))
    oversized = tuple(name for name in plan.schedule.oversized if name in todo)
    return replace(plan, schedule=Schedule(plan.schedule.algorithm, tuple(batches), oversized))


def _devices(topology: Topology) -> list[tuple[str, str, int]]:
    """What makes a machine the same one; how much of its memory is free may change."""
    return [(device.id, device.name, device.memory_bytes) for device in topology.devices]


def _another(path: Path, what: str, why: str) -> PlanError:
    return PlanError(f"{path}: was made for {what} ({why}); plan again, or run without --plan")
