"""One of uellm's own engines, in a process of its own.

    python -m uellm_cli.bench.worker NAME [longest-first]

The engine is built, started and asked as a run does it, through the Protocols alone. It hands back
texts, so its seconds have in them what a peer is spared that hands back ids.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from uellm_cli.bench.serve import Job, Run, serve
from uellm_cli.bench.workload import Work, longest_first
from uellm_cli.clock import SystemClock
from uellm_cli.engines import ENGINES, EngineContext
from uellm_cli.types import (
    Budget,
    Completion,
    EngineBatch,
    EngineRequest,
    SamplingParams,
    Source,
    StepTimes,
)

LONGEST_FIRST = "longest-first"
NO_STEP_TIMES = StepTimes(0.0, 0.0, 0.0, 0.0, Source.ASSUMED)


def load_engine(name: str, order: str | None, job: Job) -> tuple[Run, dict[str, str]]:
    """The engine `name`, which is given the requests as they come, or the longest first."""
    import torch

    torch.set_num_threads(job.threads)
    clock = SystemClock()
    started_s = clock.now_s()
    options = {"dtype": job.dtype}
    if name == "inflight":
        # Rounds repeat their prompts, and no peer is allowed to remember them either.
        options["share_prefixes"] = "false"
    engine = ENGINES.build(name, options).start(
        EngineContext(
            model=job.model,
            device_map={"": "cpu" if job.device == "cpu" else 0},
            visible_devices=None,
            budget=Budget(job.kv_bytes, job.max_sequences, job.prefill_tokens),
            clock=clock,
            started_s=started_s,
            step_times=NO_STEP_TIMES,
            loading_s=0.0,
            seed=0,
        )
    )

    def run(count: int) -> dict[str, Any]:
        requests = engine_requests(job, order, count)
        began_s = clock.now_s()
        done = {c.custom_id: c for c in engine.run(in_batches(requests, job.max_sequences))}
        seconds = clock.now_s() - began_s
        return answer([done[str(i)] for i in range(count)], seconds, began_s - started_s)

    return run, {"uellm": version("uellm"), "torch": torch.__version__}


def engine_requests(job: Job, order: str | None, count: int) -> list[EngineRequest]:
    """The job's first requests, named by their place in it, in the order of handing over."""
    works = [
        Work(tuple(prompt), output_tokens)
        for prompt, output_tokens in zip(job.prompts, job.output_tokens, strict=True)
    ][:count]
    positions = longest_first(works) if order == LONGEST_FIRST else range(len(works))
    forced = not job.eos_token_ids
    return [
        EngineRequest(
            str(i),
            works[i].prompt_token_ids,
            works[i].output_tokens,
            SamplingParams(
                max_tokens=works[i].output_tokens,
                min_tokens=works[i].output_tokens if forced else 0,
                ignore_eos=forced,
                temperature=0.0,
            ),
        )
        for i in positions
    ]


def in_batches(requests: Sequence[EngineRequest], size: int) -> Iterator[EngineBatch]:
    for start in range(0, len(requests), size):
        yield EngineBatch(start // size, tuple(requests[start : start + size]))


def answer(done: Sequence[Completion], seconds: float, began_s: float) -> dict[str, Any]:
    """A round's line; `began_s` is its begin from where the engine's timings count."""
    for completion in done:
        if completion.failure is not None:
            raise RuntimeError(f"request {completion.custom_id}: {completion.failure.message}")
    return {
        "seconds": seconds,
        "output_tokens": [completion.output_tokens for completion in done],
        "ttft_s": [c.timing.first_token_s - began_s for c in done if c.timing is not None],
        "texts": [completion.answers[0].text for completion in done],
    }


def main() -> None:
    name, order = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    serve(lambda job: load_engine(name, order, job))


if __name__ == "__main__":
    main()
