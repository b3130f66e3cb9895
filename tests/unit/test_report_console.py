"""The summary on a terminal, at the widths that people have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from uellm_cli.report.console import CAUSES, render, visible
from uellm_cli.report.metrics import summarise
from uellm_cli.report.rows import LatencyRow
from uellm_cli.types import Blame, FinishReason, RunInfo

ROW = LatencyRow(
    custom_id="a",
    slo_class="interactive",
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
    LATE, custom_id="failed", e2e_s=None, blame=Blame.ERROR, finish_reason=None, error="timeout"
)
UNPROMISED = replace(ROW, deadline_s=None, met=None)

INFO = RunInfo(
    run_id="r",
    command=(),
    started=datetime(2026, 1, 1, tzinfo=UTC),
    model="some-org/some-model",
    model_fingerprint="0" * 32,
    bundled_model=False,
    engine="static",
    scheduler="slo-odbs",
    seed=0,
    versions={},
    machine={},
    inputs={},
    settings={},
)

HOSTILE = (
    "[red]not red[/red]",
    "[/]",
    "two\nlines\r\x08",
    "\x1b[2J\x1b[31mcleared",
    "\x9b31m",
    "\u202egnp.exe",
    "\u200f\u2066isolated",
    ":boom:",
    "x" * 500,
    "漢" * 200,
    "\ud800",
    "",
)


def rendered(
    rows: Sequence[LatencyRow], info: RunInfo = INFO, width: int = 80, duration_s: float = 61.23
) -> str:
    out = StringIO()
    render(summarise(rows, duration_s), info, Console(file=out, width=width))
    return out.getvalue()


def test_the_first_line_is_the_verdict() -> None:
    rows = [ROW] * 192 + [LATE] * 6 + [FAILED] * 2
    first = rendered(rows).splitlines()[0]
    assert first == "198 of 200 answered, 96 % of promises kept, 61.2 s"


def test_a_run_without_promises_says_so_and_has_no_goodput() -> None:
    text = rendered([UNPROMISED])
    assert text.startswith("1 of 1 answered, nothing promised, 61.2 s\n")
    assert "Goodput" not in text


@pytest.mark.parametrize(
    ("kept", "broken", "share"),
    [
        (1999, 1, "99.9 %"),
        (1, 1999, "under 0.1 %"),
        (283, 717, "28.3 %"),
        (0, 1, "0 %"),
        (1, 0, "100 %"),
    ],
)
def test_only_all_is_shown_as_all_and_only_none_as_none(kept: int, broken: int, share: str) -> None:
    verdict = rendered([ROW] * kept + [LATE] * broken).splitlines()[0]
    assert f", {share} of promises kept," in verdict


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0123, "12.3 ms"),
        (0.9996, "1 s"),
        (99.94, "99.9 s"),
        (119.9, "119.9 s"),
        (119.96, "2 min 00 s"),
        (7199.0, "119 min 59 s"),
        (7199.6, "2 h 00 min"),
        (360000.0, "100 h 00 min"),
    ],
)
def test_durations_are_shown_in_the_unit_that_people_would_say(seconds: float, text: str) -> None:
    assert rendered([ROW], duration_s=seconds).splitlines()[0].endswith(f", {text}")


def test_figures_of_the_run_stand_in_the_summary() -> None:
    text = " ".join(rendered([ROW, ROW, LATE, FAILED], duration_s=4.0).split())
    assert "3 answered, 1 failed (1 timeout)" in text
    assert "300 read, 33 written" in text
    assert "0.75 requests/s, 8.25 output tokens/s, 83.2 tokens/s in all" in text
    assert "0.5 requests/s within their targets" in text
    assert "TPOT, ms 100.00 100.00 100.00 100.00" in text
    assert "Broken promises: 1 error, 1 queued" in text
    # Each answer has 11 tokens for a p50 of 10 and a p90 of 20.
    assert "off by 1 in the median, on a median answer of 11 tokens; 100 % of 3 answers" in text


def test_predicted_totals_and_cut_answers_stand_in_the_summary() -> None:
    cut = replace(ROW, finish_reason=FinishReason.LENGTH, output_tokens=1_000)
    text = " ".join(rendered([ROW, ROW, cut]).split())
    assert "66.6 % of 3 answers (1 of them cut at their cap) within their p90" in text
    assert "1,022 tokens were made where 30 (p50) to 60 (p90) were predicted." in text
    assert "of them cut" not in rendered([ROW])


def test_requests_with_several_answers_are_said_not_to_be_judged() -> None:
    several = replace(ROW, answers=4)
    text = " ".join(rendered([several, several, ROW]).split())
    assert "100 % of 1 answers within their p90" in text
    assert "2 requests with several answers each are not judged. 33 tokens were made" in text
    alone = " ".join(rendered([several, replace(several, slo_class="other")]).split())
    assert "Predictions: 2 requests with several answers each are not judged." in alone
    assert "within their p90" not in alone
    assert "not judged" not in rendered([ROW])


def test_predictions_are_told_by_class_where_there_are_several() -> None:
    cut = replace(ROW, slo_class="nightly", finish_reason=FinishReason.LENGTH, output_tokens=1_000)
    lines = rendered([ROW, cut, cut]).splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("predictions"))
    by_class = [" ".join(line.split()) for line in lines[heading + 2 : heading + 4]]
    assert by_class == ["interactive 1 0 11 10 20 1 100 %", "nightly 2 2 2,000 20 40 990 0 %"]
    assert "within p90" not in rendered([ROW, ROW])


def test_each_class_is_a_line_with_its_deadline_and_share() -> None:
    lines = rendered([ROW, LATE, replace(UNPROMISED, slo_class="free")]).splitlines()
    gold = next(line for line in lines if line.startswith("interactive"))
    free = next(line for line in lines if line.startswith("free"))
    # E2E of 2 and 12 s: median 7, p99 2 + 0.99 * 10 = 11.9.
    assert " ".join(gold.split()) == "interactive 10 s 1/2 50 % 1 0 7 s 11.9 s"
    assert " ".join(free.split()) == "free - - - 0 0 2 s 2 s"


def test_a_class_with_several_deadlines_shows_the_tightest() -> None:
    assert "from 4 s" in rendered([ROW, replace(ROW, deadline_s=4.0)])


def test_a_deadline_that_passed_before_the_request_arrived_is_negative() -> None:
    lines = rendered([replace(LATE, deadline_s=-150.0)]).splitlines()
    assert any(line.split()[:5] == ["interactive", "-2", "min", "30", "s"] for line in lines)


def test_misses_are_named_with_their_cause_in_words() -> None:
    lines = rendered([LATE, FAILED]).splitlines()
    late = next(line for line in lines if line.startswith("late "))
    failed = next(line for line in lines if line.startswith("failed"))
    assert late.split("  ")[-1].strip() == CAUSES[Blame.QUEUED]
    assert "2 s" in late
    assert failed.rstrip().endswith("failed: timeout")


def test_every_cause_has_its_words() -> None:
    assert set(CAUSES) == set(Blame)


def test_simulated_times_and_the_bundled_model_are_said_clearly() -> None:
    assert "simulated" not in rendered([ROW])
    assert "bundled" not in rendered([ROW])
    info = dataclasses.replace(INFO, engine="simulated", bundled_model=True)
    text = rendered([ROW], info)
    assert "Times are simulated: no model was run." in text
    assert "The model is the tiny bundled one" in text


@pytest.mark.parametrize("rows", [[], [FAILED], [UNPROMISED]])
def test_a_run_with_little_to_say_is_still_a_summary(rows: list[LatencyRow]) -> None:
    text = rendered(rows)
    assert "nan" not in text.lower()
    assert "None" not in text


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_outside_neither_break_lines_nor_inject(name: str, width: int) -> None:
    rows = [
        replace(LATE, custom_id=name, slo_class=name),
        replace(FAILED, custom_id=name, error=name),
    ]
    info = dataclasses.replace(INFO, model=name, engine=name, scheduler=name)
    text = rendered(rows, info, width)
    assert all(char == "\n" or char.isprintable() for char in text)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert len(text.splitlines()) < 100


def test_markup_and_emoji_codes_are_shown_as_they_are() -> None:
    text = rendered([replace(LATE, custom_id="[red]:boom:[/red]")])
    assert "[red]:boom:[/red]" in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_figures_are_never_cut_for_a_long_name(width: int) -> None:
    long = "n" * 300
    text = rendered(
        [replace(LATE, custom_id=long, slo_class=long, deadline_s=7199.0, e2e_s=9000.0)],
        width=width,
    )
    for figure in ("30 min 01 s", "119 min 59 s", "2 h 30 min", "0/1", "0 %"):
        assert figure in text


@given(st.text(max_size=40))
def test_visible_text_is_printable_and_leaves_printable_text_alone(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_colour_is_left_out_where_the_environment_says_no_color() -> None:
    def codes(environment: dict[str, str]) -> str:
        out = StringIO()
        console = Console(file=out, width=80, force_terminal=True, _environ=environment)
        render(summarise([ROW, LATE], 1.0), INFO, console)
        return out.getvalue()

    red, bold_red = "\x1b[31m", "\x1b[1;31m"
    assert bold_red in codes({"TERM": "xterm"})
    plain = codes({"TERM": "xterm", "NO_COLOR": "1"})
    assert red not in plain
    assert bold_red not in plain


def test_what_a_stopped_run_has_not_come_to_is_not_called_failed() -> None:
    waiting = replace(FAILED, error="interrupted", blame=Blame.INTERRUPTED)
    text = rendered([ROW, FAILED, waiting, waiting])
    assert "1 answered, 1 failed (1 " in text
    assert "), 2 not run yet" in text
