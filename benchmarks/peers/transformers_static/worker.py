"""transformers' `generate` on left-padded batches as they come: what most scripts do.

See `uellm_cli/bench/serve.py` for what is given and told. A batch runs to its longest member; what
the others make after their own end does not count.
"""

import time
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria
from transformers.utils import logging

# Rows of a batch: at most as many as anybody may run together. On a CPU fewer are faster, since
# the cache is copied at every step (64 rows took 2.2 times as long; docs/LOG.md).
ROWS = {"cpu": 16, "cuda": None}


class FirstToken(StoppingCriteria):
    """Notes when a batch's first tokens came, and stops nothing."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def load(job: Any) -> tuple[Any, dict[str, str]]:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=getattr(torch, job.dtype), device_map={"": job.device}
    ).eval()
    model.generation_config = GenerationConfig()
    rows = min(job.max_sequences, ROWS[job.device] or job.max_sequences)

    @torch.inference_mode()
    def answers(first: int, last: int) -> tuple[list[list[int]], float]:
        prompts, lengths = job.prompts[first:last], job.output_tokens[first:last]
        width = max(map(len, prompts))
        pads = [width - len(prompt) for prompt in prompts]
        ids = [[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        first_token = FirstToken()
        out = model.generate(
            torch.tensor(ids, device=job.device),
            attention_mask=torch.tensor(mask, device=job.device),
            generation_config=GenerationConfig(
                max_new_tokens=max(lengths),
                do_sample=False,
                eos_token_id=job.eos_token_ids or None,
                pad_token_id=0,
            ),
            stopping_criteria=[first_token],
        )
        made = [
            ended(row[:length], job.eos_token_ids)
            for row, length in zip(out[:, width:].tolist(), lengths, strict=True)
        ]
        return made, first_token.at or time.perf_counter()

    def run(count: int) -> dict[str, Any]:
        tokens: list[list[int]] = []
        ttft_s: list[float] = []
        began = time.perf_counter()
        for first in range(0, count, rows):
            made, at = answers(first, min(first + rows, count))
            tokens += made
            ttft_s += [at - began] * len(made)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "output_tokens": [len(ids) for ids in tokens],
            "ttft_s": ttft_s,
            "tokens": tokens,
        }

    return run, {name: version(name) for name in ("transformers", "torch")}


def ended(ids: list[int], eos_token_ids: list[int]) -> list[int]:
    """`ids` up to their end token, which belongs to them."""
    ends = [i for i, token in enumerate(ids) if token in eos_token_ids]
    return ids[: ends[0] + 1] if ends else ids
