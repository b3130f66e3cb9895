"""The machine that a plan is made for: read from NVML, from this host's CPU, or from a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uellm_cli.hardware.cpu import cpu_topology
from uellm_cli.hardware.files import dump_topology, load_topology
from uellm_cli.hardware.nvml import installed_nvml, nvml_topology

if TYPE_CHECKING:
    from uellm_cli.hardware.nvml import NvmlApi
    from uellm_cli.types import Topology

__all__ = ["detect_topology", "dump_topology", "load_topology"]


def detect_topology(nvml: NvmlApi | None = None) -> Topology:
    """This machine: its visible GPUs where there are any, else its CPU as one device.

    `nvml` stands in for the installed binding. A machine without GPU or driver is no error; a GPU
    that does not answer is left out and named in the notes.
    """
    api = installed_nvml() if nvml is None else nvml
    found = None if api is None else nvml_topology(api, os.environ)
    if found is not None and found.devices:
        return found
    return cpu_topology(notes=() if found is None else found.notes)
