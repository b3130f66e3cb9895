"""Promises kept on the real engine: `uellm run` with several schedulers, in turns, on one machine.

    python -m benchmarks.promises [--requests N] [--rounds N] [--rows N] [--scheduler NAME ...]

Requests are the samples', drawn with a seed, in three classes: a fifth is due after 35 % of what a
first run in order of arrival takes, two fifths after 75 %, and two fifths after 130 %. All
schedulers get the same file, flags and machine; a pilot and what is learnt on the way are on for
all. Late requests and seconds from the first prompt to the last answer are medians of the rounds,
with the least and the most; ratios are medians of the rounds' ratios to `fifo`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import pyarrow.parquet as pq

from uellm_cli.bench.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "sample_data" / "requests.jsonl"
FIFO = "fifo"
SCHEDULERS = ("uellm", FIFO, "edf", "slo-odbs", "s3")
# Name, share of the requests, and deadline as a share of what a first run takes.
CLASSES = (("soon", 0.2, 0.35), ("later", 0.4, 0.75), ("any time", 0.4, 1.3))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run; `work_s` is from the first prompt to the last answer."""

    late: int
    work_s: float
    begin_s: float


@dataclass(frozen=True, slots=True)
class Figure:
    scheduler: str
    late: float
    late_least: int
    late_most: int
    work_s: float
    work_least_s: float
    work_most_s: float
    work_over_fifo: float


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(Path(folder), asked)
    figures = [_figure(name, found[name], found[FIFO]) for name in asked.scheduler]
    for figure in figures:
        print(
            f"{figure.scheduler:<10} late {figure.late:5.0f} ({figure.late_least}-"
            f"{figure.late_most})  {figure.work_s:6.2f} s ({figure.work_least_s:.2f}-"
            f"{figure.work_most_s:.2f})  {figure.work_over_fifo:5.3f} x fifo"
        )
    document = {
        "benchmark": "promises",
        "command": sys.orig_argv[1:],
        "requests": asked.requests,
        "rows": asked.rows,
        "rounds": asked.rounds,
        "figures": [asdict(figure) for figure in figures],
        "machine": describe_machine(),
    }
    print(json.dumps(document))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scheduler", action="append")
    asked = parser.parse_args()
    asked.scheduler = asked.scheduler or list(SCHEDULERS)
    if FIFO not in asked.scheduler:
        parser.error(f"{FIFO} is what the others are compared with")
    return asked


def _measured(folder: Path, asked: argparse.Namespace) -> dict[str, list[Outcome]]:
    requests = folder / "requests.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines_of(asked)))
    slo_file = folder / "slo.yaml"
    slo_file.write_text(slo_of(0.0, 3600.0))
    # The first run compiles what there is to compile, and says how long there is.
    _run(folder / "warm", requests, slo_file, FIFO, asked.rows)
    first = _run(folder / "first", requests, slo_file, FIFO, asked.rows)
    slo_file.write_text(slo_of(first.begin_s, first.work_s))
    print(f"fifo takes {first.work_s:.2f} s, {first.begin_s:.2f} s after its start")
    found: dict[str, list[Outcome]] = {name: [] for name in asked.scheduler}
    for number in range(asked.rounds):
        for name in _rotated(asked.scheduler, number):
            outcome = _run(folder / f"{number}-{name}", requests, slo_file, name, asked.rows)
            found[name].append(outcome)
    return found


def lines_of(asked: argparse.Namespace) -> list[dict[str, object]]:
    """Plain lines, each of one of the classes."""
    random = Random(asked.seed)  # noqa: S311 - requests, not secrets
    samples = [json.loads(line) for line in SAMPLES.read_text().splitlines()]
    plain = [line for line in samples if "messages" in line]
    names = [name for name, share, _ in CLASSES for _ in range(round(share * asked.requests))]
    random.shuffle(names)
    return [
        {
            "id": f"r{i}",
            "messages": random.choice(plain)["messages"],
            "max_tokens": 256,
            "metadata": {"class": name},
        }
        for i, name in enumerate(names)
    ]


def slo_of(begin_s: float, work_s: float) -> str:
    rules = [
        f"  - {{name: {name}, match: {{metadata.class: {name}}}, "
        f"deadline: {begin_s + share * work_s:.3f}s}}"
        for name, _, share in CLASSES
    ]
    return "classes:\n" + "\n".join(rules) + "\n"


def _run(folder: Path, requests: Path, slo_file: Path, scheduler: str, rows: int) -> Outcome:
    flags = ["--slo-file", slo_file, "--scheduler", scheduler, "--max-batch", rows, "-o", folder]
    command = [sys.executable, "-m", "uellm_cli", "run", requests, *flags, "--quiet"]
    environment = os.environ | {"UELLM_STEP_TIMES": str(requests.parent / "step-times")}
    subprocess.run([str(word) for word in command], env=environment, check=True)
    rows_read = pq.read_table(folder / "latency.parquet").to_pylist()
    begin_s = min(row["queue_s"] for row in rows_read)
    return Outcome(
        late=sum(row["met"] is False for row in rows_read),
        work_s=max(row["e2e_s"] for row in rows_read) - begin_s,
        begin_s=begin_s,
    )


def _rotated(names: Sequence[str], by: int) -> list[str]:
    first = by % len(names)
    return [*names[first:], *names[:first]]


def _figure(name: str, outcomes: Sequence[Outcome], fifo: Sequence[Outcome]) -> Figure:
    late = [outcome.late for outcome in outcomes]
    work = [outcome.work_s for outcome in outcomes]
    ratios = [one.work_s / other.work_s for one, other in zip(outcomes, fifo, strict=True)]
    return Figure(
        scheduler=name,
        late=statistics.median(late),
        late_least=min(late),
        late_most=max(late),
        work_s=statistics.median(work),
        work_least_s=min(work),
        work_most_s=max(work),
        work_over_fifo=statistics.median(ratios),
    )


if __name__ == "__main__":
    main()
