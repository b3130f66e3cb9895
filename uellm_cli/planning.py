"""What is decided for requests that are profiled: placement, budget, order, and the verdict.

Nothing here is loaded or run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from uellm_cli.clock import Clock
from uellm_cli.columns import Arrangement, Ints, RequestColumns, columns_of, one_after_another
from uellm_cli.config import Settings
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.budget import plan_budget, workload_of
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.verify import check_placement
from uellm_cli.engines import batching_of, default_rows, default_step_tokens
from uellm_cli.errors import PlacementError
from uellm_cli.hardware import detect_topology, load_topology
from uellm_cli.models.files import bundled_model
from uellm_cli.models.fingerprint import model_fingerprint
from uellm_cli.profiler.pilot import Pilot, chosen
from uellm_cli.scheduler import SCHEDULERS, Scheduler
from uellm_cli.scheduler.remedies import NOBODY, remedies
from uellm_cli.timing.fluid import fluid
from uellm_cli.timing.kept import StepKey, folder_of, read_steps
from uellm_cli.timing.loading import loading_s
from uellm_cli.timing.roofline import step_times
from uellm_cli.timing.scenarios import ADAPTED, FEWEST, UNADAPTED, drawn_lengths, how_many
from uellm_cli.timing.verdict import outlook, verdict_of
from uellm_cli.types import (
    Conditions,
    ModelSpec,
    Placement,
    PlacementAlgorithm,
    Plan,
    ProfiledRequest,
    StepTimes,
    Topology,
    Verdict,
    Workload,
)

# A remedy takes some twenty simulations: it is looked for in as many scenarios as so many times the
# requests are worth.
REMEDIED = 8


def plan_for(
    settings: Settings,
    model: ModelSpec,
    requests: Sequence[ProfiledRequest],
    elapsed_s: float = 0,
    pilot: Collection[str] = (),
    is_adapted: bool = False,
    with_remedies: bool = False,
) -> Plan:
    """Decides for requests that are profiled already, `elapsed_s` after the run's start.

    The requests of the `pilot` come before all others. Lengths of a predictor that `is_adapted` to
    the model are not all wrong in the same direction. `with_remedies` says what would help where
    promises cannot be kept.

    The placement comes first: it makes room for the requests' size, and what room there is for
    their KV cache is the budget that the schedule has to keep (docs/adr/0004).
    """
    scheduler = SCHEDULERS.build(settings.scheduler.name, settings.scheduler.options)
    topology, placement, conditions = ground_of(settings, model, requests, elapsed_s, is_adapted)
    columns = columns_of(requests)
    arranged = in_groups(scheduler, columns, conditions, elapsed_s, pilot)
    verdict = judged(columns, arranged, conditions, settings.seed)
    if with_remedies and verdict.late.mean >= NOBODY:
        drawn = drawn_lengths(
            columns, how_many(REMEDIED * len(columns)), settings.seed, conditions.length_correlation
        )
        verdict = replace(verdict, remedies=remedies(columns, list(drawn), conditions))
    return Plan(
        model,
        topology,
        arranged.budget or conditions.budget,
        placement,
        arranged.named(settings.scheduler.name, columns.custom_ids),
        conditions.step,
        verdict,
    )


def ground_of(
    settings: Settings,
    model: ModelSpec,
    requests: Sequence[ProfiledRequest],
    elapsed_s: float,
    is_adapted: bool,
) -> tuple[Topology, Placement, Conditions]:
    """What a schedule stands on: the machine, the model's place on it, and what that allows."""
    topology = topology_of(settings)
    algorithm = PLACEMENTS.build(settings.placement.name, settings.placement.options)
    placement = placed(algorithm, model, topology, settings, partial(workload_of, requests))
    if problems := check_placement(placement, model, topology):
        raise PlacementError(f"{settings.placement.name} does not hold: {'; '.join(problems)}")
    rules = algorithm if isinstance(algorithm, MemoryRules) else None
    budget = plan_budget(model, topology, placement, rules)
    conditions = Conditions(
        budget=budget,
        step=kept_step_times(settings, topology, placement)
        or step_times(model, topology, placement),
        batching=batching_of(settings.engine.name),
        start_s=elapsed_s + loading_s(model),
        step_tokens=step_tokens_of(settings, topology, placement),
        length_correlation=ADAPTED if is_adapted else UNADAPTED,
    )
    return topology, placement, conditions


@dataclass(frozen=True, slots=True)
class Compared:
    """What one scheduler would come to, and how long it took to decide."""

    scheduler: str
    verdict: Verdict
    planning_s: float


def compared(
    settings: Settings,
    model: ModelSpec,
    requests: Sequence[ProfiledRequest],
    is_adapted: bool,
    clock: Clock,
) -> list[Compared]:
    """Every scheduler on the same requests, under the same conditions; the best first."""
    _, _, conditions = ground_of(settings, model, requests, 0.0, is_adapted)
    columns = columns_of(requests)
    found = []
    for name in SCHEDULERS.names():
        is_asked = name == settings.scheduler.name
        scheduler = SCHEDULERS.build(name, settings.scheduler.options if is_asked else {})
        began_s = clock.now_s()
        arranged = in_groups(scheduler, columns, conditions, 0.0)
        planning_s = clock.now_s() - began_s
        verdict = judged(columns, arranged, conditions, settings.seed)
        found.append(Compared(name, verdict, planning_s))
    return sorted(found, key=lambda each: (each.verdict.late.mean, each.verdict.makespan_s.mean))


