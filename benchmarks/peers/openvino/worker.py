"""OpenVINO GenAI's continuous batching. See `uellm_cli/bench/serve.py` for what is given and told.

Arithmetic and KV cache are in the job's dtype: by default both are narrower, and answers differ.
"""

import math
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def load(job: Any) -> tuple[Any, dict[str, str]]:
    if job.device != "cpu":
        raise NotImplementedError("this worker is for CPUs")
    precision = PRECISIONS[job.dtype]
    pipeline = genai.ContinuousBatchingPipeline(
        str(converted(Path(job.model), Path(job.cache))),
        scheduler(job),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "INFERENCE_NUM_THREADS": job.threads,
        },
    )
    prompts = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in job.prompts]
    configs = [config(job, output_tokens) for output_tokens in job.output_tokens]

    def run(count: int) -> dict[str, Any]:
        began = time.perf_counter()
        results = pipeline.generate(prompts[:count], configs[:count])
        seconds = time.perf_counter() - began
        tokens = [list(result.m_generation_ids[0]) for result in results]
        return {
            "seconds": seconds,
            "output_tokens": [len(ids) for ids in tokens],
            # Its own figure counts from when a request is begun, not from when it was handed over.
            "ttft_s": None,
            "tokens": tokens,
        }

    names = ("openvino-genai", "openvino", "optimum-intel")
    return run, {name: version(name) for name in names}


def scheduler(job: Any) -> genai.SchedulerConfig:
    settings = genai.SchedulerConfig()
    settings.max_num_seqs = job.max_sequences
    settings.max_num_batched_tokens = job.prefill_tokens
    settings.cache_size = math.ceil(job.kv_bytes / 2**30)
    settings.dynamic_split_fuse = True
    settings.enable_prefix_caching = False
    return settings


def config(job: Any, output_tokens: int) -> genai.GenerationConfig:
    settings = genai.GenerationConfig()
    settings.max_new_tokens = output_tokens
    settings.do_sample = False
    if job.eos_token_ids:
        settings.set_eos_token_id(job.eos_token_ids[0])
        settings.stop_token_ids = set(job.eos_token_ids)
    else:
        settings.ignore_eos = True
        settings.set_eos_token_id(0)  # ignored, but a model without one is refused
    return settings


def converted(model: Path, cache: Path) -> Path:
    """The model in OpenVINO's format, from the cache or made in a process that is gone after it."""
    folder = cache / f"{model.name}-openvino"
    if not folder.is_dir():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        script = Path(__file__).with_name("convert.py")
        made = subprocess.run([sys.executable, str(script), str(model), str(unfinished)])
        if made.returncode:
            sys.exit(made.returncode)  # the last that is printed is then its own reason
        unfinished.rename(folder)
    return folder
