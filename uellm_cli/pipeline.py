"""The story of uellm, one function a command: requests -> profile -> plan -> run -> report.

Every function here is told the time and where to report progress; none prints. What each stage
decides is in its own room.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from msgspec import structs

from uellm_cli.atomic import write_json
from uellm_cli.clock import Clock
from uellm_cli.config import Settings
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.budget import plan_budget, workload_of
from uellm_cli.deployer.export import cuda_visible_devices, device_map
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.verify import check_placement
from uellm_cli.engines import ENGINES, EngineContext
from uellm_cli.errors import ExitCode, PlacementError, RequestFileError
from uellm_cli.executor import run_directory as files
from uellm_cli.executor.execute import Progress, RunTimer, execute
from uellm_cli.executor.journal import read_records
from uellm_cli.executor.results import refused
from uellm_cli.executor.run_directory import ResultFiles
from uellm_cli.executor.run_info import new_run, resumed_run
from uellm_cli.executor.session import (
    encoder_of,
    latest_s,
    rows_of_unanswered,
    timer_of,
    unanswered,
)
from uellm_cli.hardware import detect_topology, load_topology
from uellm_cli.models.files import bundled_model
from uellm_cli.models.spec import load_model_spec
from uellm_cli.models.tokens import PromptTokenizer, load_tokenizer
from uellm_cli.profiler import Profile, profile_requests
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.report.goodput import GoodputTargets
from uellm_cli.report.json_report import report_document
from uellm_cli.report.metrics import RunReport, summarise
from uellm_cli.report.parquet import read_latency_table, write_latency_table
from uellm_cli.report.rows import latency_row
from uellm_cli.requests import load_slo_rules, read_all
from uellm_cli.scheduler import SCHEDULERS
from uellm_cli.timing.loading import loading_s
from uellm_cli.timing.roofline import step_times
from uellm_cli.timing.simulator import judge
from uellm_cli.types import (
    InvalidRequest,
    ModelSpec,
    Placement,
    Plan,
    ProfiledRequest,
    Request,
    Result,
    RunInfo,
    Topology,
    Workload,
)

# What a placement makes room for when nothing is known of the requests.
UNKNOWN_WORKLOAD_TOKENS = 2048


class Observer(Protocol):
    """Who watches a run; the command line draws what it is told."""

    def on_read(self, info: RunInfo, valid: int, invalid: int) -> None: ...

    def on_plan(self, plan: Plan) -> None: ...

    def on_progress(self, progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True)
class Profiled:
    """Requests with all that is known of them before a model is loaded."""

    requests: tuple[Request, ...]
    profile: Profile
    invalid: tuple[InvalidRequest, ...]
    model: ModelSpec
    tokenizer: PromptTokenizer


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run came to."""

    info: RunInfo
    report: RunReport

    def exit_code(self, fail_on_slo_miss: bool) -> ExitCode:
        if self.info.interrupted:
            return ExitCode.INTERRUPTED
        if self.report.totals.failed:
            return ExitCode.SOME_REQUESTS_FAILED
        if fail_on_slo_miss and self.report.slo.met < self.report.slo.promised:
            return ExitCode.SLO_MISSED
        return ExitCode.OK


def profile(settings: Settings, started: datetime) -> Profiled:
    """Reads the requests and says how long each prompt is and each answer will be."""
    requests, invalid = _read_requests(settings, started)
    model = load_model_spec(model_of(settings))
    tokenizer = load_tokenizer(model_of(settings))
    predictor = LENGTH_PREDICTORS.build(settings.predictor.name, settings.predictor.options)
    profile = profile_requests(requests, tokenizer, model, predictor, settings.max_tokens)
    if not profile.requests:
        first = profile.invalid[0]
        raise RequestFileError(
            f"{first.source}: none of the {len(requests)} requests suits the model; the first: "
            f"{first.reason}"
        )
    _refuse_if_strict(settings, profile.invalid)
    return Profiled(requests, profile, (*invalid, *profile.invalid), model, tokenizer)


def plan(settings: Settings, started: datetime) -> tuple[Profiled, Plan]:
    """Profiles, then decides everything: budget, order, placement, and the verdict on them."""
    _refuse_unknown_variants(settings)
    profiled = profile(settings, started)
    return profiled, plan_for(settings, profiled.model, profiled.profile.requests)


def plan_for(
    settings: Settings, model: ModelSpec, requests: Sequence[ProfiledRequest], elapsed_s: float = 0
) -> Plan:
    """Decides for requests that are profiled already, `elapsed_s` after the run's start.

    The placement comes first: it makes room for the requests' size, and what room there is for
    their KV cache is the budget that the schedule has to keep (docs/adr/0004).
    """
    topology = topology_of(settings)
    scheduler = SCHEDULERS.build(settings.scheduler.name, settings.scheduler.options)
    algorithm = PLACEMENTS.build(settings.placement.name, settings.placement.options)

    workload = workload_of(requests, settings.max_batch)
    placement = algorithm.place(model, topology, workload)
    if problems := check_placement(placement, model, topology):
        raise PlacementError(f"{settings.placement.name} does not hold: {'; '.join(problems)}")
    rules = algorithm if isinstance(algorithm, MemoryRules) else None
    budget = plan_budget(model, topology, placement, rules)
    schedule = scheduler.schedule(requests, budget)
    step = step_times(model, topology, placement)
    verdict = judge(schedule, requests, step, start_s=elapsed_s + loading_s(model))
    return Plan(model, topology, budget, placement, schedule, step, verdict)


