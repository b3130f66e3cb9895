"""One of uellm's own engines, in a process of its own.

    python -m uellm_cli.bench.worker NAME [OPTION=VALUE...]

The engine is built, started and asked as a run does it, through the Protocols alone. It hands back
texts, so its seconds have in them what a peer is spared that hands back ids.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from uellm_cli.bench.serve import Job, Run, serve
from uellm_cli.clock import Clock, SystemClock
from uellm_cli.engines import DEFAULT_ENGINE, ENGINES, EngineContext, unwatched
from uellm_cli.types import (
    Budget,
    Completion,
    Engine,
    EngineBatch,
    EngineRequest,
    SamplingParams,
    Source,
    StepSample,
    StepTimes,
)

NO_STEP_TIMES = StepTimes(0.0, 0.0, 0.0, 0.0, Source.ASSUMED)


def load_engine(name: str, options: Mapping[str, str], job: Job) -> tuple[Run, dict[str, str]]:
    """The engine `name` with these options beside those that make it comparable."""
    import torch

    clock = SystemClock()
    started_s = clock.now_s()
    engine = start_engine(name, options, job, clock, started_s)
    requests = engine_requests(job)

    def run(count: int) -> dict[str, Any]:
        began_s = clock.now_s()
        batches = in_batches(requests[:count], job.max_sequences)
        done = {completion.custom_id: completion for completion in engine.run(batches)}
        seconds = clock.now_s() - began_s
        return answer([done[str(i)] for i in range(count)], seconds, began_s - started_s)

    versions = {"uellm": version("uellm"), "torch": torch.__version__}
    return run, versions | ({"kernels": kernels_of(engine)} if name == DEFAULT_ENGINE else {})


def start_engine(
    name: str,
    options: Mapping[str, str],
    job: Job,
    clock: Clock,
    started_s: float,
    step_seen: Callable[[StepSample], None] = unwatched,
) -> Engine:
    """Loaded and ready; its timings count from `started_s` on `clock`."""
    import torch

    torch.set_num_threads(job.threads)
    own = {"dtype": job.dtype}
    if name == DEFAULT_ENGINE:
        # Rounds repeat their prompts, and no peer is allowed to remember them either.
        own["share_prefixes"] = "false"
    return ENGINES.build(name, {**own, **options}).start(
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
            step_seen=step_seen,
            note=lambda text: print(f"note: {text}", file=sys.stderr),  # noqa: T201 - its log
        )
    )


def kernels_of(engine: Engine) -> str:
    """What the in-flight engine's attention runs on: the level of its compiled kernels, or torch.

    RuntimeError where the model is served by another engine, whose speed this name is not for.
    """
    from uellm_cli.engines.inflight.engine import InflightEngine
    from uellm_cli.engines.inflight.native_attention import NativeAttention
    from uellm_cli.engines.inflight.packed import PackedModel

    if not isinstance(engine, InflightEngine):
        raise RuntimeError("this model does not run in flight")
    if not isinstance(engine.packed, PackedModel):
        return "CUDA graphs"
    backend = engine.packed.attention.backend
    if isinstance(backend, NativeAttention):
        return backend.kernels.level
    return type(backend).__name__.removesuffix("Attention").lower()


def engine_requests(job: Job) -> list[EngineRequest]:
    """The job's requests, named by their place in it."""
    forced = not job.eos_token_ids
    return [
        EngineRequest(
            str(i),
            tuple(prompt),
            output_tokens,
            SamplingParams(
                max_tokens=output_tokens,
                min_tokens=output_tokens if forced else 0,
                ignore_eos=forced,
                temperature=0.0,
            ),
        )
        for i, (prompt, output_tokens) in enumerate(
            zip(job.prompts, job.output_tokens, strict=True)
        )
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
    name, *given = sys.argv[1:]
    options = dict(option.split("=", 1) for option in given)
    serve(lambda job: load_engine(name, options, job))


if __name__ == "__main__":
    main()
