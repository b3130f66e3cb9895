"""The story of uellm, one function a command: requests -> profile -> plan -> run -> report.

Every function here is told the time and where to report progress; none prints. What each stage
decides is in its own room.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec import structs

from uellm_cli.atomic import write_json
from uellm_cli.clock import Clock
from uellm_cli.columns import columns_of
from uellm_cli.config import Choice, Resume, Settings
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.budget import workload_of
from uellm_cli.deployer.export import cuda_visible_devices, device_map
from uellm_cli.engines import ENGINES, EngineContext, batching_of
from uellm_cli.errors import ExitCode, OutputError, RequestFileError
from uellm_cli.executor import run_directory as files
from uellm_cli.executor.durability import parse_durability
from uellm_cli.executor.execute import Conduct, RunTimer, execute
from uellm_cli.executor.given_plan import left_of, read_plan, refuse_another
from uellm_cli.executor.index import Index, ResultReader, read_index
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.learning import OwnAnswers
from uellm_cli.executor.outputs import ResultSink, Rows, write_all, write_rows
from uellm_cli.executor.own_predictor import OwnPredictor, kept_predictor, not_adapted
from uellm_cli.executor.pace import Pace
from uellm_cli.executor.progress import Progress
from uellm_cli.executor.run_info import new_run, origin_of, resumed_run
from uellm_cli.executor.session import (
    all_done,
    begin_again,
    done_before,
    encoder_of,
    left_to_do,
    timer_of,
)
from uellm_cli.executor.stop import Stop
from uellm_cli.executor.todo import Todo
from uellm_cli.models.files import samples_by_default
from uellm_cli.models.spec import load_model_spec
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.planning import (
    Compared,
    compared,
    in_groups,
    judged,
    model_of,
    placed,
    plan_for,
    plan_with_pilot,
    step_key,
    step_tokens_of,
    topology_of,
)
from uellm_cli.profiler.learning.saved import build_predictor
from uellm_cli.profiler.lengths.adapted import AdaptedModel
from uellm_cli.profiler.pilot import Pilot, parse_pilot
from uellm_cli.profiler.profile import Profile, Profiler
from uellm_cli.profiler.trust import Trust, trust
from uellm_cli.report.goodput import GoodputTargets
from uellm_cli.report.json_report import report_document
from uellm_cli.report.metrics import RunReport, summarise
from uellm_cli.report.parquet import read_latency_table
from uellm_cli.report.rows import latency_row
from uellm_cli.requests import expand_paths, load_slo_rules, read_requests
from uellm_cli.requests.slo import SloRules
from uellm_cli.requests.store import RequestStore
from uellm_cli.scheduler import SCHEDULERS
from uellm_cli.timing.calibration import WORTH_S, calibrate
from uellm_cli.timing.kept import folder_of, keep_steps
from uellm_cli.timing.loading import loading_s
from uellm_cli.timing.scenarios import ADAPTED
from uellm_cli.types import (
    Conditions,
    Endpoint,
    Engine,
    InvalidRequest,
    LengthPredictor,
    ModelSpec,
    Placement,
    Plan,
    ProfiledRequest,
    Request,
    RunInfo,
    Schedule,
    Source,
    Topology,
    Workload,
)

# What a placement makes room for when nothing is known of the requests: rows, and tokens of each.
UNKNOWN_WORKLOAD_ROWS = 10
UNKNOWN_WORKLOAD_TOKENS = 2048


class Observer(Protocol):
    """Who watches a run; the command line draws what it is told."""

    def on_read(self, info: RunInfo, profiled: Profiled) -> None: ...

    def on_journal(self, index: Index) -> None:
        """What an earlier session left; told of a resumed run only."""
        ...

    def on_plan(self, plan: Plan) -> None: ...

    def on_revised(self, plan: Plan) -> None:
        """What is left is done in another order, since answers are not as long as predicted."""
        ...

    def on_note(self, note: str) -> None:
        """A remark of the engine's for the user."""
        ...

    def on_progress(self, look: Callable[[], Progress]) -> None:
        """Told after every batch; `look` says where the run stands."""
        ...


