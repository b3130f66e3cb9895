from __future__ import annotations

import io

import pytest
from rich.console import Console

from uellm_cli.cli.output import Output
from uellm_cli.cli.progress import RunView
from uellm_cli.executor.index import Entry, Index
from uellm_cli.executor.progress import Progress
from uellm_cli.executor.records import Outcome

HALF = Progress(200, 95, 5, 4000, 61.0, tokens_per_s=80.0, left_s=50.0, at_risk=3)
START = Progress(200, 0, 5, 0, 1.0)


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock of one element, to be set by the test."""
    now_s = [0.0]
    monkeypatch.setattr("uellm_cli.cli.progress.time.monotonic", lambda: now_s[0])
    return now_s


def view_of(width: int = 80, terminal: bool = False) -> tuple[RunView, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, highlight=False)
    return RunView(Output(console=console)), text


def test_without_a_terminal_a_line_comes_every_so_often_and_one_at_the_end(
    passing: list[float],
) -> None:
    view, text = view_of()
    asked: list[float] = []

    def look() -> Progress:
        asked.append(passing[0])
        return HALF

    with view:
        for second in range(1300):
            passing[0] = float(second)
            view.on_progress(look)
    # Every five seconds at first, every minute after twenty.
    assert asked[:3] == [5.0, 10.0, 15.0]
    assert asked[-2] - asked[-3] == 60.0
    # The look at the end has nothing new to show.
    assert len(text.getvalue().splitlines()) == len(asked) - 1
    assert len(asked) < 100


@pytest.mark.usefixtures("passing")
def test_a_line_has_totals_rate_time_left_and_deadlines_at_risk() -> None:
    view, text = view_of(width=200)
    with view:
        view.on_progress(lambda: HALF)
    assert text.getvalue() == (
        "100 of 200 done, 5 failed, 80 tokens/s, 50 s left, 3 at risk; 61 s since the start\n"
    )


@pytest.mark.usefixtures("passing")
def test_before_the_first_answer_nothing_is_made_up() -> None:
    view, text = view_of(width=200)
    with view:
        view.on_progress(lambda: START)
    assert text.getvalue() == "5 of 200 done, 5 failed, no tokens yet; 1 s since the start\n"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_fits_on_a_line_with_its_count_and_outlook(
    width: int, passing: list[float]
) -> None:
    view, text = view_of(width=width, terminal=True)
    with view:
        view.on_progress(lambda: HALF)
        passing[0] = 1.0
        view.on_progress(lambda: HALF)
    shown = text.getvalue()
    assert "100/200" in shown
    assert "80 tokens/s, 50 s left, 3 at risk" in shown
    assert "…" not in shown


def test_what_a_crash_has_cost_is_said() -> None:
    view, text = view_of(width=200)
    entries = {"a": Entry(0, "key", Outcome.ANSWERED, 2)}
    view.on_journal(Index(entries=entries, torn_bytes=7, damaged=2))
    assert text.getvalue() == (
        "results kept from before: 1; the last record was cut off while it was written "
        "(7 bytes); damaged records passed over, and asked for again: 2\n"
    )


def test_the_view_ends_with_the_first_stop_and_says_how_to_stop_at_once() -> None:
    view, text = view_of(terminal=True)
    with view:
        view.on_stop()
        assert "\x1b[?25h" in text.getvalue()  # the cursor is back before anything else happens
    assert "once more to stop at once" in text.getvalue()
