"""`uellm plan`: the verdict on a file, and the order that leads to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output
from uellm_cli.config import Settings
from uellm_cli.errors import UsageError

if TYPE_CHECKING:
    from uellm_cli.clock import Clock


def plan(
    requests: options.RequestFiles,
    slo_file: options.SloFile = None,
    model: options.Model = None,
    predictor: options.Predictor = options.PREDICTOR,
    predictor_option: options.PredictorOptions = None,
    scheduler: options.Scheduler = options.SCHEDULER,
    variant: options.Variant = None,
    scheduler_option: options.SchedulerOptions = None,
    engine: options.Engine = options.ENGINE,
    engine_option: options.EngineOptions = None,
    topology: options.TopologyFile = None,
    algorithm: options.Algorithm = options.ALGORITHM,
    algorithm_option: options.AlgorithmOptions = None,
    max_tokens: options.MaxTokens = None,
    max_batch: options.MaxBatch = None,
    limit: options.Limit = None,
    strict: options.Strict = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="What every scheduler would come to, and which to take."),
    ] = False,
    output: options.OutputFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    truncate_prompt: options.TruncatePrompt = False,
    trust_remote_code: options.TrustRemoteCode = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """What would happen to these requests here: the verdict, before anything loads.

    Example: uellm plan sample_data/requests.jsonl --slo-file sample_data/slo.yaml
    """
    from uellm_cli import pipeline
    from uellm_cli.atomic import write_json
    from uellm_cli.cli import plan_view as view
    from uellm_cli.clock import SystemClock
    from uellm_cli.scheduler.remedies import NOBODY

    if compare and output is not None:
        raise UsageError("--compare decides nothing that -o could keep; leave one of them out")
    options.refuse_overwriting(output, requests)
    settings = Settings(
        predictor=options.choice(predictor, predictor_option),
        scheduler=options.choice(scheduler, scheduler_option, variant=variant),
        placement=options.choice(algorithm, algorithm_option),
        engine=options.choice(engine, engine_option),
        requests=tuple(requests),
        slo_file=slo_file,
        model=model,
        topology=topology,
        max_tokens=max_tokens,
        max_batch=max_batch,
        limit=limit,
        strict=strict,
        truncate_prompt=truncate_prompt,
        trust_remote_code=trust_remote_code,
    )
    clock = SystemClock()
    show = Output(json, quiet)
    if model is None:
        show.say(BUNDLED_MODEL_NOTE)
    if compare:
        _compare(settings, clock, show)
        return
    profiled, planned = pipeline.plan(settings, clock.wall(), is_kept=output is not None)
    if output is not None:
        write_json(Path(output), planned)
    by_id = {request.custom_id: request for request in profiled.requests}
    verdict = planned.verdict
    show.say(*profiled.notes, *view.lengths_note(profiled.trust))
    show.say(view.verdict_sentence(planned), view.facts(planned))
    if verdict.first_late is not None:
        show.say(view.late_sentence(verdict.first_late))
    if verdict.late.mean >= NOBODY:
        show.say(view.remedies_sentence(verdict.remedies))
    if planned.schedule.oversized:
        show.say(view.no_room_sentence(planned.schedule.oversized))
    if profiled.invalid:
        show.say(f"{len(profiled.invalid)} lines are invalid and will be error rows")
    show.say("", view.classes_table(verdict), "", view.timeline(verdict))
    show.say("", view.batches_table(planned, by_id))
    if output is not None:
        show.say(
            f"Run it: uellm run {' '.join(requests)} --plan {output}, with the same flags but for "
            "--scheduler and --max-batch"
        )
    show.document(planned)


def _compare(settings: Settings, clock: Clock, show: Output) -> None:
    from uellm_cli import pipeline
    from uellm_cli.cli import plan_view as view

    profiled, found = pipeline.compare(settings, clock.wall(), clock)
    show.say(*profiled.notes, *view.lengths_note(profiled.trust))
    show.say("", view.comparison_table(found), "", view.advice(found))
    show.document(found)
