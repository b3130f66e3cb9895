"""transformers' `generate` on left-padded batches, each run to its longest member.

The paper's world, and the plainest engine there is: a row that has ended waits for the batch, and
its answer is handed back when the batch ends. A batch that breaks is run again in halves, so that
an error costs only the requests that cause it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from uellm_cli.engines import EngineContext
from uellm_cli.engines.sampling import (
    RowEnd,
    RowSampler,
    RowStops,
    cut_at_stop,
    resolve_sampling,
    row_generator,
)
from uellm_cli.errors import EngineError, ModelError, UsageError
from uellm_cli.types import (
    Answer,
    Completion,
    Engine,
    EngineBatch,
    EngineRequest,
    Failure,
    RequestTiming,
)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Static:
    """`dtype` is the checkpoint's own when "auto", else one of torch's: see `DTYPES`."""

    in_virtual_time: ClassVar[bool] = False
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")

    def start(self, context: EngineContext) -> Engine:
        """Loads weights from safetensors only, and never runs code that comes with a model."""
        if context.visible_devices is not None:
            # Read when CUDA is first used, which is when the weights are loaded.
            mask = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = within_mask(context.visible_devices, mask)
            os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order, which placements go by
        disable_progress_bar()  # standard error belongs to the command line
        try:
            tokenizer = AutoTokenizer.from_pretrained(context.model)
            model = AutoModelForCausalLM.from_pretrained(
                context.model,
                dtype=self.dtype,
                device_map=dict(context.device_map),
                use_safetensors=True,
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ModelError(f"model {context.model!r} cannot be loaded: {error}") from error
        model.eval()
        defaults = model.generation_config
        # `generate` takes what a call leaves open from here: of a model's own defaults it shall
        # only find what every request is meant to have.
        model.generation_config = GenerationConfig(repetition_penalty=defaults.repetition_penalty)
        return StaticEngine(context, model, tokenizer, defaults)


def within_mask(wanted: str, mask: str | None) -> str:
    """`wanted` GPUs as the value of CUDA_VISIBLE_DEVICES, where `mask` is its value so far.

    UUIDs stand for themselves; positions count among the GPUs that `mask` shows.
    """
    shown = [name.strip() for name in mask.split(",")] if mask else []
    names = wanted.split(",")
    if shown and all(name.isdigit() and int(name) < len(shown) for name in names):
        return ",".join(shown[int(name)] for name in names)
    return wanted


@dataclass(frozen=True, slots=True)
class StaticEngine:
    """`defaults` is the model's own generation config."""

    context: EngineContext
    model: Any
    tokenizer: Any
    defaults: GenerationConfig

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        for batch in batches:
            yield from self._run_or_split(batch.batch_id, batch.requests)

    def _run_or_split(
        self, batch_id: int, requests: Sequence[EngineRequest]
    ) -> Iterator[Completion]:
        try:
            completions = self._generate(batch_id, requests)
        except (RuntimeError, ValueError, IndexError) as error:
            failure = _failure(error)
        else:
            yield from completions
            return
        # Outside of `except`: the error's traceback holds all that the batch had in memory.
        self._release_memory()
        if len(requests) == 1:
            yield Completion(requests[0].custom_id, batch_id, failure=failure)
            return
        half = len(requests) // 2
        yield from self._run_or_split(batch_id, requests[:half])
        yield from self._run_or_split(batch_id, requests[half:])

    def _release_memory(self) -> None:
        """Frees a broken batch's memory; EngineError when the device is broken for good."""
        gc.collect()
        if self.model.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise EngineError(
                f"the GPU is in a failed state and nothing more can run in this process: {error}; "
                "--resume goes on from what is answered"
            ) from error

    def _generate(self, batch_id: int, requests: Sequence[EngineRequest]) -> list[Completion]:
        prompts, mask = self._left_padded(requests)
        stops = RowStops(
            requests,
            prompt_width=prompts.shape[1],
            eos_ids=self._eos_ids(),
            decode=self._decode,
            now_s=self._now_s,
        )
        sampler = RowSampler(
            [resolve_sampling(request.sampling, self.defaults) for request in requests],
            [row_generator(request, self.context.seed) for request in requests],
        )
        prefill_s = self._now_s()
        with torch.inference_mode():
            tokens = self.model.generate(
                prompts,
                attention_mask=mask,
                generation_config=self._generation_config(requests),
                logits_processor=[sampler],
                stopping_criteria=[stops],
            )
        finished_s = self._now_s()
        answers = tokens[:, prompts.shape[1] :].tolist()
        first_token_s = finished_s if stops.first_token_s is None else stops.first_token_s
        moments = (prefill_s, first_token_s, finished_s)
        return [
            _cut_off(request, batch_id)
            if end is None
            else self._completion(batch_id, request, answer, end, moments)
            for request, answer, end in zip(requests, answers, stops.ends, strict=True)
        ]

    def _completion(
        self,
        batch_id: int,
        request: EngineRequest,
        answer: Sequence[int],
        end: RowEnd,
        moments: tuple[float, float, float],
    ) -> Completion:
        prefill_s, first_token_s, finished_s = moments
        text = cut_at_stop(self._decode(answer[: end.tokens]), request.sampling.stop)
        return Completion(
            custom_id=request.custom_id,
            batch_id=batch_id,
            timing=RequestTiming(prefill_s, first_token_s, end.at_s, finished_s),
            answers=(Answer(text, end.tokens, end.reason),),
        )

    def _left_padded(self, requests: Sequence[EngineRequest]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both [rows, longest prompt], on the model's device."""
        width = max(len(request.prompt_token_ids) for request in requests)
        pad = self._pad_id()
        ids = [[pad] * (width - len(r.prompt_token_ids)) + [*r.prompt_token_ids] for r in requests]
        mask = [
            [0] * (width - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids)
            for r in requests
        ]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _generation_config(self, requests: Sequence[EngineRequest]) -> GenerationConfig:
        # Sampling happens in RowSampler: `generate` takes the largest of the scores it leaves.
        return GenerationConfig(
            max_new_tokens=max(request.max_tokens for request in requests),
            do_sample=False,
            eos_token_id=sorted(self._eos_ids()) or None,
            pad_token_id=self._pad_id(),
        )

    def _eos_ids(self) -> frozenset[int]:
        own = self.defaults.eos_token_id
        if own is None:
            own = self.tokenizer.eos_token_id
        if own is None:
            return frozenset()
        return frozenset(own if isinstance(own, list) else [own])

    def _pad_id(self) -> int:
        # Padding is masked, so any id will do where a model has none of its own.
        own = self.tokenizer.pad_token_id
        return own if own is not None else min(self._eos_ids(), default=0)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _now_s(self) -> float:
        return self.context.clock.now_s() - self.context.started_s


def _cut_off(request: EngineRequest, batch_id: int) -> Completion:
    message = "generation ended before this answer did"
    return Completion(request.custom_id, batch_id, failure=Failure("engine_error", message))


def _failure(error: Exception) -> Failure:
    text = str(error).strip()
    # On a CPU torch raises a plain RuntimeError ("can't allocate memory").
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text:
        return Failure("out_of_memory", "the device's memory did not suffice for this request")
    return Failure("engine_error", text.splitlines()[0] if text else repr(error))
