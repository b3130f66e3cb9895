"""A loaded model with its tokenizer: what all engines need of it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig

from uellm_cli.errors import EngineError


@dataclass(frozen=True)
class LoadedModel:
    """`defaults` is the model's own generation config."""

    model: Any
    tokenizer: Any
    defaults: GenerationConfig

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def device(self) -> torch.device:
        return input_device(self.model)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        own = self.defaults.eos_token_id
        if own is None:
            own = self.tokenizer.eos_token_id
        if own is None:
            return frozenset()
        return frozenset(own if isinstance(own, list) else [own])

    @cached_property
    def pad_id(self) -> int:
        # Padding is masked, so any id will do where a model has none of its own.
        own = self.tokenizer.pad_token_id
        return int(own) if own is not None else min(self.eos_ids, default=0)

    def release_memory(self) -> None:
        """Frees what nothing holds any more; EngineError when the device is broken for good."""
        gc.collect()
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise EngineError(
                f"the GPU is in a failed state and nothing more can run in this process: {error}; "
                "--resume goes on from what is answered"
            ) from error


def input_device(model: Any) -> torch.device:
    """Where token ids go: to the embedding, or where accelerate brings its weights for each step.

    A model with weights in host memory is on none of its devices by its own account.
    """
    embedding = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    return torch.device(embedding._hf_hook.execution_device)
