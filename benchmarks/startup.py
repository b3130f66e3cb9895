"""Seconds from typing a planning command to its end, as ratios to starting Python alone.

    python -m benchmarks.startup

The best of several runs of each, interleaved, so that a busy moment hits all alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from uellm_cli.bench.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent
ROUNDS = 7
LARGE = 10_000
SAMPLES = "sample_data"
LLAMA_ON_8_H100 = (
    f"--topology {SAMPLES}/topologies/8xh100.yaml --model {SAMPLES}/models/llama-70b.json"
)


def commands(large_file: Path) -> dict[str, list[str]]:
    uellm = [sys.executable, "-m", "uellm_cli"]
    lines = {
        "uellm --help": "--help",
        "plan-deploy --dry-run, 70B on 8 H100": f"plan-deploy --dry-run {LLAMA_ON_8_H100}",
        "plan, 200 requests": f"plan {SAMPLES}/requests.jsonl --slo-file {SAMPLES}/slo.yaml",
        f"plan, {LARGE:,} requests": f"plan {large_file} --slo-file {SAMPLES}/slo.yaml",
        f"profile, {LARGE:,} requests": f"profile {large_file}",
    }
    python = {"python -c pass": [sys.executable, "-c", "pass"]}
    return python | {name: [*uellm, *line.split()] for name, line in lines.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        large_file = Path(folder) / "large.jsonl"
        _write_requests(large_file, LARGE)
        best = dict.fromkeys(commands(large_file), float("inf"))
        for _ in range(ROUNDS):
            for name, command in commands(large_file).items():
                best[name] = min(best[name], _seconds(command))
    floor = best["python -c pass"]
    for name, seconds in best.items():
        print(f"{name:<40} {seconds:7.3f} s {seconds / floor:7.1f} x")
    print(json.dumps({"benchmark": "startup", "seconds": best, "machine": describe_machine()}))


def _write_requests(path: Path, count: int) -> None:
    """Plain lines of about 400 bytes, a third of them due soon."""
    text = "Count from 3 to 9, and then say in a few words what you did. " * 5
    with path.open("w") as file:
        for i in range(count):
            line = {"custom_id": f"r{i}", "prompt": f"{text}{i}", "max_tokens": 64 + i % 400}
            if i % 3 == 0:
                line["metadata"] = {"tier": "gold"}
            file.write(json.dumps(line) + "\n")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
