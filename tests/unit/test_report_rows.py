"""Latencies of one request, whether it kept its promise, and what broke it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from uellm_cli.report.blame import blame_for
from uellm_cli.report.rows import latency_row
from uellm_cli.types import Answer, Blame, Failure, FinishReason, RequestTiming, Result

# The request starts 10 s into the run. Its batch is prefilled at 12 s and its first token comes at
# 13 s; its own last token is made at 17 s, the batch is handed back at 21 s.
RESULT = Result(
    custom_id="a",
    slo_class="gold",
    batch_id=3,
    prompt_tokens=7,
    predicted_tokens_p50=3.0,
    predicted_tokens_p90=6.0,
    output_tokens=5,
    kv_bytes=1024,
    deadline_s=11.0,
    arrival_s=10.0,
    blame=Blame.NONE,
    timing=RequestTiming(prefill_s=12.0, first_token_s=13.0, answered_s=17.0, finished_s=21.0),
    finish_reason=FinishReason.STOP,
)
FAILED = replace(RESULT, timing=None, failure=Failure("engine_error", "it broke"))


def test_latencies_count_from_the_request_start_and_not_from_the_run_start() -> None:
    row = latency_row(RESULT)
    assert row.queue_s == 2.0  # 12 - 10
    assert row.ttft_s == 3.0  # 13 - 10
    assert row.e2e_s == 11.0  # 21 - 10
    assert row.tpot_s == 2.0  # (11 - 3) / (5 - 1)


@pytest.mark.parametrize("output_tokens", [0, 1])
def test_an_answer_of_at_most_one_token_has_no_time_per_further_token(output_tokens: int) -> None:
    assert latency_row(replace(RESULT, output_tokens=output_tokens)).tpot_s is None


def test_a_row_says_how_many_answers_its_tokens_are_of() -> None:
    answer = Answer("text", 5, FinishReason.STOP)
    assert latency_row(replace(RESULT, answers=(answer,) * 3)).answers == 3
    assert latency_row(FAILED).answers == 0


def test_an_answer_exactly_at_its_deadline_is_in_time() -> None:
    row = latency_row(RESULT)
    assert row.met is True
    assert row.late_s is None


def test_lateness_is_the_time_after_the_deadline() -> None:
    row = latency_row(replace(RESULT, deadline_s=8.0))
    assert row.met is False
    assert row.late_s == 3.0  # 11 - 8


def test_a_request_without_any_target_neither_keeps_nor_breaks_a_promise() -> None:
    unpromised = replace(RESULT, deadline_s=None)
    assert latency_row(unpromised).met is None
    assert latency_row(replace(FAILED, deadline_s=None)).met is None


@pytest.mark.parametrize(
    ("ttft_slo_s", "tpot_slo_s", "met"),
    [(3.0, None, True), (2.9, None, False), (None, 2.0, True), (None, 1.9, False)],
)
def test_every_given_target_has_to_hold(
    ttft_slo_s: float | None, tpot_slo_s: float | None, met: bool
) -> None:
    result = replace(RESULT, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s)
    assert latency_row(result).met is met
    assert latency_row(replace(result, deadline_s=None)).met is met


def test_an_answer_of_one_token_keeps_any_tpot_target() -> None:
    assert latency_row(replace(RESULT, output_tokens=1, tpot_slo_s=0.001)).met is True


def test_a_failed_request_with_a_promise_breaks_it() -> None:
    row = latency_row(FAILED)
    assert row.met is False
    assert row.error == "engine_error"


def test_a_failed_request_has_no_latencies_even_where_its_moments_are_known() -> None:
    row = latency_row(replace(FAILED, timing=RESULT.timing))
    assert (row.queue_s, row.ttft_s, row.tpot_s, row.e2e_s) == (None, None, None, None)
    assert row.met is False


def test_a_row_keeps_what_the_result_says() -> None:
    row = latency_row(replace(RESULT, blame=Blame.QUEUED))
    assert (row.custom_id, row.slo_class, row.batch_id, row.replica) == ("a", "gold", 3, 0)
    assert (row.prompt_tokens, row.output_tokens, row.kv_bytes) == (7, 5, 1024)
    assert (row.predicted_tokens_p50, row.predicted_tokens_p90) == (3.0, 6.0)
    assert (row.blame, row.finish_reason, row.error) == (Blame.QUEUED, FinishReason.STOP, None)


# --- Blame ---------------------------------------------------------------------------------------

# Answered itself after 7 s, handed back after 11 s; at 1 s a token (17 - 13 over 5 - 1).
STRAGGLED = replace(RESULT, deadline_s=8.0)
TOO_LATE_ITSELF = replace(RESULT, deadline_s=6.0)


def test_a_kept_promise_has_no_blame() -> None:
    assert blame_for(RESULT, alone_s=5.0) is Blame.NONE


def test_a_request_without_a_promise_has_no_blame_however_slow_it_was() -> None:
    assert blame_for(replace(RESULT, deadline_s=None), alone_s=1e9) is Blame.NONE


def test_blame_does_not_depend_on_the_blame_that_the_result_carries() -> None:
    assert blame_for(replace(RESULT, blame=Blame.QUEUED), alone_s=5.0) is Blame.NONE


def test_late_even_alone_is_infeasible_before_anything_else_is_looked_at() -> None:
    assert blame_for(STRAGGLED, alone_s=8.1) is Blame.INFEASIBLE
    assert blame_for(STRAGGLED, alone_s=8.0) is Blame.STRAGGLER


def test_an_answer_that_was_ready_in_time_but_handed_back_late_is_a_stragglers_fault() -> None:
    assert blame_for(STRAGGLED, alone_s=None) is Blame.STRAGGLER


def test_a_tpot_target_broken_only_by_the_wait_for_the_batch_is_a_stragglers_fault() -> None:
    # TPOT is 2 s as handed back, and (17 - 13) / (5 - 1) = 1 s as made.
    result = replace(RESULT, deadline_s=None, tpot_slo_s=1.5)
    assert blame_for(result, alone_s=None) is Blame.STRAGGLER


def test_an_answer_past_its_p90_that_would_have_been_in_time_at_it_is_mispredicted() -> None:
    # p90 = 4 tokens are made at 13 + 3 * 1 = 16 s, 6 s after the start: just in time.
    result = replace(TOO_LATE_ITSELF, predicted_tokens_p90=4.0)
    assert blame_for(result, alone_s=6.0) is Blame.MISPREDICTED


def test_an_answer_past_its_p90_that_would_have_been_late_at_it_too_was_queued() -> None:
    # 16 s is 6 s after the start, past a deadline of 5.9 s.
    result = replace(TOO_LATE_ITSELF, deadline_s=5.9, predicted_tokens_p90=4.0)
    assert blame_for(result, alone_s=None) is Blame.QUEUED


def test_a_p90_below_one_token_is_taken_as_one() -> None:
    # The first token came 3 s after the start.
    result = replace(RESULT, deadline_s=3.0, predicted_tokens_p90=0.2)
    assert blame_for(result, alone_s=None) is Blame.MISPREDICTED
    assert blame_for(replace(result, output_tokens=1), alone_s=None) is Blame.QUEUED


@pytest.mark.parametrize("p90", [None, 5.0, 6.0])
def test_a_late_answer_within_its_p90_or_without_one_was_queued(p90: float | None) -> None:
    result = replace(TOO_LATE_ITSELF, predicted_tokens_p90=p90)
    assert blame_for(result, alone_s=2.0) is Blame.QUEUED


def test_a_late_first_token_was_queued() -> None:
    result = replace(RESULT, deadline_s=None, ttft_slo_s=1.0, predicted_tokens_p90=4.0)
    assert blame_for(result, alone_s=100.0) is Blame.QUEUED


@pytest.mark.parametrize(
    ("code", "blame"),
    [
        ("engine_error", Blame.ERROR),
        ("queued", Blame.ERROR),
        ("out_of_memory", Blame.OUT_OF_MEMORY),
        ("batch_expired", Blame.EXPIRED),
        ("interrupted", Blame.INTERRUPTED),
    ],
)
def test_a_failure_is_an_error_unless_its_code_is_a_cause_itself(code: str, blame: Blame) -> None:
    assert blame_for(replace(FAILED, failure=Failure(code, "")), alone_s=1e9) is blame


def test_a_result_with_neither_answer_nor_failure_is_an_error() -> None:
    assert blame_for(replace(RESULT, timing=None), alone_s=None) is Blame.ERROR
