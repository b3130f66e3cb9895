"""vLLM's CPU build. See `uellm_cli/bench/serve.py` for what is given and told."""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What vLLM's guide for CPUs asks to be loaded before all else, where it is there.
PRELOADED = (
    *Path(sys.prefix).glob("lib/libiomp5.so"),
    *Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"),
)
if PRELOADED and "LD_PRELOAD" not in os.environ:
    # Nothing has been read of standard input yet, so that a fresh start finds all of it.
    os.environ["LD_PRELOAD"] = ":".join(map(str, PRELOADED))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


def load(job: Any) -> tuple[Any, dict[str, str]]:
    # Its own setting holds instead; beside this one it is slower, as it says itself.
    os.environ.pop("OMP_NUM_THREADS", None)
    cores = sorted(os.sched_getaffinity(0))[: job.threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    from vllm import LLM, SamplingParams

    engine = LLM(
        job.model,
        dtype=job.dtype,
        max_num_seqs=job.max_sequences,
        max_model_len=job.context_tokens,
        max_num_batched_tokens=max(job.prefill_tokens, job.context_tokens),
        kv_cache_memory_bytes=job.kv_bytes,
        enable_prefix_caching=False,
        disable_log_stats=False,  # they tell when the first token of each request came
        seed=0,
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in job.prompts]
    forced = not job.eos_token_ids
    params = [
        SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=forced, detokenize=False)
        for output_tokens in job.output_tokens
    ]

    def run(count: int) -> dict[str, Any]:
        began_at, began = time.time(), time.perf_counter()
        outputs = engine.generate(prompts[:count], params[:count], use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        return {
            "seconds": seconds,
            "output_tokens": [len(ids) for ids in tokens],
            "ttft_s": [
                output.metrics.arrival_time - began_at + output.metrics.first_token_latency
                for output in outputs
            ],
            "tokens": tokens,
        }

    names = ("vllm-cpu", "torch", "transformers")
    return run, {name: version(name) for name in names} | {"preloaded": preloaded()}


def preloaded() -> str:
    """Names of the libraries that were loaded before all else."""
    paths = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return " ".join(Path(path).name.partition(".")[0] for path in paths) or "nothing"