@dataclass(frozen=True, slots=True)
class Profiled:
    """Requests with all that is known of them before a model is loaded; their text is not kept.

    `trust` is what their predicted lengths stand on, `notes` are remarks on the files for the user.
    """

    requests: list[ProfiledRequest]
    invalid: list[InvalidRequest]
    profile: Profile
    profiler: Profiler
    trust: Trust
    notes: tuple[str, ...]

    @property
    def model(self) -> ModelSpec:
        return self.profiler.model


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


def profile(
    settings: Settings,
    started: datetime,
    store: RequestStore | None = None,
    predictor: LengthPredictor | None = None,
) -> Profiled:
    """Reads the requests and says how long each prompt is and each answer will be.

    Text is read once and in pieces; `store` keeps what is needed of it to run. `predictor` is one
    that knows the model's answers; None for the one that is asked for.
    """
    slo_file = settings.slo_file
    rules = SloRules() if slo_file is None else load_slo_rules(Path(slo_file), started)
    model = load_model_spec(model_of(settings))
    profiler = Profiler(
        tokenizer=load_tokenizer(model_of(settings), settings.trust_remote_code, started),
        model=model,
        predictor=predictor or build_predictor(settings.predictor.name, settings.predictor.options),
        max_tokens=settings.max_tokens,
        truncate=settings.truncate_prompt,
        samples_by_default=samples_by_default(model_of(settings)),
    )
    invalid: list[InvalidRequest] = []
    notes: list[str] = []
    rows = read_requests(
        settings.requests, started=started, limit=settings.limit, note=notes.append
    )
    endpoints: set[Endpoint] = set()
    valid = _of_endpoints(_promised(rows, rules, invalid), endpoints)
    known = profiler.profile(valid, keep=store.add if store is not None else None)
    invalid += known.invalid
    if not known.requests:
        raise _nothing_to_run(settings, invalid)
    _refuse_if_strict(settings, invalid)
    if Endpoint.CHAT in endpoints and not profiler.tokenizer.has_chat_template:
        notes.append(
            f"{model_of(settings)} has no chat template: messages are given to it joined by "
            "newlines, without their roles"
        )
    stands_on = trust(
        settings.predictor.name,
        settings.predictor.options,
        profiler.predictor.source,
        model_of(settings),
        is_adapted=predictor is not None,
    )
    return Profiled(known.requests, invalid, known, profiler, stands_on, tuple(notes))


def plan(settings: Settings, started: datetime, is_kept: bool) -> tuple[Profiled, Plan]:
    """Profiles, then decides everything: budget, order, placement, and the verdict on them.

    A plan that `is_kept` says what it was made for, so that it can be run later.
    """
    _refuse_unknown_variants(settings)
    profiled = profile(settings, started)
    decided = plan_for(
        settings,
        profiled.model,
        profiled.requests,
        is_adapted=profiled.trust.is_adapted,
        with_remedies=True,
    )
    if is_kept:
        decided = replace(decided, origin=origin_of(settings, model_of(settings)))
    return profiled, decided


def compare(settings: Settings, started: datetime, clock: Clock) -> tuple[Profiled, list[Compared]]:
    """Profiles, then asks every scheduler what it would come to; the best first."""
    _refuse_unknown_variants(settings)
    profiled = profile(settings, started)
    found = compared(settings, profiled.model, profiled.requests, profiled.trust.is_adapted, clock)
    return profiled, found


def plan_deploy(settings: Settings, started: datetime) -> tuple[Placement, ModelSpec, Topology]:
    """Places the model for the given requests, or for an assumed workload when there are none."""
    model = load_model_spec(model_of(settings))
    topology = topology_of(settings)
    algorithm = PLACEMENTS.build(settings.placement.name, settings.placement.options)
    if settings.requests:
        requests = profile(settings, started).requests
        placement = placed(algorithm, model, topology, settings, partial(workload_of, requests))
    else:
        tokens = min(UNKNOWN_WORKLOAD_TOKENS, model.context_tokens)
        rows = settings.max_batch or UNKNOWN_WORKLOAD_ROWS
        placement = algorithm.place(model, topology, Workload(rows, tokens, tokens))
    return placement, model, topology


