"""A run while it goes on: a bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output, duration
from uellm_cli.cli.plan import facts, verdict_sentence

if TYPE_CHECKING:
    from uellm_cli.executor.execute import Progress
    from uellm_cli.types import Plan, RunInfo

# Seconds between lines where there is no terminal.
LINE_EVERY_S = 5.0


class RunView:
    """Draws what `pipeline.run` tells; use as a context manager."""

    def __init__(self, show: Output) -> None:
        self._show = show
        self._last_line_s = 0.0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=show.console,
            transient=True,
            disable=show.quiet or not show.console.is_terminal,
        )
        self._task = self._bar.add_task("reading", total=None, rate="")

    def on_read(self, info: RunInfo, valid: int, invalid: int) -> None:
        if info.bundled_model:
            self._show.say(BUNDLED_MODEL_NOTE)
        self._show.say(f"{valid:,} requests read, {invalid:,} invalid lines")
        self._bar.update(self._task, description="planning")

    def on_plan(self, plan: Plan) -> None:
        self._show.say(f"Predicted: {verdict_sentence(plan)}", facts(plan))
        total = sum(len(batch.custom_ids) for batch in plan.schedule.batches)
        self._bar.update(self._task, description="loading the model", total=total)

    def on_progress(self, progress: Progress) -> None:
        done = progress.answered + progress.failed
        rate = f"{progress.output_tokens / max(progress.elapsed_s, 1e-9):,.0f} tokens/s"
        self._bar.update(
            self._task, description="answering", total=progress.total, completed=done, rate=rate
        )
        due = progress.elapsed_s - self._last_line_s >= LINE_EVERY_S or done == progress.total
        if not self._show.console.is_terminal and due:
            self._last_line_s = progress.elapsed_s
            self._show.say(
                f"{done:,} of {progress.total:,} done, {progress.failed:,} failed, {rate}, "
                f"{duration(progress.elapsed_s)}"
            )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
