"""The simulator against the real engines: what it says of runs that its step times have not seen.

    python -m benchmarks.simulation [--runs N] [--requests N] [--model NAME ...] [--threads N]

Runs of different requests, prompts and forced answers of heavy-tailed lengths, on one engine; step
times are fitted to the steps of every second run, and the others are simulated with their true
lengths. Deadlines are drawn evenly over the real run. Errors are those of the runs that were kept
aside: of the makespan, of the median and the 99th percentile of E2E latency, and of the share of
late requests in points.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from uellm_cli.bench import models
from uellm_cli.bench.engine import in_a_process
from uellm_cli.bench.machine import describe_machine
from uellm_cli.bench.serve import Job
from uellm_cli.bench.workload import Work, heavy_tailed
from uellm_cli.columns import Arrangement, Floats, Ints, RequestColumns, columns_of
from uellm_cli.models.files import bundled_model
from uellm_cli.timing.fit import fitted
from uellm_cli.timing.simulator import simulate
from uellm_cli.types import (
    QUANTILE_LEVELS,
    Batching,
    Budget,
    Conditions,
    LengthEstimate,
    ProfiledRequest,
    Source,
    StepSample,
    StepTimes,
)

MODELS = (models.BUNDLED, "medium")
ROWS = {Batching.STATIC: 10, Batching.IN_FLIGHT: 32}
ENGINES = {Batching.STATIC: "static", Batching.IN_FLIGHT: "inflight"}
STEP_TOKENS = 512
KV_BYTES = 2**31
# What a fit leans on where steps tell nothing: proportions of a small model on two cores.
ASSUMED = StepTimes(1e-3, 1e-5, 1e-4, 1e-7, Source.ASSUMED)
# What is promised: at most so much off.
LIMITS = {"makespan": 0.10, "p50": 0.15, "p99": 0.15, "late": 0.02}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an engine: its steps, and when each request ended, from its first step on."""

    works: list[Work]
    steps: list[StepSample]
    finished_s: list[float]


@dataclass(frozen=True, slots=True)
class Errors:
    """Of runs kept aside, the mean of |said - seen| / seen; `late` in shares of the requests."""

    model: str
    batching: Batching
    makespan: float
    p50: float
    p99: float
    late: float
    makespan_s: float
    step_error: float


def main() -> None:
    asked = _arguments()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    found: list[Errors] = []
    for model in asked.model or MODELS:
        is_bundled = model == models.BUNDLED
        folder = (
            bundled_model()
            if is_bundled
            else in_a_process(models.make_model, model, 0, asked.cache)
        )
        for batching in (Batching.IN_FLIGHT, Batching.STATIC):
            runs = in_a_process(
                measured, folder, batching, asked.runs, asked.requests, asked.threads
            )
            errors = judged(model, batching, runs)
            found.append(errors)
            print(_line(errors))
    limits = ", ".join(f"{name} {limit:.0%}" for name, limit in LIMITS.items())
    print(f"at most: {limits}")
    document = {
        "benchmark": "simulation",
        "command": sys.orig_argv[1:],
        "errors": [asdict(errors) for errors in found],
        "machine": describe_machine(),
    }
    print(json.dumps(document))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--model", action="append")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=models.default_cache())
    return parser.parse_args()


def measured(folder: Path, batching: Batching, runs: int, requests: int, threads: int) -> list[Run]:
    """Runs of one engine after one that does not count."""
    from uellm_cli.bench.worker import engine_requests, in_batches, start_engine
    from uellm_cli.clock import SystemClock

    steps: list[StepSample] = []
    clock = SystemClock()
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    rows = ROWS[batching]
    first = _job(folder, heavy_tailed(4, vocabulary, seed=99), rows, threads)
    engine = start_engine(ENGINES[batching], {}, first, clock, clock.now_s(), steps.append)
    found = []
    for seed in range(1 + runs):
        works = heavy_tailed(requests, vocabulary, seed)
        job = _job(folder, works, rows, threads)
        steps.clear()
        began_s = clock.now_s()
        finished: dict[int, float] = {}
        for completion in engine.run(in_batches(engine_requests(job), rows)):
            finished[int(completion.custom_id)] = clock.now_s() - began_s
        found.append(Run(works, list(steps), [finished[i] for i in range(requests)]))
    return found[1:]


