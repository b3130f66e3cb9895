"""What requests will take, from their profile: tokens in all, seconds, and a batch's memory.

Pure functions: what a step takes and what a machine holds is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm_cli.profiler.lengths.bounds import Quantiles
from uellm_cli.types import QUANTILE_LEVELS, ModelSpec, ProfiledRequest, Source, Stage, StepTimes


@dataclass(frozen=True, slots=True)
class TokenTotals:
    """Over all requests; output counts every answer that has to be made.

    `output_expected` adds up the means of the predicted distributions. The others add up one of
    their quantiles, as if all answers were at it together: lengths that are predicted without
    knowing the model are mostly wrong in the same direction.
    """

    prompt: int
    longest_prompt: int
    output_expected: float
    output_p05: float
    output_p50: float
    output_p95: float


@dataclass(frozen=True, slots=True)
class RequestSeconds:
    """A request with the engine to itself, its answers at their median length."""

    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class TimeNeeded:
    """Seconds by the step-time model of `source`.

    `requests` are in the profile's order. `one_by_one_s` and `together_s` are for all of them at
    their expected lengths, without loading: one after the other, and `rows` at a time.
    """

    requests: tuple[RequestSeconds, ...]
    rows: int
    one_by_one_s: float
    together_s: float
    source: Source


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """What the model with `rows` requests at a time takes, and whether the machine has it.

    `activation_bytes` has the logits in it; `overhead_bytes` is what a device takes for itself.
    """

    rows: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int
    total_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Resources:
    """`time` is None where the model does not fit the machine; `problem` says why then.

    `kv_source` is how the cache's bytes a token are known; `origin` is whose machine it is.
    """

    tokens: TokenTotals
    memory: tuple[BatchMemory, ...]
    time: TimeNeeded | None
    kv_source: Source
    origin: str
    problem: str | None = None


def kv_source(model: ModelSpec) -> Source:
    """The cache follows from the config, whose fields mean what they say in known families."""
    return Source.ASSUMED if model.weight_source is Source.ASSUMED else Source.SPECIFIED


def predicted_quantiles(requests: Sequence[ProfiledRequest]) -> Quantiles:
    """[requests, QUANTILE_LEVELS] in tokens of one answer."""
    rows = [request.output.tokens for request in requests]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(QUANTILE_LEVELS))


def expected_tokens(quantiles: Quantiles) -> NDArray[np.float64]:
    """The mean [requests] of each distribution: straight between quantiles, flat beyond them."""
    inner = np.diff(QUANTILE_LEVELS) / 2
    weights = np.concatenate([[QUANTILE_LEVELS[0]], inner]) + np.concatenate(
        [inner, [1 - QUANTILE_LEVELS[-1]]]
    )
    return np.asarray(quantiles @ weights)


def token_totals(requests: Sequence[ProfiledRequest]) -> TokenTotals:
    """Raises ValueError without requests."""
    quantiles = predicted_quantiles(requests)
    rounds = np.array([request.rounds for request in requests])
    sums = dict(zip(QUANTILE_LEVELS, (rounds @ quantiles).tolist(), strict=True))
    return TokenTotals(
        prompt=sum(request.prompt_tokens for request in requests),
        longest_prompt=max(request.prompt_tokens for request in requests),
        output_expected=float(rounds @ expected_tokens(quantiles)),
        output_p05=sums[0.05],
        output_p50=sums[0.5],
        output_p95=sums[0.95],
    )


def time_needed(requests: Sequence[ProfiledRequest], step: StepTimes, rows: int) -> TimeNeeded:
    """What `requests` take, alone and together, at steps of at most `rows` rows.

    Together they take what the work comes to if no row is ever empty, and never less than the
    longest of them alone: an order can come near to that, and none is better. A step's fixed cost
    is shared by its rows; what is read and computed for each row is not.
    """
    expected = np.rint(expected_tokens(predicted_quantiles(requests))).astype(int).tolist()
    alone = [_alone(r, tokens, step) for r, tokens in zip(requests, expected, strict=True)]
    each_s = [seconds.prefill_s + seconds.decode_s for seconds in alone]
    steps = sum(r.rounds * (tokens - 1) for r, tokens in zip(requests, expected, strict=True))
    shared_s = step.fixed_s * steps * (1 - 1 / rows)
    return TimeNeeded(
        requests=tuple(_alone(request, round(request.output.p50), step) for request in requests),
        rows=rows,
        one_by_one_s=sum(each_s),
        together_s=max(sum(each_s) - shared_s, *each_s, 0.0),
        source=step.source,
    )


def batch_memory(rows: int, whole: Stage, fits: bool) -> BatchMemory:
    """`whole` is the model in one piece, with room for `rows` requests."""
    return BatchMemory(
        rows=rows,
        weight_bytes=whole.weight_bytes,
        kv_bytes=whole.kv_bytes,
        activation_bytes=whole.activation_bytes,
        overhead_bytes=whole.overhead_bytes,
        total_bytes=whole.total_bytes,
        fits=fits,
    )


def _alone(request: ProfiledRequest, output_tokens: int, step: StepTimes) -> RequestSeconds:
    """Its answers, one after the other; the first token of each comes with the prefill."""
    prompt = request.prompt_tokens
    return RequestSeconds(
        prefill_s=request.rounds * step.prefill_s(1, prompt),
        decode_s=request.rounds * step.decode_s(1, prompt, output_tokens - 1),
    )
