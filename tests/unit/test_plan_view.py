from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from uellm_cli.cli import plan_view as view
from uellm_cli.planning import Compared
from uellm_cli.types import (
    Cause,
    ClassVerdict,
    LateRequest,
    Remedy,
    RemedyKind,
    Source,
    Spread,
    Verdict,
)

NOBODY = Spread(0.0, 0.0, 0.0)
SOME = Spread(37.2, 20.0, 51.0)
LATE = LateRequest("r7", "gold", Cause.QUEUED, 0.75, 20.0, 12.0, 34.0, 9.0)
VERDICT = Verdict(
    makespan_s=Spread(100.0, 80.0, 120.0),
    late=SOME,
    classes=(
        ClassVerdict("gold", 40, 40, SOME, 10.0, 40.0),
        ClassVerdict("[red]night[/red]\n", 60, 0, NOBODY, 40.0, 100.0),
    ),
    step_source=Source.CALIBRATED,
    scenarios=16,
)


def shown(renderable: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_counts_and_seconds_are_told_with_their_spread_where_they_have_one() -> None:
    assert view.count_range(SOME) == "37 (20-51)"
    assert view.count_range(Spread(3.0, 3.0, 3.0)) == "3"
    assert view.seconds_range(Spread(100.0, 80.0, 120.0)) == "1 min 40 s (80 s to 2 min 0 s)"
    assert view.seconds_range(Spread(50.0, 49.8, 50.1)) == "50 s"


@pytest.mark.parametrize(
    ("late", "nobody"),
    [(NOBODY, True), (Spread(0.3, 0.0, 0.9), True), (Spread(0.3, 0.0, 1.0), False), (SOME, False)],
)
def test_nobody_is_late_where_that_rounds_to_none(late: Spread, nobody: bool) -> None:
    assert late.is_nobody is nobody


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "r7 (gold), due after 20 s, would be done after 34 s, in 75% of the draws; it would"),
        ({"cause": Cause.NO_ROOM}, "has no room in memory even alone"),
        ({"cause": Cause.ALONE}, "would take until 9 s with the machine to itself"),
        ({"cause": Cause.BEGIN}, "would have its first token too late"),
        ({"cause": Cause.PACE, "due_s": None}, "r7 (gold) would get its tokens too slowly"),
        ({"custom_id": "a\x1b[31m\n"}, "\\x1b[31m"),
    ],
)
def test_the_first_late_one_has_its_reason(changes: dict[str, Any], words: str) -> None:
    assert words in view.late_sentence(replace(LATE, **changes))


def test_what_would_help_is_one_sentence() -> None:
    found = view.remedies_sentence(
        [
            Remedy(RemedyKind.TIME, 40.0),
            Remedy(RemedyKind.DEVICES, 2),
            Remedy(RemedyKind.CAP, 180),
            Remedy(RemedyKind.CLASS, 3000, "night"),
        ]
    )
    assert found == (
        "Any of these would do: 40 s more for every deadline; 2 copies of the model on devices "
        "like these; answers of at most 180 tokens; the 3,000 requests of class night at another "
        "time."
    )
    assert view.remedies_sentence([]).startswith("No single change")


def test_what_has_no_room_is_said() -> None:
    assert view.no_room_sentence(["a"]).startswith("1 request has no room")
    assert view.no_room_sentence(["a", "b"]).startswith("2 requests have no room")


def test_tables_fit_80_columns_and_show_no_markup_from_outside() -> None:
    for table in (view.classes_table(VERDICT), view.timeline(VERDICT)):
        text = shown(table)
        assert max(map(len, text.splitlines())) <= 80
        assert "[red]night[/red]" in text


def test_the_timeline_begins_when_the_engine_does() -> None:
    text = shown(view.timeline(VERDICT))
    assert "10 s to 1 min 40 s" in text
    gold, night = (line for line in text.splitlines() if "█" in line)
    # A third of the time, and the two thirds after it.
    assert gold.count("█") == pytest.approx(view.TIMELINE_COLUMNS / 3, abs=1)
    assert night.count("█") == pytest.approx(view.TIMELINE_COLUMNS * 2 / 3, abs=1)
    assert night.index("█") >= gold.rindex("█")


def test_advice_names_the_best_and_those_as_good() -> None:
    better = replace(VERDICT, late=NOBODY, makespan_s=Spread(90.0, 90.0, 90.0))
    found = [
        Compared("uellm", better, 0.5),
        Compared("edf", better, 0.001),
        Compared("fifo", VERDICT, 0.001),
    ]
    advice = view.advice(found)
    assert advice.startswith("Take uellm: 0 late, done after 90 s; the last in the table has 37")
    assert advice.endswith("As good: edf.")
    assert view.advice(found[:2]).startswith("Any of them will do")
    text = shown(view.comparison_table(found))
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["uellm", "edf", "fifo"]