def run(
    settings: Settings,
    directory: Path,
    resume: Resume | None,
    started: datetime,
    clock: Clock,
    stop: Stop,
    observer: Observer,
) -> RunOutcome:
    """Answers every request and keeps each answer the moment its batch ends.

    With `resume` a run keeps the first one's settings and start, and answers what the journal
    lacks or what is asked for again.

    A kill between any two steps can be resumed: the journal alone says what is answered.
    `run.json` is there before anything is answered, without a duration until all files derived
    from the journal are in place; notes about void or reopened answers come before it changes.
    """
    with files.opened(directory, resume is not None) as journal:
        if resume is not None:
            settings, info = resumed_run(settings.requests, resume, directory)
            observer.on_journal(journal.index)
        _refuse_unknown_variants(settings)
        if settings.plan is not None:
            algorithm = read_plan(Path(settings.plan)).schedule.algorithm
            settings = replace(settings, scheduler=Choice(algorithm))
        factory = ENGINES.build(settings.engine.name, settings.engine.options)
        if resume is None:
            virtual = factory.in_virtual_time
            settings, info = new_run(
                settings, model_of(settings), virtual, directory, sys.argv, started
            )
        journal.keep(parse_durability(settings.durability))
        kept = None if resume is None else kept_predictor(directory, observer.on_note)
        store = RequestStore(directory, info.model_fingerprint)
        profiled = profile(settings, info.started, store, kept)
        observer.on_read(info, profiled)

        begin_again(journal, resume or Resume(), store)
        todo = left_to_do(profiled.requests, journal, store, profiled.profiler)
        timer = timer_of(info, clock, journal.index, is_resumed=resume is not None)
        inputs = expand_paths(settings.requests)
        rows = Rows(journal, store, profiled.requests, profiled.invalid, inputs, profiled.model)
        write_json(directory / files.RUN, replace(info, duration_s=None) if todo else info)
        write_rows(directory, rows, info)
        # With nothing left to do it took as long as it took; to the last answer if killed after it.
        duration_s = info.duration_s or journal.index.latest_s
        if todo:
            decided, pilot = _decided(settings, info, profiled, kept, todo, timer, observer)
            write_json(directory / files.PLAN, decided)
            observer.on_plan(decided)
            pace = Pace(decided.step_times, settings.seed)
            with ResultSink(directory, info, journal) as sink:
                engine = factory.start(
                    _engine_context(settings, decided, timer, stop, observer.on_note, pace)
                )
                is_worth = settings.calibrate and not info.simulated and settings.plan is None
                if is_worth and _is_long(decided, todo, timer):
                    _calibrate(decided, engine, clock, observer)
                learner = None
                if not info.simulated and settings.plan is None:
                    now = kept or not_adapted(settings.predictor, profiled.profiler.predictor)
                    own = OwnPredictor(
                        directory, info, now, profiled.profiler, timer.clock, todo, observer.on_note
                    )
                    learner = _learner(settings, decided, pilot, own, timer, observer, pace)
                conduct = _conduct(
                    settings, profiled, journal, todo, timer, stop, observer, learner, pace
                )
                encode = encoder_of(info, profiled.profiler.tokenizer)
                with stop.deferred():
                    execute(decided, todo, encode, engine, sink, conduct)
                if not info.simulated:
                    _keep_pace(settings, decided, pace, observer.on_note)
            duration_s = timer.elapsed_s()
        stopped = not all_done(todo, journal)
        return _concluded(
            directory, rows, replace(info, duration_s=duration_s, interrupted=stopped), settings
        )


def report(directory: Path, goodput: GoodputTargets | None) -> tuple[RunInfo, RunReport]:
    """The figures of a run from its directory alone; of one that was killed, from its journal."""
    info = files.read_run_info(directory)
    if info.duration_s is not None:
        rows = read_latency_table(directory / files.LATENCY)
        return info, summarise(rows, info.duration_s, goodput)
    index = read_index(directory / files.JOURNAL)
    with (directory / files.JOURNAL).open("rb") as journal:
        reader = ResultReader(journal)
        rows = (latency_row(reader.result(entry)) for entry in index.entries.values())
        return info, summarise(rows, index.latest_s, goodput)


