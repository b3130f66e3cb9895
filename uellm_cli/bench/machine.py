"""What a figure was measured on, and when."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil

from uellm_cli.executor.run_info import installed_versions


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, memory, and the day."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        **installed_versions(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
