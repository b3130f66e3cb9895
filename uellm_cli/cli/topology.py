"""`uellm topology`: the machine as a placement sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import Output, amount

if TYPE_CHECKING:
    from rich.table import Table

    from uellm_cli.types import Topology


def topology(
    file: Annotated[
        str | None,
        typer.Option(
            "--topology", help="Show this machine file, not this machine.", show_default=False
        ),
    ] = None,
    output: options.OutputFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Devices, their memory and speed, and the links between them.

    Example: uellm topology -o topology.yaml
    """
    from pathlib import Path

    from uellm_cli.hardware import detect_topology, dump_topology, load_topology

    machine = detect_topology() if file is None else load_topology(Path(file))
    show = Output(json, quiet)
    if output is not None:
        options.write_text(output, dump_topology(machine))
    show.say(_devices(machine))
    if len(machine.devices) > 1:
        show.say(_links(machine))
    show.say(*(f"note: {note}" for note in machine.notes))
    if output is not None:
        show.say(f"Wrote {output}. Next: uellm plan-deploy --dry-run --topology {output}")
    show.document(machine)


def _devices(machine: Topology) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Devices ({machine.origin})", title_justify="left")
    table.add_column("id", overflow="fold")
    table.add_column("name", overflow="fold")
    for name in ("memory", "free", "bandwidth", "TFLOP/s", "NUMA"):
        table.add_column(name, justify="right")
    for device in machine.devices:
        table.add_row(
            Text(device.id),
            Text(device.name),
            amount(device.memory_bytes),
            amount(device.free_bytes),
            f"{amount(device.bandwidth_bytes_per_s)}/s",
            f"{device.flops_per_s / 1e12:.3g}",
            "-" if device.numa_node is None else str(device.numa_node),
        )
    return table


def _links(machine: Topology) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Links", title_justify="left")
    table.add_column("")
    for device in machine.devices:
        table.add_column(Text(device.id), justify="center")
    for a in machine.devices:
        cells = []
        for b in machine.devices:
            link = machine.link(a.id, b.id)
            cells.append("·" if a.id == b.id else "?" if link is None else link.type)
        table.add_row(Text(a.id), *cells)
    return table