def _promised(
    rows: Iterator[Request | InvalidRequest], rules: SloRules, invalid: list[InvalidRequest]
) -> Iterator[Request]:
    """The valid requests with what they are promised; the others are put aside."""
    for row in rows:
        if isinstance(row, InvalidRequest):
            invalid.append(row)
        else:
            yield structs.replace(row, slo=rules.slo_for(row)) if row.slo is None else row


def _decided(
    settings: Settings,
    info: RunInfo,
    profiled: Profiled,
    kept: AdaptedModel | None,
    todo: Todo,
    timer: RunTimer,
    observer: Observer,
) -> tuple[Plan, frozenset[str]]:
    """The plan, which may have been made before, and which requests it begins with to learn."""
    if settings.plan is not None:
        path = Path(settings.plan)
        given = read_plan(path)
        names = {request.custom_id for request in profiled.requests}
        now = origin_of(settings, model_of(settings))
        refuse_another(given, path, now, topology_of(settings), names)
        return left_of(given, todo), frozenset()
    return plan_with_pilot(
        settings,
        profiled.model,
        [*todo.profiled.values()],
        timer.began_s,
        _pilot(settings, info, profiled, kept, observer),
        is_adapted=profiled.trust.is_adapted,
    )


def _is_long(decided: Plan, todo: Todo, timer: RunTimer) -> bool:
    """Whether step times are worth to be measured: not known, much to do, and nothing due soon."""
    if decided.step_times.source in (Source.CALIBRATED, Source.MEASURED):
        return False
    if decided.verdict.makespan_s.mean - timer.began_s < WORTH_S:
        return False
    due_s = columns_of([*todo.profiled.values()]).due_s
    return float(due_s.min(initial=math.inf)) - timer.elapsed_s() >= WORTH_S


def _calibrate(decided: Plan, engine: Engine, clock: Clock, observer: Observer) -> None:
    """Has the engine's steps timed first."""
    observer.on_note("the engine's steps are timed first, for at most 20 s or so")
    model = decided.model
    token_bytes = model.kv_bytes(model.context_tokens) / model.context_tokens
    calibrate(engine, decided.budget, token_bytes, model.context_tokens, clock)


def _pilot(
    settings: Settings,
    info: RunInfo,
    profiled: Profiled,
    kept: AdaptedModel | None,
    observer: Observer,
) -> Pilot:
    """The pilot that was asked for; none where lengths are made up, or have been learnt already."""
    asked = parse_pilot(settings.pilot)
    if info.simulated and asked.is_asked:
        observer.on_note("no pilot: lengths that are made up teach nothing")
    is_known = kept is not None or (asked.is_automatic and profiled.trust.is_adapted)
    return Pilot() if info.simulated or is_known else asked


def _learner(
    settings: Settings,
    decided: Plan,
    pilot: frozenset[str],
    own: OwnPredictor,
    timer: RunTimer,
    observer: Observer,
    pace: Pace,
) -> OwnAnswers:
    """What has the rest of a run done in another order when its answers show that it should be."""
    scheduler = SCHEDULERS.build(settings.scheduler.name, settings.scheduler.options)
    batching = batching_of(settings.engine.name)
    step_tokens = step_tokens_of(settings, decided.topology, decided.placement)

    def reschedule(left: Sequence[ProfiledRequest]) -> Schedule:
        now_s = timer.elapsed_s()
        # As if the engine had nothing in flight: those that are will be done soon.
        conditions = Conditions(
            decided.budget,
            pace.times,
            batching,
            start_s=now_s,
            step_tokens=step_tokens,
            length_correlation=ADAPTED,
            is_running=True,
        )
        columns = columns_of(left)
        # The engine keeps the budget that it was started with.
        arranged = replace(in_groups(scheduler, columns, conditions, now_s), budget=None)
        schedule = arranged.named(settings.scheduler.name, columns.custom_ids)
        verdict = judged(columns, arranged, conditions, settings.seed, at_once=True)
        observer.on_revised(
            replace(decided, schedule=schedule, step_times=pace.times, verdict=verdict)
        )
        return schedule

    return OwnAnswers(
        own.todo, pilot, decided.model, own.adapt, own.moved, reschedule, pace.has_changed
    )


