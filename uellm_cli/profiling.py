"""The story of `uellm profile`: how long, how much, how sure, before anything is planned or run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from uellm_cli import pipeline, planning
from uellm_cli.config import Settings
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.budget import workload_of
from uellm_cli.deployer.memory import MemoryRules, make_stage, usable_devices
from uellm_cli.engines import default_rows
from uellm_cli.errors import PlacementError
from uellm_cli.pipeline import Profiled
from uellm_cli.profiler.resources import (
    Resources,
    batch_memory,
    kv_source,
    time_needed,
    token_totals,
)
from uellm_cli.profiler.trust import Trust
from uellm_cli.timing.roofline import step_times
from uellm_cli.types import Workload

# Placement halves what does not fit: each of these is reached from the largest.
BATCHES = (1, 4, 16, 64, 256)


@dataclass(frozen=True, slots=True)
class Profiling:
    profiled: Profiled
    resources: Resources
    trust: Trust


def profile(settings: Settings, started: datetime) -> Profiling:
    """The requests' profile, what they take on the machine, and what that stands on."""
    profiled = pipeline.profile(settings, started)
    return Profiling(profiled, _resources(settings, profiled), profiled.trust)


def _resources(settings: Settings, profiled: Profiled) -> Resources:
    model, requests = profiled.model, profiled.requests
    topology = planning.topology_of(settings)
    algorithm = PLACEMENTS.build(settings.placement.name, settings.placement.options)
    batches = [rows for rows in BATCHES if rows <= len(requests)]
    largest = workload_of(requests, max(BATCHES))

    def workload(rows: int) -> Workload:
        return replace(largest, sequences=min(rows, len(requests)))

    time, problem, fitting = None, None, 0
    try:
        fitting = algorithm.place(model, topology, workload(batches[-1])).rows
        usual = algorithm.place(model, topology, workload(default_rows(settings.engine.name)))
        time = time_needed(requests, step_times(model, topology, usual), usual.rows)
    except PlacementError as error:
        problem = str(error)
    rules = algorithm if isinstance(algorithm, MemoryRules) else MemoryRules()
    device, layers = usable_devices(topology)[0], range(len(model.layers))
    memory = tuple(
        batch_memory(
            rows, make_stage(model, device, layers, workload(rows), rules), rows <= fitting
        )
        for rows in batches
    )
    return Resources(
        token_totals(requests), memory, time, kv_source(model), topology.origin, problem
    )
