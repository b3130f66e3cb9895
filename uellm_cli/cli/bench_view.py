"""`uellm bench schedulers` for people: late shares of every scheduler, and who is best where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from uellm_cli.bench.scheduler_cases import Prediction
from uellm_cli.bench.schedulers import Contest, SchedulerReport, Standing
from uellm_cli.types import Batching


def standings_table(report: SchedulerReport, batching: Batching) -> Table:
    """A line a scheduler: means over all sets, tightnesses, orders and seeds."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.title = f"{batching}: late % by prediction, and what the run is like with the truth"
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("scheduler", no_wrap=True)
    for prediction in Prediction:
        table.add_column(prediction.value, justify="right", no_wrap=True)
    for name in ("late by", "x bound", "rows", "preempted"):
        table.add_column(name, justify="right", no_wrap=True)
    own = [each for each in report.standings if each.batching is batching]
    names = dict.fromkeys(each.scheduler for each in own)
    by_late = sorted(names, key=lambda name: _late(own, name, Prediction.PREDICTED))
    for name in by_late:
        true = _of(own, name, Prediction.ORACLE)
        table.add_row(
            Text(name),
            *(f"{100 * _late(own, name, prediction):.1f}" for prediction in Prediction),
            f"{np.mean([each.tardiness_s.mean for each in true]):.1f} s",
            f"{np.mean([each.over_bound.mean for each in true]):.2f}",
            f"{np.mean([each.effective_rows.mean for each in true]):.1f}",
            f"{np.mean([each.preemptions.mean for each in true]):.1f}",
        )
    bound = np.mean([each.late_bound.mean for each in own]) if own else 0.0
    table.add_row(Text("(bound)", "dim"), "", "", f"{100 * bound:.1f}", "", "", "", "")
    return table


def contest_lines(report: SchedulerReport, batching: Batching) -> list[str]:
    """The default scheduler against the best other, set by set, with predicted lengths."""
    own = [
        each
        for each in report.contests
        if each.batching is batching and each.prediction is Prediction.PREDICTED
    ]
    return [
        "the default against the best other in each kind of case, predicted lengths:",
        *(
            f"  {work}: {_contest_words([each for each in own if each.work == work])}"
            for work in dict.fromkeys(each.work for each in own)
        ),
    ]


def _contest_words(contests: Sequence[Contest]) -> str:
    ours, other = (float(np.mean(values)) for values in _late_shares(contests))
    ratio = f"{ours / other:.2f} of it" if other > 0 else "nobody is late with either"
    better = sum(each.difference.mean + each.difference.half_width < 0 for each in contests)
    worse = sum(each.difference.mean - each.difference.half_width > 0 for each in contests)
    most = max(100 * (each.ours - each.other) for each in contests)
    return (
        f"{100 * ours:.1f} % late against {100 * other:.1f} %, {ratio}; of {len(contests)} kinds "
        f"clearly better in {better}, worse in {worse}, by at most {max(most, 0.0):.1f} points"
    )


def _late_shares(contests: Sequence[Contest]) -> tuple[list[float], list[float]]:
    return [each.ours for each in contests], [each.other for each in contests]


def _of(standings: Sequence[Standing], name: str, prediction: Prediction) -> list[Standing]:
    return [e for e in standings if e.scheduler == name and e.prediction is prediction]


def _late(standings: Sequence[Standing], name: str, prediction: Prediction) -> float:
    return float(np.mean([each.late.mean for each in _of(standings, name, prediction)]))