def _job(folder: Path, works: list[Work], rows: int, threads: int) -> Job:
    return Job(
        model=str(folder),
        dtype="float32",
        device="cpu",
        threads=threads,
        max_sequences=rows,
        prefill_tokens=STEP_TOKENS,
        context_tokens=max(work.tokens for work in works),
        kv_bytes=KV_BYTES,
        eos_token_ids=[],
        prompts=[list(work.prompt_token_ids) for work in works],
        output_tokens=[work.output_tokens for work in works],
        cache="",
    )


def judged(model: str, batching: Batching, runs: list[Run]) -> Errors:
    """Fits on every second run, and simulates the others."""
    fit = fitted([step for run in runs[::2] for step in run.steps], ASSUMED, Source.CALIBRATED)
    if fit is None:
        raise RuntimeError("too few steps to fit")
    under = Conditions(
        Budget(KV_BYTES, ROWS[batching], 2**20), fit.times, batching, step_tokens=STEP_TOKENS
    )
    errors = [_errors(run, under, seed) for seed, run in enumerate(runs[1::2])]
    makespan, p50, p99, late = np.mean(errors, axis=0).tolist()
    seen_s = float(np.mean([max(run.finished_s) for run in runs[1::2]]))
    return Errors(model, batching, makespan, p50, p99, late, seen_s, fit.error)


def _errors(run: Run, under: Conditions, seed: int) -> tuple[float, float, float, float]:
    columns, lengths = _columns(run)
    starts = np.arange(0, len(lengths), under.budget.max_sequences)
    arranged = Arrangement(np.arange(len(lengths)), starts, np.array([], dtype=np.int64))
    # Every one is followed: there is no approximation in it but the step times.
    outcomes = simulate(columns, arranged, lengths, under, followed=len(lengths))
    said, seen = outcomes.finished_s, np.array(run.finished_s)
    due_s = np.random.default_rng(seed).uniform(0, seen.max(), len(seen))
    late = abs(float(np.mean(said > due_s)) - float(np.mean(seen > due_s)))
    return (
        _off(said.max(), seen.max()),
        _off(np.quantile(said, 0.5), np.quantile(seen, 0.5)),
        _off(np.quantile(said, 0.99), np.quantile(seen, 0.99)),
        late,
    )


def _off(said: float | np.floating, seen: float | np.floating) -> float:
    return abs(float(said) - float(seen)) / float(seen)


def _columns(run: Run) -> tuple[RequestColumns, Ints]:
    requests = [
        ProfiledRequest(
            custom_id=str(i),
            prompt_tokens=len(work.prompt_token_ids),
            max_tokens=work.output_tokens,
            output=LengthEstimate((float(work.output_tokens),) * len(QUANTILE_LEVELS), "forced"),
            kv_bytes=0,
        )
        for i, work in enumerate(run.works)
    ]
    columns = columns_of(requests)
    prices: Floats = np.zeros(len(requests))  # memory is no limit here
    lengths = np.array([work.output_tokens for work in run.works], dtype=np.int64)
    return replace(columns, kv_token_bytes=prices), lengths


def _line(errors: Errors) -> str:
    return (
        f"{errors.model:<8} {errors.batching:<9} {errors.makespan_s:6.2f} s; off: makespan "
        f"{errors.makespan:.1%}, p50 {errors.p50:.1%}, p99 {errors.p99:.1%}, late "
        f"{100 * errors.late:.1f} points; a step {errors.step_error:.1%}"
    )


if __name__ == "__main__":
    main()
