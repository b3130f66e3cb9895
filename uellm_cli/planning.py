"""What is decided for requests that are profiled: placement, budget, order, and the verdict.

Nothing here is loaded or run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from msgspec import structs

from uellm_cli.config import Settings
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.budget import plan_budget, workload_of
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.verify import check_placement
from uellm_cli.engines import default_rows
from uellm_cli.errors import PlacementError
from uellm_cli.hardware import detect_topology, load_topology
from uellm_cli.profiler.pilot import Pilot, chosen
from uellm_cli.scheduler import SCHEDULERS
from uellm_cli.timing.loading import loading_s
from uellm_cli.timing.roofline import step_times
from uellm_cli.timing.simulator import judge
from uellm_cli.types import (
    Budget,
    ModelSpec,
    Placement,
    PlacementAlgorithm,
    Plan,
    ProfiledRequest,
    Schedule,
    Scheduler,
    Topology,
    Workload,
)


def plan_for(
    settings: Settings,
    model: ModelSpec,
    requests: Sequence[ProfiledRequest],
    elapsed_s: float = 0,
    pilot: Collection[str] = (),
) -> Plan:
    """Decides for requests that are profiled already, `elapsed_s` after the run's start.

    The requests of the `pilot` come before all others.

    The placement comes first: it makes room for the requests' size, and what room there is for
    their KV cache is the budget that the schedule has to keep (docs/adr/0004).
    """
    topology = topology_of(settings)
    scheduler = SCHEDULERS.build(settings.scheduler.name, settings.scheduler.options)
    algorithm = PLACEMENTS.build(settings.placement.name, settings.placement.options)

    placement = placed(algorithm, model, topology, settings, partial(workload_of, requests))
    if problems := check_placement(placement, model, topology):
        raise PlacementError(f"{settings.placement.name} does not hold: {'; '.join(problems)}")
    rules = algorithm if isinstance(algorithm, MemoryRules) else None
    budget = plan_budget(model, topology, placement, rules)
    schedule = scheduled(scheduler, requests, budget, elapsed_s, pilot)
    step = step_times(model, topology, placement)
    verdict = judge(schedule, requests, step, start_s=elapsed_s + loading_s(model))
    return Plan(model, topology, budget, placement, schedule, step, verdict)


def plan_with_pilot(
    settings: Settings,
    model: ModelSpec,
    requests: Sequence[ProfiledRequest],
    elapsed_s: float,
    pilot: Pilot,
) -> tuple[Plan, frozenset[str]]:
    """The plan, and which requests it begins with to learn from their answers.

    A pilot that nobody asked for breaks no promise: with more late than without it, there is none.
    """
    names = chosen(requests, pilot.size(len(requests)), settings.seed)
    decided = plan_for(settings, model, requests, elapsed_s, names)
    if pilot.is_automatic and names and decided.verdict.late:
        without = plan_for(settings, model, requests, elapsed_s)
        if without.verdict.late < decided.verdict.late:
            return without, frozenset()
    return decided, names


def scheduled(
    scheduler: Scheduler,
    requests: Sequence[ProfiledRequest],
    budget: Budget,
    elapsed_s: float,
    pilot: Collection[str] = (),
) -> Schedule:
    """The schedule of the pilot, then of what can still be in time, then of what cannot.

    No promise is left of the last.
    """

    def group(request: ProfiledRequest) -> int:
        is_past = request.finish_by_s is not None and request.finish_by_s <= elapsed_s
        return 0 if request.custom_id in pilot else 2 if is_past else 1

    groups: dict[int, list[ProfiledRequest]] = {0: [], 1: [], 2: []}
    for request in requests:
        groups[group(request)].append(request)
    schedules = [scheduler.schedule(g, budget) for g in groups.values() if g]
    if len(schedules) == 1:
        return schedules[0]
    batches = [batch for schedule in schedules for batch in schedule.batches]
    return Schedule(
        schedules[0].algorithm,
        tuple(structs.replace(batch, batch_id=i) for i, batch in enumerate(batches)),
        tuple(name for schedule in schedules for name in schedule.oversized),
    )


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


def topology_of(settings: Settings) -> Topology:
    """The topology file's machine, else this one."""
    if settings.topology is None:
        return detect_topology()
    return load_topology(Path(settings.topology))
