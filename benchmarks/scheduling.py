"""What is spent beside the model: who is next, laying out a step, handing out its tokens.

    python -m benchmarks.scheduling [--rows N] [--steps N] [--rounds N] [--threads N]

uellm's in-flight engine on the small model (14 M), all rows decoding at once, each dtype in a
process of its own. A step goes from the begin of the model's forward pass to that of the next one.
Of it, the forward pass and the drawing of tokens are measured at the engine's own borders
(`packed.logits`, `choose`), and all the rest is the scheduling layer: it takes tokens, chooses who
is next and lays out the next step. Only steps in which every row decodes count. Figures are medians
of the rounds' means, with the least and the most; a share is the median of the rounds' shares.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from uellm_cli.bench import models
from uellm_cli.bench.engine import in_a_process
from uellm_cli.bench.machine import describe_machine
from uellm_cli.bench.serve import Job

MODEL = "small"
DTYPES = ("float32", "bfloat16")
PROMPT_TOKENS = 60
# What the project promises: the share of a step that is spent on the scheduling layer.
LIMIT = 0.05
SCHEDULING = "scheduling layer (the rest)"


@dataclass(frozen=True, slots=True)
class Round:
    """Means over the steps of a round, in seconds."""

    step_s: float
    forward_s: float
    draw_s: float

    @property
    def scheduling_s(self) -> float:
        return self.step_s - self.forward_s - self.draw_s


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds over the rounds; `share` of their steps."""

    median_s: float
    least_s: float
    most_s: float
    share: float


PARTS: dict[str, Callable[[Round], float]] = {
    "step": lambda each: each.step_s,
    "the model's forward pass": lambda each: each.forward_s,
    "drawing tokens": lambda each: each.draw_s,
    SCHEDULING: lambda each: each.scheduling_s,
}


def main() -> None:
    asked = _arguments()
    # What `uellm run` sets for itself, read when the fresh processes load torch.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    folder = in_a_process(models.make_model, MODEL, 0, asked.cache)
    print(
        f"{MODEL}, {asked.rows} rows decoding at once, {asked.steps} steps a round, {asked.rounds} "
        f"rounds, {asked.threads} threads; microseconds a step, median (least-most)"
    )
    levels: dict[str, str] = {}
    found: dict[str, dict[str, Figure]] = {}
    for dtype in DTYPES:
        kernels, rounds = in_a_process(
            measured, folder, dtype, asked.rows, asked.steps, asked.rounds, asked.threads
        )
        levels[dtype] = kernels
        found[dtype] = figures(rounds)
        print(f"{dtype}, kernels {kernels}")
        for name, figure in found[dtype].items():
            print(_line(name, figure))
    document = {
        "benchmark": "scheduling",
        "command": sys.orig_argv[1:],
        "kernels": levels,
        "model": MODEL,
        "rows": asked.rows,
        "steps": asked.steps,
        "rounds": asked.rounds,
        "threads": asked.threads,
        "figures": {
            dtype: {name: asdict(figure) for name, figure in parts.items()}
            for dtype, parts in found.items()
        },
    }
    print(json.dumps({**document, "machine": describe_machine()}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=models.default_cache())
    return parser.parse_args()


def measured(
    folder: Path, dtype: str, rows: int, steps: int, rounds: int, threads: int
) -> tuple[str, list[Round]]:
    """What the engine's kernels are, and its rounds, after one that does not count."""
    from uellm_cli.bench.worker import engine_requests, in_batches, kernels_of, start_engine
    from uellm_cli.clock import SystemClock
    from uellm_cli.engines.inflight.engine import InflightEngine

    job = job_of(folder, dtype, rows, steps, threads)
    clock = SystemClock()
    engine = start_engine("inflight", {}, job, clock, clock.now_s())
    kernels = kernels_of(engine)
    assert isinstance(engine, InflightEngine)  # noqa: S101 - `kernels_of` has seen to it
    requests = engine_requests(job)
    done = []
    for _ in range(1 + rounds):
        with watched(engine) as watch:
            answered = list(engine.run(in_batches(requests, rows)))
        if any(completion.output_tokens != steps + 1 for completion in answered):
            raise RuntimeError("not every row has all its tokens")
        done.append(watch.round(rows))
    return kernels, done[1:]


def job_of(folder: Path, dtype: str, rows: int, steps: int, threads: int) -> Job:
    """As many requests as rows, of one length, so that all decode at once."""
    return Job(
        model=str(folder),
        dtype=dtype,
        device="cpu",
        threads=threads,
        max_sequences=rows,
        prefill_tokens=2048,
        context_tokens=PROMPT_TOKENS + steps + 1,
        kv_bytes=2**30,
        eos_token_ids=[],
        prompts=[[10 + row + at for at in range(PROMPT_TOKENS)] for row in range(rows)],
        output_tokens=[steps + 1] * rows,
        cache="",
    )


class Watch:
    """Notes when each forward pass begins and ends, and what drawing takes behind it.

    Stands where the engine's model is.
    """

    def __init__(self, packed: Any) -> None:
        self._packed = packed
        # Of each step: begin, end of the forward pass, seconds of drawing, rows that decode.
        self.steps: list[tuple[float, float, float, int]] = []

    @property
    def cache(self) -> Any:
        return self._packed.cache

    def logits(self, step: Any) -> Any:
        began = time.perf_counter()
        logits = self._packed.logits(step)
        self.steps.append((began, time.perf_counter(), 0.0, step.decode_rows))
        return logits

    def drew(self, seconds: float) -> None:
        began, ended, _, rows = self.steps[-1]
        self.steps[-1] = began, ended, seconds, rows

    def round(self, rows: int) -> Round:
        """Of the steps in which all rows decode and that another follows."""
        whole = [
            (after[0] - step[0], step[1] - step[0], step[2])
            for step, after in zip(self.steps, self.steps[1:], strict=False)
            if step[3] == after[3] == rows
        ]
        return Round(*(statistics.fmean(parts) for parts in zip(*whole, strict=True)))


@contextmanager
def watched(engine: Any) -> Iterator[Watch]:
    from uellm_cli.engines.scores import choose

    packed = engine.packed
    watch = Watch(packed)

    def drawing(*arguments: Any) -> Any:
        began = time.perf_counter()
        tokens = choose(*arguments)
        watch.drew(time.perf_counter() - began)
        return tokens

    engine.packed = watch
    try:
        with mock.patch("uellm_cli.engines.inflight.engine.choose", drawing):
            yield watch
    finally:
        engine.packed = packed


def figures(rounds: Sequence[Round]) -> dict[str, Figure]:
    return {name: _figure(rounds, part) for name, part in PARTS.items()}


def _figure(rounds: Sequence[Round], part: Callable[[Round], float]) -> Figure:
    seconds = [part(each) for each in rounds]
    share = statistics.median(part(each) / each.step_s for each in rounds)
    return Figure(statistics.median(seconds), min(seconds), max(seconds), share)


def _line(name: str, figure: Figure) -> str:
    spread = f"({figure.least_s * 1e6:.0f}-{figure.most_s * 1e6:.0f})"
    limit = f"  (at most {LIMIT:.0%})" if name == SCHEDULING else ""
    return f"  {name:<28} {figure.median_s * 1e6:8.0f} {spread:>15} {figure.share:7.1%}{limit}"


if __name__ == "__main__":
    main()
