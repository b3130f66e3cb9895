"""A run while it goes on: a bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output, duration
from uellm_cli.cli.plan_view import facts, lengths_note, verdict_sentence

if TYPE_CHECKING:
    from uellm_cli.executor.index import Index
    from uellm_cli.executor.progress import Progress
    from uellm_cli.pipeline import Profiled
    from uellm_cli.types import Plan, RunInfo

# Where there is no terminal, seconds between lines; a long run says less and less often.
FIRST_LINES_S, LATER_LINES_S = 5.0, 60.0
# A terminal is drawn anew this often at most, and what is at risk is counted again.
DRAW_EVERY_S = 0.2


class RunView:
    """Draws what `pipeline.run` tells; use as a context manager."""

    def __init__(self, show: Output) -> None:
        self._show = show
        self._began_s = self._last_s = time.monotonic()
        self._look: Callable[[], Progress] | None = None
        self._drawn: int | None = None
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=show.console,
            transient=True,
            disable=show.quiet or not show.console.is_terminal,
        )
        self._task = self._bar.add_task("reading", total=None, rate="")

    def on_journal(self, index: Index) -> None:
        kept = f"results kept from before: {len(index.entries):,}"
        if index.torn_bytes:
            kept += f"; the last record was cut off while it was written ({index.torn_bytes} bytes)"
        if index.damaged:
            kept += f"; damaged records passed over, and asked for again: {index.damaged:,}"
        self._show.say(kept)

    def on_read(self, info: RunInfo, profiled: Profiled) -> None:
        if info.bundled_model:
            self._show.say(BUNDLED_MODEL_NOTE)
        self._show.say(*profiled.notes, *lengths_note(profiled.trust))
        self._show.say(
            f"{len(profiled.requests):,} requests read, {len(profiled.invalid):,} invalid lines"
        )
        if profiled.profile.truncated:
            self._show.say(f"{profiled.profile.truncated:,} prompts are cut to fit the context")
        self._bar.update(self._task, description="planning")

    def on_plan(self, plan: Plan) -> None:
        self._show.say(f"Predicted: {verdict_sentence(plan)}", facts(plan))
        self._bar.update(self._task, description="loading the model")

    def on_revised(self, plan: Plan) -> None:
        left = sum(len(batch.custom_ids) for batch in plan.schedule.batches)
        self._show.say(
            f"Learnt from the answers so far; the other {left:,} are planned anew: "
            f"{verdict_sentence(plan)}"
        )

    def on_note(self, note: str) -> None:
        self._show.say(f"note: {note}")

    def on_progress(self, look: Callable[[], Progress]) -> None:
        self._look = look
        now_s = time.monotonic()
        every_s = DRAW_EVERY_S
        if not self._show.console.is_terminal:
            every_s = min(max(FIRST_LINES_S, (now_s - self._began_s) / 20), LATER_LINES_S)
        if now_s - self._last_s >= every_s:
            self._last_s = now_s
            self._draw(look())

    def _draw(self, progress: Progress) -> None:
        self._drawn = progress.done
        outlook = _outlook(progress)
        self._bar.update(
            self._task,
            description="answering",
            total=progress.total,
            completed=progress.done,
            rate=outlook,
        )
        if not self._show.console.is_terminal:
            self._show.line(
                f"{progress.done:,} of {progress.total:,} done, {progress.failed:,} failed, "
                f"{outlook}; {duration(progress.elapsed_s)} since the start"
            )

    def on_stop(self) -> None:
        # The view ends here, so that a second signal leaves the terminal as it was.
        self._bar.stop()
        self._show.say("Stopping after this step; once more to stop at once.")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and self._look is not None and self._look().done != self._drawn:
            self._draw(self._look())
        self._bar.stop()


def _outlook(progress: Progress) -> str:
    """Rate, time left and what is in danger, as far as they are known."""
    parts = []
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.left_s is not None:
        parts.append(f"{duration(progress.left_s)} left")
    if progress.at_risk is not None:
        parts.append(f"{progress.at_risk:,} at risk")
    return ", ".join(parts) or "no tokens yet"
