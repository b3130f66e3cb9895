"""transformers' own continuous batching. See `uellm_cli/bench/serve.py` for what is given and told.

The manager is kept from round to round, as a server would: between rounds its thread sleeps.
"""

import time
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging

PAGE_TOKENS = 256
# Its attention on a CPU is quadratic in the tokens of a batch: more at once is slower.
BATCH_TOKENS = {"cpu": 512, "cuda": None}
NO_TOKEN = -1


def load(job: Any) -> tuple[Any, dict[str, str]]:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=getattr(torch, job.dtype), device_map={"": job.device}
    ).eval()
    eos = job.eos_token_ids or NO_TOKEN
    pages = -(-job.context_tokens // PAGE_TOKENS)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
            max_new_tokens=max(job.output_tokens),
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            max_requests_per_batch=job.max_sequences,
            max_batch_tokens=BATCH_TOKENS[job.device],
            num_blocks=job.max_sequences * pages,
            page_size=PAGE_TOKENS,
            allow_block_sharing=False,
        ),
    )
    manager.start()

    def run(count: int) -> dict[str, Any]:
        done: dict[str, Any] = {}
        began = time.perf_counter()
        for i in range(count):
            manager.add_request(
                job.prompts[i],
                request_id=str(i),
                max_new_tokens=job.output_tokens[i],
                record_timestamps=True,
                eos_token_id=eos,
            )
        while len(done) < count:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                done[result.request_id] = result
            elif result is None and not manager.is_running():
                raise RuntimeError("the generation thread has died")
        seconds = time.perf_counter() - began
        results = [done[str(i)] for i in range(count)]
        errors = [result.error for result in results if result.error]
        if errors:
            raise RuntimeError(errors[0])
        return {
            "seconds": seconds,
            "output_tokens": [len(result.generated_tokens) for result in results],
            "ttft_s": [result.timestamps[0] - began for result in results],
            "tokens": [list(result.generated_tokens) for result in results],
        }

    return run, {name: version(name) for name in ("transformers", "torch")}