def plan_deploy(settings: Settings, started: datetime) -> tuple[Placement, ModelSpec, Topology]:
    """Places the model for the given requests, or for an assumed workload when there are none."""
    model = load_model_spec(model_of(settings))
    topology = topology_of(settings)
    if settings.requests:
        requests = profile(settings, started).profile.requests
        workload = workload_of(requests, settings.max_batch)
    else:
        tokens = min(UNKNOWN_WORKLOAD_TOKENS, model.context_tokens)
        workload = Workload(settings.max_batch, tokens, tokens)
    algorithm = PLACEMENTS.build(settings.placement.name, settings.placement.options)
    return algorithm.place(model, topology, workload), model, topology


def run(
    settings: Settings,
    directory: Path,
    resume: bool,
    started: datetime,
    clock: Clock,
    observer: Observer,
) -> RunOutcome:
    """Answers every request and keeps each answer the moment its batch ends.

    A resumed run keeps the first one's settings and start, and answers what the journal lacks.
    """
    with files.opened(directory, resume) as journal:
        if resume:
            settings, info = resumed_run(settings, directory)
        _refuse_unknown_variants(settings)
        factory = ENGINES.build(settings.engine.name, settings.engine.options)
        if not resume:
            settings, info = new_run(
                settings, model_of(settings), factory.in_virtual_time, directory, sys.argv, started
            )
        profiled = profile(settings, info.started)
        observer.on_read(info, len(profiled.profile.requests), len(profiled.invalid))
        work = unanswered(profiled.requests, profiled.profile.requests, journal.records)
        if work:
            info = replace(info, duration_s=None)

        timer = timer_of(info, clock, journal.records)
        refusals = [refused(invalid) for invalid in profiled.invalid]
        write_json(directory / files.RUN, info)
        with ResultFiles.open(directory, info, journal, refusals) as sink:
            if work:
                decided = plan_for(
                    settings,
                    profiled.model,
                    [member.profiled for member in work.values()],
                    timer.began_s,
                )
                write_json(directory / files.PLAN, decided)
                observer.on_plan(decided)
                try:
                    engine = factory.start(_engine_context(settings, decided, timer))
                    encode = encoder_of(info, profiled.tokenizer)
                    execute(decided, work, encode, engine, sink, timer, observer.on_progress)
                except KeyboardInterrupt:
                    info = replace(info, interrupted=True)
        rows = [*sink.results, *rows_of_unanswered(work, sink.results, profiled.model)]
        # A run that had come to its end already took as long as it took.
        duration_s = timer.elapsed_s() if info.duration_s is None else info.duration_s
        return RunOutcome(info, _conclude(directory, info, rows, duration_s))


def report(directory: Path, goodput: GoodputTargets | None) -> tuple[RunInfo, RunReport]:
    """The figures of a run from its directory alone; of one that was killed, from its journal."""
    info = files.read_run_info(directory)
    if info.duration_s is not None:
        rows = read_latency_table(directory / files.LATENCY)
        return info, summarise(rows, info.duration_s, goodput)
    records, _ = read_records(directory / files.JOURNAL)
    rows = [latency_row(record.result) for record in records]
    return info, summarise(rows, latest_s(records), goodput)


def topology_of(settings: Settings) -> Topology:
    """The topology file's machine, else this one."""
    if settings.topology is None:
        return detect_topology()
    return load_topology(Path(settings.topology))


def model_of(settings: Settings) -> str:
    """The model that was asked for, else the bundled one's folder."""
    if settings.model is None:
        return str(bundled_model())
    is_home = settings.model.startswith("~")
    return str(Path(settings.model).expanduser()) if is_home else settings.model


def _read_requests(
    settings: Settings, started: datetime
) -> tuple[tuple[Request, ...], tuple[InvalidRequest, ...]]:
    found = read_all(settings.requests, started=started, limit=settings.limit)
    _refuse_if_strict(settings, found.invalid)
    if settings.slo_file is None:
        return found.valid, found.invalid
    rules = load_slo_rules(Path(settings.slo_file), started)
    promised = tuple(
        structs.replace(request, slo=rules.slo_for(request)) for request in found.valid
    )
    return promised, found.invalid


def _refuse_if_strict(settings: Settings, invalid: Sequence[InvalidRequest]) -> None:
    if settings.strict and invalid:
        first = invalid[0]
        raise RequestFileError(
            f"{first.source}: {first.field}: {first.reason} (--strict: {len(invalid)} invalid "
            "lines, nothing was run)"
        )


def _refuse_unknown_variants(settings: Settings) -> None:
    """UsageError for a name or an option that means nothing, before any file is read."""
    LENGTH_PREDICTORS.build(settings.predictor.name, settings.predictor.options)
    SCHEDULERS.build(settings.scheduler.name, settings.scheduler.options)
    PLACEMENTS.build(settings.placement.name, settings.placement.options)


def _engine_context(settings: Settings, plan: Plan, timer: RunTimer) -> EngineContext:
    return EngineContext(
        model=model_of(settings),
        device_map=device_map(plan.placement, plan.model, plan.topology),
        visible_devices=cuda_visible_devices(plan.placement, plan.topology),
        clock=timer.clock,
        started_s=timer.started_s,
        step_times=plan.step_times,
        loading_s=loading_s(plan.model),
        seed=settings.seed,
    )


def _conclude(
    directory: Path, info: RunInfo, results: Sequence[Result], duration_s: float
) -> RunReport:
    """Writes what a run leaves beside its results: latencies, figures, and its duration."""
    rows = [latency_row(result) for result in results]
    figures = summarise(rows, duration_s)
    write_latency_table(directory / files.LATENCY, rows)
    write_json(directory / files.REPORT, report_document(figures))
    write_json(directory / files.RUN, replace(info, duration_s=duration_s))
    return figures