def plan_with_pilot(
    settings: Settings,
    model: ModelSpec,
    requests: Sequence[ProfiledRequest],
    elapsed_s: float,
    pilot: Pilot,
    is_adapted: bool,
) -> tuple[Plan, frozenset[str]]:
    """The plan, and which requests it begins with to learn from their answers.

    A pilot that nobody asked for breaks no promise: with more late than without it, there is none.
    """
    names = chosen(requests, pilot.size(len(requests)), settings.seed)
    decided = plan_for(settings, model, requests, elapsed_s, names, is_adapted)
    if pilot.is_automatic and names and decided.verdict.late.mean:
        without = plan_for(settings, model, requests, elapsed_s, (), is_adapted)
        if without.verdict.late.mean < decided.verdict.late.mean:
            return without, frozenset()
    return decided, names


def in_groups(
    scheduler: Scheduler,
    columns: RequestColumns,
    conditions: Conditions,
    elapsed_s: float,
    pilot: Collection[str] = (),
) -> Arrangement:
    """The pilot, then what can still be in time, then what cannot.

    No promise is left of the last.
    """
    is_pilot = np.fromiter((name in pilot for name in columns.custom_ids), dtype=np.bool_)
    is_past = columns.finish_by_s <= elapsed_s
    groups = (is_pilot, ~is_pilot & ~is_past, ~is_pilot & is_past)
    parts: list[Arrangement] = []
    for members in (np.flatnonzero(group) for group in groups if group.any()):
        group = columns.take(members)
        parts.append(scheduler.arrange(group, conditions).of_rows(members))
        work_s = fluid(group, group.mean, conditions).work_s
        conditions = replace(conditions, start_s=conditions.start_s + float(work_s.sum()))
    return parts[0] if len(parts) == 1 else one_after_another(parts)


def judged(
    columns: RequestColumns,
    arranged: Arrangement,
    conditions: Conditions,
    seed: int,
    at_once: bool = False,
) -> Verdict:
    """The verdict over as many scenarios as the requests are worth; `at_once`, over a few."""
    if at_once:
        seen = outlook(columns, arranged, few(columns, seed, conditions), conditions, followed=0)
    else:
        drawn = drawn_lengths(columns, how_many(len(columns)), seed, conditions.length_correlation)
        seen = outlook(columns, arranged, drawn, conditions)
    return verdict_of(columns, arranged, seen, conditions)


def few(columns: RequestColumns, seed: int, conditions: Conditions) -> list[Ints]:
    """The fewest scenarios that say something, for questions that are asked often."""
    return list(drawn_lengths(columns, FEWEST, seed, conditions.length_correlation))


def step_tokens_of(settings: Settings, topology: Topology, placement: Placement) -> int:
    """The most tokens that the engine computes in a step in flight."""
    kinds = {device.id: device.kind for device in topology.devices}
    asked = int(settings.engine.options.get("step_tokens", 0))
    return asked or default_step_tokens(kinds[placement.device_ids[0]])


def placed(
    algorithm: PlacementAlgorithm,
    model: ModelSpec,
    topology: Topology,
    settings: Settings,
    workload: Callable[[int], Workload],
) -> Placement:
    """The placement for as many rows as were asked for; else for as many as suit and fit."""
    rows = settings.max_batch or default_rows(settings.engine.name)
    while True:
        try:
            return algorithm.place(model, topology, workload(rows))
        except PlacementError:
            if settings.max_batch is not None or rows == 1:
                raise
            rows //= 2


def step_key(settings: Settings, topology: Topology, placement: Placement) -> StepKey:
    """What step times hold for; those of another engine, model or machine say nothing."""
    names = {device.id: device.name for device in topology.devices}
    return StepKey(
        engine=settings.engine.name,
        dtype=settings.engine.options.get("dtype", "auto"),
        model_fingerprint=model_fingerprint(model_of(settings)),
        devices=tuple(names[device] for device in placement.device_ids),
    )


def kept_step_times(
    settings: Settings, topology: Topology, placement: Placement
) -> StepTimes | None:
    """What earlier runs have measured; None before the first."""
    folder = folder_of(os.environ)
    return None if folder is None else read_steps(folder, step_key(settings, topology, placement))


def model_of(settings: Settings) -> str:
    """The model that was asked for, else the bundled one's folder."""
    if settings.model is None:
        return str(bundled_model())
    is_home = settings.model.startswith("~")
    return str(Path(settings.model).expanduser()) if is_home else settings.model


def topology_of(settings: Settings) -> Topology:
    """The topology file's machine, else this one."""
    if settings.topology is None:
        return detect_topology()
    return load_topology(Path(settings.topology))
