"""One request's latencies and whether its promise was kept.

The definitions are those of `vllm bench serve` (vllm/benchmarks/serve.py, `calculate_metrics`),
with one difference: a request's start is the run's start or its arrival, not the moment of
sending, so waiting in the queue counts.
"""

from __future__ import annotations

import msgspec

from uellm_cli.types import Blame, FinishReason, RequestTiming, Result


class LatencyRow(msgspec.Struct, frozen=True, gc=False):
    """One row of `latency.parquet`. Seconds count from the request's start.

    A failed request has no latencies, even where some of its moments are known, so that no figure
    mixes answers with failures. `met` is None for a request without any promise; `error` is the
    failure's code. `answers` is how many the request got, and predicted and output tokens are over
    all of them. `itl_s` are the inter-token latencies: the time between each two tokens, where the
    engine tells it.
    """

    custom_id: str
    slo_class: str
    batch_id: int | None
    replica: int | None
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    deadline_s: float | None
    met: bool | None
    blame: Blame
    prompt_tokens: int
    predicted_tokens_p50: float | None
    predicted_tokens_p90: float | None
    output_tokens: int
    kv_bytes: int
    finish_reason: FinishReason | None
    error: str | None
    itl_s: tuple[float, ...] = ()
    answers: int = 1

    @property
    def late_s(self) -> float | None:
        """Seconds between the deadline and the answer; None if in time, or if either is missing."""
        if self.e2e_s is None or self.deadline_s is None or self.e2e_s <= self.deadline_s:
            return None
        return self.e2e_s - self.deadline_s


class RequestLatency(msgspec.Struct, frozen=True, gc=False):
    """How long one answer took, in seconds from the request's start.

    `queue_s` runs to the first prefill, `ttft_s` to the first token, `e2e_s` until the answer is
    handed back. `tpot_s` = (E2E - TTFT) / (n - 1) is the mean time per further token, None for an
    answer of n <= 1 tokens.
    """

    queue_s: float
    ttft_s: float
    tpot_s: float | None
    e2e_s: float


def latency_row(result: Result) -> LatencyRow:
    """The row of one request."""
    latency = None
    if result.timing is not None and result.failure is None:
        latency = request_latency(result.timing, result.arrival_s, result.made_tokens)
    return LatencyRow(
        custom_id=result.custom_id,
        slo_class=result.slo_class,
        batch_id=result.batch_id,
        # There is one replica yet; a request that never reached it has none.
        replica=None if result.batch_id is None else 0,
        queue_s=latency.queue_s if latency else None,
        ttft_s=latency.ttft_s if latency else None,
        tpot_s=latency.tpot_s if latency else None,
        e2e_s=latency.e2e_s if latency else None,
        deadline_s=result.deadline_s,
        met=slo_met(result, latency),
        blame=result.blame,
        prompt_tokens=result.prompt_tokens,
        predicted_tokens_p50=result.predicted_tokens_p50,
        predicted_tokens_p90=result.predicted_tokens_p90,
        output_tokens=result.output_tokens,
        kv_bytes=result.kv_bytes,
        finish_reason=result.finish_reason,
        error=result.failure.code if result.failure else None,
        itl_s=result.timing.gaps_s if latency and result.timing else (),
        answers=len(result.answers),
    )


def request_latency(timing: RequestTiming, arrival_s: float, output_tokens: int) -> RequestLatency:
    """Latencies of an answer of `output_tokens` tokens to a request that starts at `arrival_s`."""
    further_tokens = output_tokens - 1
    decode_s = timing.finished_s - timing.first_token_s
    return RequestLatency(
        queue_s=timing.prefill_s - arrival_s,
        ttft_s=timing.first_token_s - arrival_s,
        tpot_s=decode_s / further_tokens if further_tokens > 0 else None,
        e2e_s=timing.finished_s - arrival_s,
    )


def slo_met(result: Result, latency: RequestLatency | None) -> bool | None:
    """Whether `latency` keeps all of the request's targets; None if it has no target.

    No latency means no answer, which keeps no promise. An answer of one token has no TPOT and
    keeps any TPOT target, as in vllm's goodput.
    """
    if result.deadline_s is None and result.ttft_slo_s is None and result.tpot_slo_s is None:
        return None
    if latency is None:
        return False
    return (
        within(latency.e2e_s, result.deadline_s)
        and within(latency.ttft_s, result.ttft_slo_s)
        and within(latency.tpot_s, result.tpot_slo_s)
    )


def within(value_s: float | None, target_s: float | None) -> bool:
    """Whether a latency keeps its target; what is not promised or not defined breaks nothing."""
    return value_s is None or target_s is None or value_s <= target_s
