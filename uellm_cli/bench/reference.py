"""Answers that others are compared with: plain transformers, greedy, one request at a time.

    python -m uellm_cli.bench.reference

No batch, no padding, and none of uellm's code but the line that tells what is asked (`serve.py`).
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from uellm_cli.bench.serve import Job, Run, serve


def load(job: Job) -> tuple[Run, dict[str, str]]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=getattr(torch, job.dtype), device_map={"": job.device}
    ).eval()
    model.generation_config = GenerationConfig()

    def answer(prompt: list[int], output_tokens: int) -> list[int]:
        ids = torch.tensor([prompt], device=job.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=output_tokens,
                do_sample=False,
                eos_token_id=job.eos_token_ids or None,
                pad_token_id=0,
            ),
        )
        made: list[int] = out[0, len(prompt) :].tolist()
        return made

    def run(count: int) -> dict[str, Any]:
        began = time.perf_counter()
        asked = zip(job.prompts[:count], job.output_tokens[:count], strict=True)
        tokens = [answer(prompt, output_tokens) for prompt, output_tokens in asked]
        return {
            "seconds": time.perf_counter() - began,
            "output_tokens": [len(ids) for ids in tokens],
            "tokens": tokens,
        }

    return run, {name: version(name) for name in ("transformers", "torch")}


if __name__ == "__main__":
    serve(load)
