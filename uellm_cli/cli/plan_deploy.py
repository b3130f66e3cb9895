"""`uellm plan-deploy`: which devices hold which layers, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output, amount, duration
from uellm_cli.config import Choice, Settings

if TYPE_CHECKING:
    from rich.table import Table

    from uellm_cli.types import ModelSpec, Placement, Topology


def plan_deploy(
    requests: options.OptionalRequestFiles = None,
    model: options.Model = None,
    topology: options.TopologyFile = None,
    algorithm: options.Algorithm = options.ALGORITHM,
    algorithm_option: options.AlgorithmOptions = None,
    max_tokens: options.MaxTokens = None,
    max_batch: options.MaxBatch = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan: write nothing.")
    ] = False,
    output: options.OutputFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Where the model's layers would go, for these requests or an assumed load. Loads no weights.

    Example: uellm plan-deploy --dry-run --topology sample_data/topologies/8xh100.yaml
    --model sample_data/models/llama-70b.json
    """
    from uellm_cli import pipeline
    from uellm_cli.atomic import write_json
    from uellm_cli.clock import SystemClock
    from uellm_cli.deployer.export import placement_document

    settings = Settings(
        predictor=Choice(options.PREDICTOR),
        scheduler=Choice(options.SCHEDULER),
        placement=options.choice(algorithm, algorithm_option),
        engine=Choice(options.ENGINE),
        requests=tuple(requests or ()),
        model=model,
        topology=topology,
        max_tokens=max_tokens,
        max_batch=max_batch,
    )
    placement, spec, machine = pipeline.plan_deploy(settings, SystemClock().wall())
    document = placement_document(placement, spec, machine)
    show = Output(json, quiet)
    if model is None:
        show.say(BUNDLED_MODEL_NOTE)
    show.say(_headline(placement, spec), _stages(placement, machine), *_notes(placement, machine))
    if output is not None and not dry_run:
        write_json(Path(output), document)
        show.say(f"Wrote {output}.")
    elif output is not None:
        show.say(f"Dry run: {output} is not written.")
    show.document(document)


def _headline(placement: Placement, model: ModelSpec) -> str:
    devices = len(set(placement.device_ids))
    return (
        f"{model.name}: {amount(model.weight_bytes)} of weights ({model.weight_source}), "
        f"{len(model.layers)} layers on {devices} device{'s' if devices != 1 else ''} by "
        f"{placement.algorithm}; {placement.rows} sequences at a time; a decode step takes about "
        f"{duration(placement.step_s)} ({placement.step_source})"
    )


def _stages(placement: Placement, topology: Topology) -> Table:
    from rich.table import Table
    from rich.text import Text

    free = {device.id: device.free_bytes for device in topology.devices}
    names = {device.id: device.name for device in topology.devices}
    table = Table(title="Stages", title_justify="left")
    table.add_column("device", overflow="fold")
    for name in ("layers", "weights", "KV", "other", "free memory used"):
        table.add_column(name, justify="right")
    for replica in placement.replicas:
        for stage in replica.stages:
            room = free[stage.device_id]
            table.add_row(
                Text(f"{stage.device_id} ({names[stage.device_id]})"),
                f"{stage.first_layer}-{stage.last_layer - 1}",
                amount(stage.weight_bytes),
                amount(stage.kv_bytes),
                amount(stage.activation_bytes + stage.overhead_bytes),
                f"{stage.total_bytes / room:.0%} of {amount(room)}",
            )
    return table


def _notes(placement: Placement, topology: Topology) -> list[str]:
    return [f"note: {note}" for note in (*placement.notes, *topology.notes)]
