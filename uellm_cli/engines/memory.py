"""What a device's memory has turned out not to hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uellm_cli.types import EngineRequest

# How a plain RuntimeError words it, from a CPU's allocator, the CUDA driver and cuBLAS.
WORDS = ("allocate memory", "out of memory", "ALLOC_FAILED")


@dataclass(slots=True)
class MemoryLimit:
    """`tokens` is the smallest footprint that ran out of memory so far."""

    tokens: float = math.inf

    def allows(self, requests: Sequence[EngineRequest]) -> bool:
        """Whether to try these together; one alone always is."""
        return len(requests) == 1 or footprint(requests) < self.tokens

    def ran_out(self, requests: Sequence[EngineRequest]) -> None:
        """Remembers that these together were too much."""
        self.tokens = min(self.tokens, footprint(requests))


def footprint(requests: Sequence[EngineRequest]) -> int:
    """Tokens of KV cache that a left-padded batch may come to have."""
    longest_prompt = max(len(request.prompt_token_ids) for request in requests)
    return len(requests) * (longest_prompt + max(request.max_tokens for request in requests))


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
