"""The fields that a request may have, their types and limits, and those that are refused by name.

`Body` is how the careful way sees a request, `QuickLine` and `QuickBatchLine` how the fast way does
(`lines.py`). The limits are in `_Asked`, which they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from uellm_cli.types import Endpoint

MAX_ID_CHARS = 512
MAX_OUTPUT_TOKENS = 10_000_000
MAX_ARRIVAL_S = 10 * 365 * 86_400.0
MAX_ANSWERS = 128
MAX_BIASED_TOKENS = 1024
MAX_BIAS = 100
MAX_STOP_TOKENS = 1024
# And one over it at least: what is closer to 0 makes infinities of scores.
MAX_REPETITION_PENALTY = 100

ID_FIELDS = ("id", "custom_id")
BATCH_FIELDS = ("custom_id", "method", "url", "body")
# Where the text is: a record has one of these.
TEXT_FIELDS = ("prompt", "messages", "conversations", "body")

# OpenAI fields that change no answer made here, whatever their value.
HARMLESS_FIELDS = frozenset(
    {
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)

# Fields of OpenAI and of servers like it that would change the answer, each with the values that
# ask for nothing. Other values are refused.
UNSUPPORTED_FIELDS: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

# What a table may have as 16.0 where its column has a number missing.
WHOLE_NUMBERS = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "top_k",
        "seed",
        "n",
        "logprobs",
        "top_logprobs",
    }
)

_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_MaxTokens = Annotated[int, Meta(ge=1, le=MAX_OUTPUT_TOKENS)]
_Stop = Annotated[str, Meta(min_length=1)]
_TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Repetition = Annotated[float, Meta(ge=1 / MAX_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)] | _Int64 | None


class Part(Struct, gc=False):
    """One piece of a message's content; what else OpenAI has in it says nothing to a model here."""

    type: str
    text: str | None = None


class GivenMessage(Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str | list[Part]


class QuickMessage(Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


class JsonSchema(Struct, forbid_unknown_fields=True, gc=False):
    name: Annotated[str, Meta(min_length=1)]
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True, gc=False):
    type: str
    json_schema: JsonSchema | None = None


class _Asked(Struct, forbid_unknown_fields=True, gc=False):
    """What both ways read alike; None stands for what is not given."""

    prompt: str | None = None
    max_tokens: _MaxTokens | None = None
    max_completion_tokens: _MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    seed: _Int64 | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=4)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    logprobs: bool | Annotated[int, Meta(ge=0, le=5)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    # Checked in `asked.py`: msgspec would not say which of the tokens is wrong.
    logit_bias: Annotated[dict[str, Any], Meta(max_length=MAX_BIASED_TOKENS)] | None = None
    response_format: ResponseFormat | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: _Repetition | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    stop_token_ids: Annotated[list[_TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_OUTPUT_TOKENS)] | None = None
    arrival_s: Annotated[float, Meta(ge=0, le=MAX_ARRIVAL_S)] | None = None


class Body(_Asked, forbid_unknown_fields=True, gc=False):
    """What is asked, as the careful way sees it: null is taken out, other names are refused."""

    messages: Annotated[list[GivenMessage], Meta(min_length=1)] | None = None
    slo: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class QuickBody(_Asked, forbid_unknown_fields=True, gc=False):
    """What is asked, as the fast way sees it, with the refused fields that often ask for nothing.

    Narrower than `Body` everywhere, so what is taken here is taken there.
    """

    messages: Annotated[list[QuickMessage], Meta(min_length=1)] | None = None
    slo: Raw = Raw()
    metadata: dict[str, str | bool | _Int64 | float] | None = None
    model: str | None = None
    user: str | None = None
    stream: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None


class QuickLine(QuickBody, forbid_unknown_fields=True, gc=False):
    id: _Id = None
    custom_id: _Id = None


class QuickBatchLine(Struct, forbid_unknown_fields=True, gc=False):
    method: Literal["POST"]
    url: Endpoint
    body: QuickBody
    custom_id: _Id = None


BODY_FIELDS = frozenset(Body.__struct_fields__)
# A record's own names, for telling what a misspelt one was meant to be.
PLAIN_FIELDS = (*Body.__struct_fields__, *ID_FIELDS, "conversations")
