"""The figures of a report, on examples done by hand and on anything at all."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from uellm_cli.errors import UsageError
from uellm_cli.report.goodput import GoodputTargets, is_good, parse_goodput
from uellm_cli.report.json_report import report_document
from uellm_cli.report.metrics import WORST_MISSES, summarise
from uellm_cli.report.rows import LatencyRow
from uellm_cli.types import Blame, FinishReason

ROW = LatencyRow(
    custom_id="a",
    slo_class="default",
    batch_id=0,
    replica=None,
    queue_s=0.5,
    ttft_s=1.0,
    tpot_s=0.1,
    e2e_s=2.0,
    deadline_s=10.0,
    met=True,
    blame=Blame.NONE,
    prompt_tokens=100,
    predicted_tokens_p50=10.0,
    predicted_tokens_p90=20.0,
    output_tokens=11,
    kv_bytes=4096,
    finish_reason=FinishReason.STOP,
    error=None,
)
LATE = replace(ROW, custom_id="late", e2e_s=12.0, met=False, blame=Blame.QUEUED)
FAILED = replace(
    ROW,
    custom_id="failed",
    queue_s=None,
    ttft_s=None,
    tpot_s=None,
    e2e_s=None,
    met=False,
    blame=Blame.ERROR,
    output_tokens=3,
    finish_reason=None,
    error="timeout",
)
UNPROMISED = replace(ROW, custom_id="free", slo_class="free", deadline_s=None, met=None)


# --- By hand -------------------------------------------------------------------------------------


def test_percentiles_are_linear_between_the_two_nearest_values() -> None:
    rows = [replace(ROW, e2e_s=value) for value in (4.0, 1.0, 3.0, 2.0)]
    e2e = summarise(rows, 1.0).latencies.e2e
    assert e2e is not None
    assert e2e.mean_s == 2.5
    assert e2e.median_s == 2.5
    assert e2e.p90_s == pytest.approx(3.7)  # rank 0.90 * (4 - 1) = 2.70, so 3 + 0.70 * (4 - 3)
    assert e2e.p99_s == pytest.approx(3.97)  # rank 0.99 * (4 - 1) = 2.97, so 3 + 0.97 * (4 - 3)


def test_latencies_are_of_the_requests_that_have_them() -> None:
    one_token = replace(ROW, tpot_s=None, ttft_s=3.0)
    latencies = summarise([ROW, one_token, FAILED], 1.0).latencies
    assert latencies.tpot is not None
    assert latencies.tpot.mean_s == 0.1
    assert latencies.ttft is not None
    assert latencies.ttft.mean_s == 2.0  # (1 + 3) / 2
    assert latencies.queue is not None
    assert latencies.queue.mean_s == 0.5


def test_throughput_counts_answered_requests_and_their_tokens_only() -> None:
    totals = summarise([ROW, LATE, UNPROMISED, FAILED], 4.0).totals
    assert (totals.requests, totals.completed, totals.failed) == (4, 3, 1)
    assert totals.failures == {"timeout": 1}
    assert totals.input_tokens == 300
    assert totals.output_tokens == 33
    assert totals.request_throughput == 0.75  # 3 / 4
    assert totals.output_throughput == 8.25  # 33 / 4
    assert totals.total_token_throughput == 83.25  # (300 + 33) / 4


def test_goodput_counts_kept_promises_and_not_requests_without_one() -> None:
    assert summarise([ROW, LATE, UNPROMISED, FAILED], 4.0).totals.request_goodput == 0.25  # 1 / 4


def test_goodput_is_unknown_where_nothing_was_promised() -> None:
    assert summarise([UNPROMISED], 4.0).totals.request_goodput is None


def test_given_goodput_targets_replace_the_promises_of_the_requests() -> None:
    # The late answer has the same TTFT as the others, the failed request none.
    report = summarise([ROW, LATE, UNPROMISED, FAILED], 4.0, GoodputTargets(ttft_s=1.0))
    assert report.totals.request_goodput == 0.75  # 3 / 4
    assert report.slo.met == 1


def test_attainment_is_kept_promises_over_promises_with_failures_as_broken() -> None:
    slo = summarise([ROW, ROW, LATE, UNPROMISED, FAILED], 1.0).slo
    assert (slo.promised, slo.met, slo.share) == (4, 2, 0.5)


def test_classes_come_by_name_with_their_own_figures() -> None:
    gold = replace(LATE, slo_class="gold", deadline_s=5.0)
    default, free, third = summarise([gold, ROW, UNPROMISED, FAILED, LATE], 1.0).classes
    assert (default.name, free.name, third.name) == ("default", "free", "gold")
    assert (default.requests, default.completed, default.late) == (3, 2, 1)
    assert (default.slo.promised, default.slo.met) == (3, 1)
    assert default.e2e is not None
    assert default.e2e.median_s == 7.0  # (2 + 12) / 2
    assert free.slo.share is None
    assert (free.tightest_deadline_s, free.loosest_deadline_s) == (None, None)
    assert (third.tightest_deadline_s, third.late) == (5.0, 1)


def test_deadlines_that_differ_within_a_class_are_shown_as_a_range() -> None:
    (entry,) = summarise([ROW, replace(ROW, deadline_s=4.0)], 1.0).classes
    assert (entry.tightest_deadline_s, entry.loosest_deadline_s) == (4.0, 10.0)


def test_blame_is_counted_for_broken_promises_only() -> None:
    failed_without_promise = replace(FAILED, deadline_s=None, met=None)
    report = summarise([ROW, LATE, LATE, FAILED, failed_without_promise], 1.0)
    assert report.blame == {Blame.QUEUED: 2, Blame.ERROR: 1}


def test_prediction_quality_is_of_answered_requests_with_a_prediction() -> None:
    # |10 - 11| = 1, |10 - 30| = 20, |40 - 35| = 5; of 11 <= 20, 30 > 20, 35 <= 50 two hold.
    rows = [
        ROW,
        replace(ROW, output_tokens=30),
        replace(ROW, output_tokens=35, predicted_tokens_p50=40.0, predicted_tokens_p90=50.0),
        replace(ROW, output_tokens=999, predicted_tokens_p50=None, predicted_tokens_p90=None),
        FAILED,
    ]
    quality = summarise(rows, 1.0).predictions
    assert quality is not None
    assert quality.requests == 3
    assert quality.p50_error_tokens == 5.0
    assert quality.median_tokens == 30
    assert quality.p90_coverage == pytest.approx(2 / 3)


def test_predicted_totals_stand_beside_what_was_made() -> None:
    # Twice 11 tokens for a p50 of 10 and a p90 of 20; what failed or has no prediction is no part.
    unpredicted = replace(ROW, predicted_tokens_p50=None, predicted_tokens_p90=None)
    quality = summarise([ROW, ROW, unpredicted, FAILED], 1.0).predictions
    assert quality is not None
    assert quality.made_tokens == 22
    assert (quality.predicted_tokens_p50, quality.predicted_tokens_p90) == (20.0, 40.0)


@pytest.mark.parametrize(
    ("p50", "p90", "coverage", "error"),
    [
        (30.0, 64.0, 1.0, 34.0),  # the p90 reached the cap of 64, the p50 lacks 34 of it
        (30.0, 63.0, 0.0, 34.0),
        (64.0, 64.0, 1.0, 0.0),
        (70.0, 80.0, 1.0, 0.0),  # longer than it was cut at: nothing is known against it
    ],
)
def test_a_cut_answer_is_covered_where_its_p90_reached_the_cap(
    p50: float, p90: float, coverage: float, error: float
) -> None:
    cut = replace(
        ROW,
        finish_reason=FinishReason.LENGTH,
        output_tokens=64,
        predicted_tokens_p50=p50,
        predicted_tokens_p90=p90,
    )
    quality = summarise([cut], 1.0).predictions
    assert quality is not None
    assert (quality.cut, quality.p90_coverage, quality.p50_error_tokens) == (1, coverage, error)
    whole = summarise([replace(cut, finish_reason=FinishReason.STOP)], 1.0).predictions
    assert whole is not None
    assert (whole.cut, whole.p50_error_tokens) == (0, abs(64 - p50))


def test_requests_with_several_answers_are_in_the_totals_and_judge_no_prediction() -> None:
    # Four answers of 25 tokens, each beyond its p90 of 20, and all together well within 4 * 50.
    four = replace(
        ROW,
        answers=4,
        output_tokens=100,
        predicted_tokens_p50=40.0,
        predicted_tokens_p90=200.0,
        finish_reason=FinishReason.LENGTH,
    )
    alone = summarise([four], 1.0).predictions
    assert alone is not None
    assert (alone.requests, alone.several, alone.cut) == (0, 1, 0)
    assert (alone.p90_coverage, alone.p50_error_tokens, alone.median_tokens) == (None, None, None)
    assert (alone.made_tokens, alone.predicted_tokens_p90) == (100, 200.0)
    beside = summarise([four, replace(ROW, output_tokens=30)], 1.0).predictions
    assert beside is not None
    assert (beside.requests, beside.several) == (1, 1)
    assert (beside.p90_coverage, beside.p50_error_tokens, beside.median_tokens) == (0.0, 20.0, 30)
    assert beside.made_tokens == 130


def test_each_class_has_its_own_prediction_quality_and_all_are_in_the_whole() -> None:
    # |10 - 11| = 1, within 20; |10 - 30| = 20, beyond 20.
    gold = replace(ROW, slo_class="gold", output_tokens=30)
    silent = replace(ROW, slo_class="silent", predicted_tokens_p50=None, predicted_tokens_p90=None)
    report = summarise([ROW, gold, silent], 1.0)
    default, gold_class, silent_class = (entry.predictions for entry in report.classes)
    assert default is not None
    assert gold_class is not None
    assert (default.p90_coverage, default.p50_error_tokens) == (1.0, 1.0)
    assert (gold_class.p90_coverage, gold_class.p50_error_tokens) == (0.0, 20.0)
    assert silent_class is None
    assert report.predictions is not None
    assert (report.predictions.p90_coverage, report.predictions.p50_error_tokens) == (0.5, 10.5)
    classes = report_document(report)["classes"]
    assert isinstance(classes, list)
    assert [entry["predictions"] and entry["predictions"]["made_tokens"] for entry in classes] == [
        11,
        30,
        None,
    ]


def test_worst_misses_are_the_latest_answers_then_missing_ones() -> None:
    late = [
        replace(LATE, custom_id=f"by-{late_s}", e2e_s=10.0 + late_s) for late_s in (1, 5, 3, 2, 4)
    ]
    worst = summarise([FAILED, ROW, UNPROMISED, *late], 1.0).worst_misses
    assert [row.custom_id for row in worst] == ["by-5", "by-4", "by-3", "by-2", "by-1"]
    worst = summarise([FAILED, ROW, *late[:2]], 1.0).worst_misses
    assert [row.custom_id for row in worst] == ["by-5", "by-1", "failed"]


def test_equally_late_answers_are_named_by_id_whatever_their_order() -> None:
    rows = [replace(LATE, custom_id=name) for name in "cab"]
    assert [row.custom_id for row in summarise(rows, 1.0).worst_misses] == ["a", "b", "c"]


@pytest.mark.parametrize("rows", [[], [FAILED]])
def test_figures_of_a_run_without_answers_are_null_and_not_nan(rows: list[LatencyRow]) -> None:
    document = report_document(summarise(rows, 3.0))
    latency_keys = [key for key in document if key.endswith("_ms")]
    assert len(latency_keys) == 20
    assert all(document[key] is None for key in latency_keys)
    assert document["predictions"] is None
    assert document["request_throughput"] == 0.0
    assert document["failed"] == len(rows)


def test_a_run_of_no_duration_has_no_rates() -> None:
    totals = summarise([ROW], 0.0).totals
    assert totals.request_throughput is None
    assert totals.request_goodput is None


# --- The document --------------------------------------------------------------------------------


def test_the_document_has_the_names_and_milliseconds_of_vllm() -> None:
    document = report_document(summarise([ROW, LATE], 4.0))
    expected = {
        "duration": 4.0,
        "completed": 2,
        "failed": 0,
        "total_input_tokens": 200,
        "total_output_tokens": 22,
        "request_throughput": 0.5,
        "output_throughput": 5.5,
        "total_token_throughput": 55.5,
        "request_goodput": 0.25,
        "mean_ttft_ms": 1000.0,
        "median_tpot_ms": 100.0,
        "mean_e2el_ms": 7000.0,  # (2 + 12) / 2 s
        "p99_queue_ms": 500.0,
        "slo_attainment": 0.5,
        "blame": {"queued": 1},
    }
    assert {key: document[key] for key in expected} == expected
    assert document["median_itl_ms"] is None


def test_inter_token_latencies_are_of_all_tokens_of_all_answers() -> None:
    rows = [replace(ROW, itl_s=(0.1, 0.3)), replace(LATE, itl_s=(0.2,)), ROW]
    document = report_document(summarise(rows, 4.0))
    assert document["mean_itl_ms"] == pytest.approx(200)
    assert document["median_itl_ms"] == pytest.approx(200)
    assert document["p99_itl_ms"] == pytest.approx(298)


def test_the_document_names_each_class_and_miss() -> None:
    document = report_document(summarise([ROW, LATE], 4.0))
    assert document["worst_misses"] == [
        {
            "custom_id": "late",
            "slo_class": "default",
            "blame": "queued",
            "deadline_s": 10.0,
            "e2e_s": 12.0,
            "late_s": 2.0,
            "error": None,
        }
    ]
    (entry,) = json.loads(json.dumps(document))["classes"]
    assert entry["name"] == "default"
    assert entry["slo_attainment"] == 0.5
    assert entry["p90_e2el_ms"] == pytest.approx(11000.0)  # 2 + 0.9 * (12 - 2) s


# --- Goodput targets -----------------------------------------------------------------------------


def test_goodput_targets_are_milliseconds_in_vllms_names() -> None:
    assert parse_goodput("ttft:200,tpot:50,e2el:5000") == GoodputTargets(0.2, 0.05, 5.0)
    assert parse_goodput(" e2el:1.5e3 ") == GoodputTargets(e2e_s=1.5)


@pytest.mark.parametrize(
    "text",
    [
        *("", "ttft", "ttft:", "ttft:fast", "ttft:0", "ttft:-1", "ttft:nan", "ttft:inf"),
        *("itl:3", "ttft:1,ttft:2", "ttft:200,", "TTFT:200", "ttft=200", "ttft:1:2"),
    ],
)
def test_nonsense_goodput_targets_are_usage_errors_that_name_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--goodput"):
        parse_goodput(text)


def test_a_request_is_good_only_if_it_keeps_all_targets() -> None:
    # TTFT 1 s, TPOT 0.1 s, E2E 2 s; at the target is within it.
    assert is_good(ROW, GoodputTargets(ttft_s=1.0, tpot_s=0.1, e2e_s=2.0))
    assert not is_good(ROW, GoodputTargets(ttft_s=0.9, tpot_s=0.1, e2e_s=2.0))
    assert not is_good(ROW, GoodputTargets(ttft_s=1.0, tpot_s=0.09, e2e_s=2.0))
    assert not is_good(ROW, GoodputTargets(ttft_s=1.0, tpot_s=0.1, e2e_s=1.9))


def test_an_answer_without_tpot_keeps_its_target_and_a_failure_keeps_none() -> None:
    assert is_good(replace(ROW, tpot_s=None), GoodputTargets(tpot_s=0.001))
    assert not is_good(FAILED, GoodputTargets(tpot_s=0.001))


# --- Anything at all -----------------------------------------------------------------------------

TIMES = st.floats(min_value=0.0, max_value=1e6, allow_subnormal=False)


@st.composite
def latency_rows(draw: st.DrawFn) -> LatencyRow:
    error = draw(st.sampled_from([None, None, "timeout", "out_of_memory"]))
    ttft_s, decode_s = draw(TIMES), draw(TIMES)
    output_tokens = draw(st.integers(0, 1000))
    further = output_tokens - 1
    e2e_s = None if error else ttft_s + decode_s
    deadline_s = draw(st.none() | TIMES)
    met = None if deadline_s is None else e2e_s is not None and e2e_s <= deadline_s
    return LatencyRow(
        custom_id=draw(st.text(max_size=4)),
        slo_class=draw(st.sampled_from(["default", "gold", "nightly"])),
        batch_id=draw(st.none() | st.integers(0, 9)),
        replica=None,
        queue_s=None if error else ttft_s / 2,
        ttft_s=None if error else ttft_s,
        tpot_s=None if error or further < 1 else decode_s / further,
        e2e_s=e2e_s,
        deadline_s=deadline_s,
        met=met,
        blame=draw(st.sampled_from(Blame)) if met is False else Blame.NONE,
        prompt_tokens=draw(st.integers(0, 1000)),
        predicted_tokens_p50=draw(st.none() | st.floats(1, 500)),
        predicted_tokens_p90=draw(st.none() | st.floats(500, 1000)),
        output_tokens=output_tokens,
        kv_bytes=0,
        finish_reason=None if error else draw(st.sampled_from(FinishReason)),
        error=error,
        answers=0 if error else draw(st.sampled_from([1, 1, 4])),
    )


RUNS = st.lists(latency_rows(), max_size=12)


@given(RUNS, TIMES)
def test_classes_causes_and_error_codes_sum_to_the_totals(
    rows: list[LatencyRow], duration_s: float
) -> None:
    report = summarise(rows, duration_s)
    assert sum(entry.requests for entry in report.classes) == report.totals.requests
    assert sum(entry.completed for entry in report.classes) == report.totals.completed
    assert sum(entry.slo.promised for entry in report.classes) == report.slo.promised
    assert sum(entry.slo.met for entry in report.classes) == report.slo.met
    assert sum(report.totals.failures.values()) == report.totals.failed
    assert sum(report.blame.values()) == report.slo.promised - report.slo.met


@given(RUNS, TIMES)
def test_shares_lie_between_none_and_all_and_percentiles_are_ordered(
    rows: list[LatencyRow], duration_s: float
) -> None:
    report = summarise(rows, duration_s)
    for slo in (report.slo, *(entry.slo for entry in report.classes)):
        assert slo.share is None or 0 <= slo.share <= 1
    if report.predictions is not None and report.predictions.p90_coverage is not None:
        assert 0 <= report.predictions.p90_coverage <= 1
    latencies = report.latencies
    for summary in (latencies.queue, latencies.ttft, latencies.tpot, latencies.e2e):
        if summary is not None:
            assert summary.median_s <= summary.p90_s <= summary.p99_s


@given(RUNS)
def test_predictions_of_the_classes_add_up_to_those_of_the_run(rows: list[LatencyRow]) -> None:
    report = summarise(rows, 1.0)
    parts = [entry.predictions for entry in report.classes if entry.predictions]
    whole = report.predictions
    assert (whole is None) == (not parts)
    if whole is not None:
        assert sum(part.requests for part in parts) == whole.requests
        assert sum(part.several for part in parts) == whole.several
        assert sum(part.cut for part in parts) == whole.cut
        assert sum(part.made_tokens for part in parts) == whole.made_tokens
        covered = sum((part.p90_coverage or 0.0) * part.requests for part in parts)
        assert covered == pytest.approx((whole.p90_coverage or 0.0) * whole.requests)
        p90 = sum(part.predicted_tokens_p90 for part in parts)
        assert p90 == pytest.approx(whole.predicted_tokens_p90)


@given(RUNS, TIMES)
def test_the_document_is_strict_json_and_survives_it(
    rows: list[LatencyRow], duration_s: float
) -> None:
    document = report_document(summarise(rows, duration_s))
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@given(RUNS)
def test_worst_misses_are_broken_promises_and_no_later_answer_is_left_out(
    rows: list[LatencyRow],
) -> None:
    worst = summarise(rows, 1.0).worst_misses
    missed = [row for row in rows if row.met is False]
    assert len(worst) == min(WORST_MISSES, len(missed))
    assert all(row.met is False for row in worst)
    left_out = list((Counter(missed) - Counter(worst)).elements())
    least = min((row.late_s or 0.0 for row in worst), default=0.0)
    assert all((row.late_s or 0.0) <= least for row in left_out)


@given(RUNS.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_requests_changes_no_count(
    orders: tuple[list[LatencyRow], list[LatencyRow]],
) -> None:
    before, after = (summarise(rows, 1.0) for rows in orders)
    assert (before.slo, before.blame, before.totals) == (after.slo, after.blame, after.totals)
