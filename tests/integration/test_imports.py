"""What each command imports, seen from inside a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

HEAVY = ("torch", "transformers", "accelerate")
PROBE = f"""
import json, sys
from uellm_cli.cli import main
try:
    main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
sys.stderr.write("\\n" + json.dumps([code, [m for m in {HEAVY!r} if m in sys.modules]]))
"""


def probe(*arguments: object) -> tuple[int, list[str]]:
    """The exit code of a command, and which heavy packages it imported."""
    finished = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    code, heavy = json.loads(finished.stderr.splitlines()[-1])
    return code or 0, heavy


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "run --help",
        "version",
        "topology",
        "profile sample_data/requests.jsonl",
        "plan sample_data/requests.jsonl --slo-file sample_data/slo.yaml",
        "plan sample_data/requests.parquet --topology sample_data/topologies/8xh100.yaml "
        "--model sample_data/models/llama-70b.json",
        "plan-deploy --dry-run --topology sample_data/topologies/8xh100.yaml "
        "--model sample_data/models/llama-70b.json",
    ],
)
def test_no_planning_command_imports_torch_or_transformers(command: str) -> None:
    assert probe(*command.split()) == (0, [])


def test_neither_does_a_report_nor_a_simulated_run(tmp_path: Path) -> None:
    run = "run sample_data/requests.jsonl --engine simulated -o"
    assert probe(*run.split(), tmp_path / "run") == (0, [])
    assert probe("report", tmp_path / "run") == (0, [])


def test_help_comes_at_once() -> None:
    # About 0.2 s on two idle cores; the best of five, so that a busy machine is no failure.
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "uellm_cli", "--help"], capture_output=True, check=True
        )
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 1.0
