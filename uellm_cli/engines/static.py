"""transformers' `generate` on left-padded batches, each run to its longest member.

The paper's world, and the plainest engine there is: a row that has ended waits for the batch, and
its answer is handed back when the batch ends. A request with several answers takes part in as many
rounds, one after the other, so that a batch never takes more memory than one of them. A batch that
breaks is run again in halves, so that an error costs only the requests that cause it.
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
from uellm_cli.engines.grammar import Grammar, Grammars
from uellm_cli.engines.jobs import Job
from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.memory import MemoryLimit, is_out_of_memory
from uellm_cli.engines.rows import Row
from uellm_cli.engines.sampling import cut_at_stop, resolve_sampling, row_generator
from uellm_cli.engines.token_texts import TokenTexts, tokens_within
from uellm_cli.errors import EngineError, ModelError, UsageError
from uellm_cli.types import (
    Answer,
    Completion,
    Engine,
    EngineBatch,
    EngineRequest,
    Failure,
    FinishReason,
    RequestTiming,
    TokenLogprob,
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
        """Loads weights from safetensors only; runs a model's own code only if told to trust it."""
        if context.visible_devices is not None:
            # Read when CUDA is first used, which is when the weights are loaded.
            mask = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = within_mask(context.visible_devices, mask)
            os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order, which placements go by
        disable_progress_bar()  # standard error belongs to the command line
        trust = context.trust_remote_code
        try:
            tokenizer = AutoTokenizer.from_pretrained(context.model, trust_remote_code=trust)
            model = AutoModelForCausalLM.from_pretrained(
                context.model,
                dtype=self.dtype,
                device_map=dict(context.device_map),
                use_safetensors=True,
                trust_remote_code=trust,
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ModelError(f"model {context.model!r} cannot be loaded: {error}") from error
        model.eval()
        defaults = model.generation_config
        # `generate` takes what a call leaves open from here, and nothing shall be left to a model.
        model.generation_config = GenerationConfig()
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


class StaticEngine:
    """`defaults` is the model's own generation config."""

    def __init__(
        self, context: EngineContext, model: Any, tokenizer: Any, defaults: GenerationConfig
    ) -> None:
        self.context = context
        self.model = model
        self._loaded = LoadedModel(model, tokenizer, defaults)
        self._grammars = Grammars(tokenizer, self._loaded.eos_ids)
        self._texts = TokenTexts(tokenizer)
        self._memory = MemoryLimit()

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        while not self.context.stop():
            batch = next(batches, None)
            if batch is None:
                return
            jobs = [self._job(batch.batch_id, request) for request in batch.requests]
            yield from self._answer(jobs)

    def _job(self, batch_id: int, request: EngineRequest) -> Job:
        job = Job(batch_id, request, resolve_sampling(request.sampling, self._loaded.defaults))
        if request.sampling.json_schema is not None:
            compiled = self._grammars.compiled(request.sampling.json_schema)
            if isinstance(compiled, Grammar):
                job.grammar = compiled
            else:
                job.failure = compiled
        return job

    def _answer(self, jobs: Sequence[Job]) -> Iterator[Completion]:
        """Round after round, each job handed back after its last; nothing more once stopped."""
        while True:
            yield from (job.completion() for job in jobs if job.is_done)
            jobs = [job for job in jobs if not job.is_done]
            if not jobs or self.context.stop():
                return
            if not self._try_round(jobs):
                half = len(jobs) // 2
                yield from self._answer(jobs[:half])
                yield from self._answer(jobs[half:])
                return

    def _try_round(self, jobs: Sequence[Job]) -> bool:
        """One more answer for each job; False where that has to be tried with fewer at a time."""
        requests = [job.request for job in jobs]
        if not self._memory.allows(requests):
            return False
        try:
            self._round(jobs)
            return True
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            failure = _failure(error)
            if is_out_of_memory(error):
                self._memory.ran_out(requests)
        # Outside of `except`: the error's traceback holds all that the batch had in memory.
        self._release_memory()
        if len(jobs) > 1:
            return False
        jobs[0].failure = failure
        return True

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

    def _round(self, jobs: Sequence[Job]) -> None:
        """Raises what breaks it; a job that has its answer by then keeps it."""
        rows = [self._row(job) for job in jobs]
        prefill_s = self._now_s()
        drawn = self._loaded.draw(rows, self._now_s, self.context.stop)
        finished_s = self._now_s()
        first_token_s = finished_s if drawn.first_token_s is None else drawn.first_token_s
        for job, row in zip(jobs, rows, strict=True):
            if row.failure is not None:
                job.failure = row.failure
            elif row.end is not None:
                timing = RequestTiming(prefill_s, first_token_s, row.end.at_s, finished_s)
                job.add(self._answer_of(row, row.end.reason), timing)
            elif not drawn.stopped:
                job.failure = Failure("engine_error", "generation ended before this answer did")

    def _row(self, job: Job) -> Row:
        generator = row_generator(job.request, self.context.seed, len(job.answers))
        grammar = None if job.grammar is None else job.grammar.fresh()
        return Row(job.request, job.sampling, generator, grammar)

    def _answer_of(self, row: Row, reason: FinishReason) -> Answer:
        whole = self._loaded.decode(row.tokens)
        text = cut_at_stop(whole, row.request.sampling.stop)
        logprobs = None
        if row.request.sampling.logprobs is not None:
            logprobs = self._logprobs(row, None if text == whole else text)
        return Answer(text, len(row.tokens), reason, logprobs)

    def _logprobs(self, row: Row, cut: str | None) -> tuple[TokenLogprob, ...]:
        """Of the tokens that the text is made of: `cut`, or all of them but the end token."""
        ends = row.tokens[-1] in self._loaded.eos_ids
        count = len(row.tokens) - ends
        if cut is not None:
            count = tokens_within(cut, row.tokens[:count], self._loaded.decode)
        return self._texts.logprobs(row.scores[:count])

    def _now_s(self) -> float:
        return self.context.clock.now_s() - self.context.started_s


def _failure(error: Exception) -> Failure:
    if is_out_of_memory(error):
        return Failure("out_of_memory", "the device's memory did not suffice for this request")
    text = str(error).strip()
    return Failure("engine_error", text.splitlines()[0] if text else repr(error))
