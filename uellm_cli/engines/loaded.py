"""A loaded model with its tokenizer: rows in, their tokens drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig

from uellm_cli.engines.rows import Row
from uellm_cli.engines.scores import RowScores, RowStops, ScoreLog
from uellm_cli.types import EngineRequest


@dataclass(frozen=True)
class LoadedModel:
    """`defaults` is the model's own generation config."""

    model: Any
    tokenizer: Any
    defaults: GenerationConfig

    def draw(
        self, rows: Sequence[Row], now_s: Callable[[], float], stop: Callable[[], bool]
    ) -> RowStops:
        """Draws every row to its end in one left-padded batch, unless told to `stop` before.

        What each row has come to is in the row. Raises whatever breaks the batch.
        """
        requests = [row.request for row in rows]
        prompts, mask = self._left_padded(requests)
        log = ScoreLog(rows)
        stops = RowStops(rows, log, self.eos_ids, self.decode, now_s, stop)
        with torch.inference_mode():
            self.model.generate(
                prompts,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    max_new_tokens=max(request.max_tokens for request in requests),
                    do_sample=False,  # RowScores samples, and `generate` takes the best it leaves
                    eos_token_id=sorted(self.eos_ids) or None,
                    pad_token_id=self._pad_id,
                ),
                logits_processor=[RowScores(rows, log, self.defaults.repetition_penalty or 1.0)],
                stopping_criteria=[stops],
            )
        return stops

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        own = self.defaults.eos_token_id
        if own is None:
            own = self.tokenizer.eos_token_id
        if own is None:
            return frozenset()
        return frozenset(own if isinstance(own, list) else [own])

    @cached_property
    def _pad_id(self) -> int:
        # Padding is masked, so any id will do where a model has none of its own.
        own = self.tokenizer.pad_token_id
        return int(own) if own is not None else min(self.eos_ids, default=0)

    def _left_padded(self, requests: Sequence[EngineRequest]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both [rows, longest prompt], on the model's device."""
        width = max(len(request.prompt_token_ids) for request in requests)
        pads = [width - len(request.prompt_token_ids) for request in requests]
        ids = [
            [self._pad_id] * pad + [*request.prompt_token_ids]
            for pad, request in zip(pads, requests, strict=True)
        ]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
