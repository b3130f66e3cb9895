"""Small makers of the shared nouns, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Sequence

from uellm_cli.errors import ModelError
from uellm_cli.types import (
    QUANTILE_LEVELS,
    SLO,
    Budget,
    Endpoint,
    LayerSpec,
    LengthEstimate,
    Message,
    ModelSpec,
    ProfiledRequest,
    Request,
    SamplingParams,
    Source,
    Spread,
    StepTimes,
    Verdict,
)

# Ten rows, as the paper has it, and no other limit.
ROOMY = Budget(kv_bytes=10**15, max_sequences=10, prefill_tokens=10**9)
# One second for a step, whatever is in it: times can be counted by hand.
ONE_SECOND_STEPS = StepTimes(1.0, 0.0, 0.0, 0.0, Source.ASSUMED)
# Of a plan whose outcome nobody asks for.
NO_VERDICT = Verdict(Spread(0.0, 0.0, 0.0), Spread(0.0, 0.0, 0.0), (), Source.ASSUMED, 1)


class WordTokenizer:
    """One token a word, and one in front of raw prompts; refuses the word "forbidden"."""

    source = Source.MEASURED
    has_chat_template = True

    def count(self, requests: Sequence[Request]) -> list[int]:
        return [len(ids) for ids in self.encode(requests)]

    def encode(self, requests: Sequence[Request]) -> list[list[int]]:
        return [self._ids(request) for request in requests]

    def _ids(self, request: Request) -> list[int]:
        texts = [message.content for message in request.messages] or [f"BOS {request.prompt}"]
        words = " ".join(texts).split()
        if "forbidden" in words:
            raise ModelError("the chat template refuses this conversation: forbidden")
        return [0] * len(words)


def unheard(note: str) -> None:
    """Takes what a trainer says."""


def exactly(tokens: float) -> LengthEstimate:
    """An estimate that is sure of itself."""
    return LengthEstimate((float(tokens),) * len(QUANTILE_LEVELS), "test")


def profiled(
    custom_id: str,
    *,
    output: float = 10,
    deadline_s: float | None = None,
    prompt_tokens: int = 10,
    slo_class: str = "default",
    arrival_s: float = 0.0,
) -> ProfiledRequest:
    """A request whose KV cache takes one byte a token."""
    return ProfiledRequest(
        custom_id=custom_id,
        prompt_tokens=prompt_tokens,
        max_tokens=100_000,
        output=exactly(output),
        kv_bytes=prompt_tokens + round(output),
        slo=SLO(slo_class, deadline_s),
        arrival_s=arrival_s,
    )


def chat(custom_id: str, text: str, max_tokens: int | None = None) -> Request:
    return Request(
        custom_id,
        Endpoint.CHAT,
        messages=(Message("user", text),),
        sampling=SamplingParams(max_tokens=max_tokens),
    )


def model_spec(layers: int = 4, context_tokens: int = 1024) -> ModelSpec:
    """A model in round numbers: 1,000 bytes a layer, 1 byte of KV per token and layer."""
    return ModelSpec(
        name="round",
        architecture="LlamaForCausalLM",
        dtype_bytes=2,
        hidden_size=8,
        vocab_size=100,
        context_tokens=context_tokens,
        layers=(LayerSpec(1000, 1000, 1),) * layers,
        embedding_bytes=500,
        head_bytes=500,
        norm_bytes=10,
        weight_source=Source.SPECIFIED,
        num_kv_heads=1,
    )