def _keep_pace(settings: Settings, decided: Plan, pace: Pace, note: Callable[[str], None]) -> None:
    """Keeps what steps took for plans to come; that it cannot be kept is no run's concern."""
    fit, folder = pace.fit(), folder_of(os.environ)
    if fit is None or folder is None:
        return
    try:
        keep_steps(folder, step_key(settings, decided.topology, decided.placement), fit)
    except OutputError as error:
        note(f"what steps took is not kept for later plans: {error}")


def _nothing_to_run(settings: Settings, invalid: Sequence[InvalidRequest]) -> RequestFileError:
    if not invalid:
        return RequestFileError(f"{', '.join(settings.requests)}: no requests were read")
    first = invalid[0]
    return RequestFileError(
        f"{', '.join(settings.requests)}: none of {len(invalid)} lines is a valid request; the "
        f"first is {first.source}: {first.field}: {first.reason}"
    )


def _of_endpoints(requests: Iterator[Request], endpoints: set[Endpoint]) -> Iterator[Request]:
    """Notes of which endpoints the requests are, as they pass."""
    for request in requests:
        endpoints.add(request.endpoint)
        yield request


def _refuse_if_strict(settings: Settings, invalid: Sequence[InvalidRequest]) -> None:
    if settings.strict and invalid:
        first = invalid[0]
        raise RequestFileError(
            f"{first.source}: {first.field}: {first.reason} (--strict: {len(invalid)} invalid "
            "lines, nothing was run)"
        )


def _refuse_unknown_variants(settings: Settings) -> None:
    """UsageError for a name or an option that means nothing, before any file is read."""
    build_predictor(settings.predictor.name, settings.predictor.options)
    parse_pilot(settings.pilot)
    ENGINES.build(settings.engine.name, settings.engine.options)
    SCHEDULERS.build(settings.scheduler.name, settings.scheduler.options)
    PLACEMENTS.build(settings.placement.name, settings.placement.options)


def _conduct(
    settings: Settings,
    profiled: Profiled,
    journal: Journal,
    todo: Todo,
    timer: RunTimer,
    stop: Stop,
    observer: Observer,
    learner: OwnAnswers | None,
    pace: Pace,
) -> Conduct:
    return Conduct(
        timer,
        stop,
        observer.on_progress,
        total=len(profiled.requests) + len(profiled.invalid),
        before=done_before(journal, todo, len(profiled.invalid)),
        on_late=settings.on_late,
        learner=learner,
        step_times=lambda: pace.times,
    )


def _engine_context(
    settings: Settings,
    plan: Plan,
    timer: RunTimer,
    stop: Stop,
    note: Callable[[str], None],
    pace: Pace,
) -> EngineContext:
    return EngineContext(
        model=model_of(settings),
        device_map=device_map(plan.placement, plan.model, plan.topology),
        visible_devices=cuda_visible_devices(plan.placement, plan.topology),
        budget=plan.budget,
        clock=timer.clock,
        started_s=timer.started_s,
        step_times=plan.step_times,
        loading_s=loading_s(plan.model),
        seed=settings.seed,
        stop=stop,
        note=note,
        step_seen=pace.seen,
        trust_remote_code=settings.trust_remote_code,
    )


def _concluded(directory: Path, rows: Rows, info: RunInfo, settings: Settings) -> RunOutcome:
    """Writes what a run leaves; `run.json` last, since its duration says that the rest is there."""
    figures = write_all(directory, rows, info, settings.output_format)
    write_json(directory / files.REPORT, report_document(figures))
    write_json(directory / files.RUN, info)
    return RunOutcome(info, figures)
