"""Requests to profiled requests: prompt tokens, output-length quantiles, KV bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.errors import ModelError
from uellm_cli.models.tokens import PromptTokenizer
from uellm_cli.types import (
    SLO,
    InvalidRequest,
    LengthPredictor,
    ModelSpec,
    ProfiledRequest,
    Request,
    Source,
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a set of requests before any is answered."""

    requests: tuple[ProfiledRequest, ...]
    invalid: tuple[InvalidRequest, ...]
    token_source: Source


def profile_requests(
    requests: Sequence[Request],
    tokenizer: PromptTokenizer,
    model: ModelSpec,
    predictor: LengthPredictor,
    max_tokens: int | None = None,
) -> Profile:
    """Profiles every request; one that the model cannot take becomes an invalid one.

    A request's cap is its own `max_tokens`, else `max_tokens`, and never more than what its prompt
    leaves of the model's context.
    """
    counted: list[tuple[Request, int]] = []
    invalid: list[InvalidRequest] = []
    for request, tokens in _count(requests, tokenizer, invalid):
        if tokens == 0:
            invalid.append(_refused(request, "the prompt has no tokens"))
        elif tokens >= model.context_tokens:
            invalid.append(
                _refused(
                    request,
                    f"the prompt's {tokens} tokens leave no room for an answer in the model's "
                    f"context of {model.context_tokens}",
                )
            )
        else:
            counted.append((request, tokens))

    caps = [_cap(request, tokens, model, max_tokens) for request, tokens in counted]
    estimates = predictor.predict([r for r, _ in counted], [t for _, t in counted], caps)
    profiled = tuple(
        ProfiledRequest(
            custom_id=request.custom_id,
            prompt_tokens=tokens,
            max_tokens=cap,
            output=estimate,
            kv_bytes=model.kv_bytes(tokens + round(estimate.p90)),
            # Every request starts with the run: no engine waits for an arrival yet.
            slo=request.slo or SLO(),
        )
        for (request, tokens), cap, estimate in zip(counted, caps, estimates, strict=True)
    )
    return Profile(profiled, tuple(invalid), tokenizer.source)


def _count(
    requests: Sequence[Request], tokenizer: PromptTokenizer, invalid: list[InvalidRequest]
) -> list[tuple[Request, int]]:
    try:
        return list(zip(requests, tokenizer.count(requests), strict=True))
    except ModelError:
        pass  # some conversation breaks the template: find out which
    counted = []
    for request in requests:
        try:
            counted.append((request, tokenizer.count([request])[0]))
        except ModelError as error:
            invalid.append(_refused(request, str(error)))
    return counted


def _cap(request: Request, prompt_tokens: int, model: ModelSpec, default: int | None) -> int:
    wanted = request.sampling.max_tokens or default
    left = model.context_tokens - prompt_tokens
    return left if wanted is None else min(wanted, left)


def _refused(request: Request, reason: str) -> InvalidRequest:
    field = "messages" if request.messages else "prompt"
    return InvalidRequest(request.source, field, reason, request.custom_id)
