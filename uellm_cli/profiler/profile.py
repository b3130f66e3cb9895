"""Requests to profiled requests: prompt tokens, output-length quantiles, KV bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from uellm_cli.errors import ModelError
from uellm_cli.models.schemas import schema_problem
from uellm_cli.models.tokens import PromptTokenizer
from uellm_cli.profiler.lengths.bounds import estimates
from uellm_cli.profiler.truncate import prompt_room, truncated
from uellm_cli.requests.wording import MAX_REASON_CHARS, printable
from uellm_cli.types import (
    SLO,
    InvalidRequest,
    LengthEstimate,
    LengthPredictor,
    ModelSpec,
    ProfiledRequest,
    Request,
    SamplingParams,
    Source,
)

# Requests whose text is in memory together.
AT_ONCE = 1000
# OpenAI's error code of a prompt that its model has no room for.
TOO_LONG = "context_length_exceeded"

# Told of each request that is profiled, as it was asked and as the model gets it.
Keep = Callable[[Request, Request], None]


@dataclass(slots=True)
class Profile:
    """What is known of a set of requests before any is answered; `truncated` prompts were cut."""

    token_source: Source
    requests: list[ProfiledRequest] = field(default_factory=list)
    invalid: list[InvalidRequest] = field(default_factory=list)
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Profiler:
    """What a profile is made with.

    A request's cap is its own `max_tokens`, else `max_tokens`, and never more than what its prompt
    leaves of the model's context. A prompt that leaves nothing is refused, or cut with `truncate`.
    `samples_by_default` is how the model answers a request that sets no temperature.
    """

    tokenizer: PromptTokenizer
    model: ModelSpec
    predictor: LengthPredictor
    max_tokens: int | None = None
    truncate: bool = False
    samples_by_default: bool = True

    def profile(self, requests: Iterable[Request], keep: Keep | None = None) -> Profile:
        """Profiles every request; one that the model cannot take becomes an invalid one.

        The text of `AT_ONCE` of them is in memory at a time; `keep` sees it before it is gone.
        """
        profile = Profile(self.tokenizer.source)
        requests = iter(requests)
        while chunk := list(islice(requests, AT_ONCE)):
            self._profile_chunk(chunk, profile, keep)
        return profile

    def with_longer_cap(
        self, profiled: ProfiledRequest, request: Request, max_tokens: int
    ) -> ProfiledRequest:
        """The profile of a request whose answer may have at least `max_tokens`."""
        left = self.model.context_tokens - profiled.prompt_tokens
        cap = min(max(profiled.max_tokens, max_tokens), left)
        return self._profiled([(request, profiled.prompt_tokens)], [cap], profiled.slo)[0]

    def predicted_anew(
        self, known: Iterable[tuple[ProfiledRequest, Request]], predictor: LengthPredictor
    ) -> list[ProfiledRequest]:
        """Requests that are profiled already, with what `predictor` says of their lengths.

        The text of `AT_ONCE` of them is in memory at a time.
        """
        known = iter(known)
        anew: list[ProfiledRequest] = []
        while chunk := list(islice(known, AT_ONCE)):
            requests = [request for _, request in chunk]
            caps = [profiled.max_tokens for profiled, _ in chunk]
            tokens = [profiled.prompt_tokens for profiled, _ in chunk]
            outputs = estimates(predictor, requests, tokens, caps)
            anew += [
                with_output(profiled, _within_asked(request.sampling, output, cap), self.model)
                for (profiled, request), output, cap in zip(chunk, outputs, caps, strict=True)
            ]
        return anew

    def _profile_chunk(self, chunk: list[Request], profile: Profile, keep: Keep | None) -> None:
        fitting: list[tuple[Request, int]] = []
        for asked, tokens in self._counted(chunk, profile.invalid):
            given = self._fitted(asked, tokens)
            if isinstance(given, InvalidRequest):
                profile.invalid.append(given)
                continue
            profile.truncated += given[0] is not asked
            fitting.append(given)
            if keep is not None:
                keep(asked, given[0])
        caps = [self._cap(request, tokens) for request, tokens in fitting]
        profile.requests += self._profiled(fitting, caps)

    def _profiled(
        self, counted: list[tuple[Request, int]], caps: list[int], slo: SLO | None = None
    ) -> list[ProfiledRequest]:
        requests = [request for request, _ in counted]
        predicted = estimates(self.predictor, requests, [tokens for _, tokens in counted], caps)
        outputs = [
            _within_asked(request.sampling, estimate, cap)
            for request, estimate, cap in zip(requests, predicted, caps, strict=True)
        ]
        return [
            ProfiledRequest(
                custom_id=request.custom_id,
                prompt_tokens=tokens,
                max_tokens=cap,
                output=estimate,
                kv_bytes=self.model.kv_bytes(tokens + round(estimate.p90)),
                # Every request starts with the run: no engine waits for an arrival yet.
                slo=slo or request.slo or _NO_SLO,
                rounds=self._rounds(request),
                copies=request.sampling.n // self._rounds(request),
            )
            for (request, tokens), cap, estimate in zip(counted, caps, outputs, strict=True)
        ]

    def _counted(
        self, requests: Sequence[Request], invalid: list[InvalidRequest]
    ) -> Iterator[tuple[Request, int]]:
        try:
            yield from zip(requests, self.tokenizer.count(requests), strict=True)
            return
        except ModelError:
            pass  # some conversation breaks the template: find out which
        for request in requests:
            try:
                yield request, self.tokenizer.count([request])[0]
            except ModelError as error:
                invalid.append(_refused(request, str(error)))

    def _fitted(self, request: Request, tokens: int) -> tuple[Request, int] | InvalidRequest:
        """The request as the model can take it and its tokens, or why it cannot."""
        if tokens == 0:
            return _refused(request, "the prompt has no tokens")
        if (unknown := self._unknown_token(request)) is not None:
            return unknown
        schema = request.sampling.json_schema
        if schema is not None and (problem := schema_problem(schema)) is not None:
            reason = f"no answer can be made to follow this schema: {problem}"
            return replace(_refused(request, reason), field="response_format")
        if tokens < self.model.context_tokens:
            return request, tokens
        if self.truncate:
            room = prompt_room(self.model, request.sampling.max_tokens or self.max_tokens)
            cut = truncated(request, self._count_one, room)
            if cut is not None:
                return cut, self._count_one(cut)
        reason = (
            f"the prompt's {tokens} tokens leave no room for an answer in the model's context of "
            f"{self.model.context_tokens}"
        )
        return replace(_refused(request, reason), code=TOO_LONG)

    def _unknown_token(self, request: Request) -> InvalidRequest | None:
        """The refusal of a request that names a token which the model has not."""
        asked = request.sampling
        if not asked.logit_bias and not asked.stop_token_ids:
            return None
        named = [(token, f"logit_bias.{token}") for token, _ in asked.logit_bias]
        named += [(token, "stop_token_ids") for token in asked.stop_token_ids]
        for token, place in named:
            if token >= self.model.vocab_size:
                reason = f"{token} is no token of the model, which has {self.model.vocab_size}"
                return InvalidRequest(request.source, place, reason, request.custom_id)
        return None

    def _rounds(self, request: Request) -> int:
        """How often it is answered: a greedy answer is the same every time, and made once."""
        given = request.sampling.temperature
        samples = self.samples_by_default if given is None else given > 0
        return request.sampling.n if samples else 1

    def _count_one(self, request: Request) -> int:
        return self.tokenizer.count([request])[0]

    def _cap(self, request: Request, prompt_tokens: int) -> int:
        wanted = request.sampling.max_tokens or self.max_tokens
        left = self.model.context_tokens - prompt_tokens
        return left if wanted is None else min(wanted, left)


def with_output(
    profiled: ProfiledRequest, output: LengthEstimate, model: ModelSpec
) -> ProfiledRequest:
    """The request with another prediction, and the memory that goes with it."""
    kv_bytes = model.kv_bytes(profiled.prompt_tokens + round(output.p90))
    return replace(profiled, output=output, kv_bytes=kv_bytes)


_NO_SLO = SLO()


def _within_asked(asked: SamplingParams, estimate: LengthEstimate, cap: int) -> LengthEstimate:
    """The estimate, as far as `min_tokens` and `ignore_eos` leave it open.

    A schema outranks both: an answer that is whole has ended.
    """
    if asked.json_schema is not None or not (asked.min_tokens or asked.ignore_eos):
        return estimate
    ends_at_cap_only = asked.ignore_eos and not asked.stop and not asked.stop_token_ids
    least = cap if ends_at_cap_only else min(asked.min_tokens, cap)
    return replace(estimate, tokens=tuple(max(tokens, least) for tokens in estimate.tokens))


def _refused(request: Request, reason: str) -> InvalidRequest:
    field = "messages" if request.messages else "prompt"
    # A template's own words may be of any length, and hold anything.
    reason = printable(reason, MAX_REASON_CHARS)
    return InvalidRequest(request.source, field, reason, request.custom_id)
