"""`uellm plan`: the verdict on a file, and the order that leads to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uellm_cli.cli import options
from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output, amount, duration
from uellm_cli.config import Choice, Settings

if TYPE_CHECKING:
    from rich.table import Table

    from uellm_cli.profiler.trust import Trust
    from uellm_cli.types import Plan, ProfiledRequest

SHOWN_BATCHES = 8


def plan(
    requests: options.RequestFiles,
    slo_file: options.SloFile = None,
    model: options.Model = None,
    predictor: options.Predictor = options.PREDICTOR,
    predictor_option: options.PredictorOptions = None,
    scheduler: options.Scheduler = options.SCHEDULER,
    variant: options.Variant = None,
    scheduler_option: options.SchedulerOptions = None,
    topology: options.TopologyFile = None,
    algorithm: options.Algorithm = options.ALGORITHM,
    algorithm_option: options.AlgorithmOptions = None,
    max_tokens: options.MaxTokens = None,
    max_batch: options.MaxBatch = None,
    limit: options.Limit = None,
    strict: options.Strict = False,
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
    from uellm_cli.clock import SystemClock

    options.refuse_overwriting(output, requests)
    settings = Settings(
        predictor=options.choice(predictor, predictor_option),
        scheduler=options.choice(scheduler, scheduler_option, variant=variant),
        placement=options.choice(algorithm, algorithm_option),
        engine=Choice(options.ENGINE),
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
    profiled, planned = pipeline.plan(settings, SystemClock().wall())
    show = Output(json, quiet)
    if model is None:
        show.say(BUNDLED_MODEL_NOTE)
    if output is not None:
        write_json(Path(output), planned)
    by_id = {request.custom_id: request for request in profiled.requests}
    show.say(*profiled.notes, *lengths_note(profiled.trust))
    show.say(verdict_sentence(planned), facts(planned))
    if profiled.invalid:
        show.say(f"{len(profiled.invalid)} lines are invalid and will be error rows")
    show.say(_classes(planned), _batches(planned, by_id))
    show.document(planned)


def verdict_sentence(planned: Plan) -> str:
    """The prediction in one sentence, with what it stands on."""
    verdict = planned.verdict
    total = sum(entry.requests for entry in verdict.classes)
    basis = f"at median lengths, {verdict.step_source} step times"
    if verdict.late == 0:
        return (
            f"All {total:,} would be in time, done after {duration(verdict.makespan_s)} ({basis})."
        )
    return (
        f"{verdict.late:,} of {total:,} would be late, done after "
        f"{duration(verdict.makespan_s)} ({basis})."
    )


def lengths_note(stands_on: Trust) -> list[str]:
    """What has to be said of predicted lengths, if anything."""
    if stands_on.is_adapted:
        return []
    return [
        f"Lengths are by {stands_on.source}, which has not seen this model's answers: no coverage "
        "is promised"
    ]


def facts(planned: Plan) -> str:
    """Model, machine and order in one line."""
    devices = ", ".join(dict.fromkeys(planned.placement.device_ids))
    return (
        f"{planned.model.name} on {devices}: {amount(planned.model.weight_bytes)} of weights, "
        f"{amount(planned.budget.kv_bytes)} for KV; {len(planned.schedule.batches)} batches by "
        f"{planned.schedule.algorithm}"
    )


def _classes(planned: Plan) -> Table:
    from rich.table import Table
    from rich.text import Text

    from uellm_cli.report.console import visible

    table = Table(title="Predicted by class", title_justify="left")
    table.add_column("class", overflow="fold")
    table.add_column("requests", justify="right")
    table.add_column("late", justify="right")
    for entry in planned.verdict.classes:
        style = "red" if entry.late else "green"
        table.add_row(
            Text(visible(entry.name)), f"{entry.requests:,}", Text(f"{entry.late:,}", style)
        )
    return table


def _batches(planned: Plan, requests: Mapping[str, ProfiledRequest]) -> Table:
    from rich.table import Table

    batches = planned.schedule.batches
    shown = batches[:SHOWN_BATCHES]
    table = Table(title=f"First {len(shown)} of {len(batches)} batches", title_justify="left")
    for name in ("batch", "requests", "longest prompt", "longest p50", "earliest deadline"):
        table.add_column(name, justify="right")
    for batch in shown:
        members = [requests[custom_id] for custom_id in batch.custom_ids]
        due = [m.finish_by_s for m in members if m.finish_by_s is not None]
        table.add_row(
            str(batch.batch_id),
            str(len(members)),
            f"{max(member.prompt_tokens for member in members):,}",
            f"{max(member.output.p50 for member in members):,.0f}",
            duration(min(due)) if due else "-",
        )
    return table
