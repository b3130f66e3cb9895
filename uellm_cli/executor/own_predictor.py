"""The predictor of a run: adapted to its model's answers while it goes on, and kept beside them.

`RUN_DIR/predictor` is derived from answers, and so never worth a run: one that cannot be read is
let go of, and predictions are what they were at first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uellm_cli.clock import Clock
from uellm_cli.config import Choice
from uellm_cli.errors import OutputError, PredictorError
from uellm_cli.executor.run_directory import PREDICTOR
from uellm_cli.executor.run_info import installed_versions
from uellm_cli.executor.todo import Todo
from uellm_cli.profiler.learning.adapt import LEAST_EXAMPLES, adapt
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.profiler.learning.saved import Description, is_saved, write_predictor
from uellm_cli.profiler.lengths.adapted import Adaptation, AdaptedModel, Base, read_model
from uellm_cli.profiler.profile import Profiler
from uellm_cli.types import Example, LengthPredictor, ProfiledRequest, RunInfo


def kept_predictor(directory: Path, note: Callable[[str], None]) -> AdaptedModel | None:
    """What an earlier session of the run has learnt; None where that is nothing, or damaged."""
    folder = directory / PREDICTOR
    if not is_saved(str(folder)):
        return None
    try:
        return read_model(folder)
    except PredictorError as error:
        note(f"{error}; lengths are predicted as at the run's start")
        return None


@dataclass
class OwnPredictor:
    """`current` is the predictor as it is now, of the run that is kept in `directory`."""

    directory: Path
    info: RunInfo
    current: AdaptedModel
    profiler: Profiler
    clock: Clock
    todo: Todo
    note: Callable[[str], None]

    def adapt(
        self, examples: Sequence[Example], names: Sequence[str]
    ) -> list[ProfiledRequest] | None:
        """Learns from the pilot's answers, and predicts what waits anew; None for too few."""
        if len(examples) < LEAST_EXAMPLES:
            return None
        base = self.current
        self.current = adapt(base.base, base.predictor, examples, self.info.seed)
        self._keep(len(examples), sum(example.censored for example in examples))
        works = (self.todo[name] for name in names)
        known = ((work.profiled, work.request) for work in works)
        return self.profiler.predicted_anew(known, self.current)

    def moved(self, calibration: Calibration) -> None:
        """Predictions were moved by this; those of the next session will be, too."""
        adaptation = self.current.adaptation
        before = adaptation.calibration
        shifts = zip(before.log_shifts, calibration.log_shifts, strict=True)
        rows = max(before.rows, calibration.rows)
        together = Calibration(tuple(a + b for a, b in shifts), rows)
        self.current = replace(self.current, adaptation=replace(adaptation, calibration=together))
        self._keep(rows, censored=0)

    def _keep(self, rows: int, censored: int) -> None:
        description = Description(
            kind="adapted",
            rows=rows,
            censored=censored,
            seed=self.info.seed,
            data=("a run's own answers",),
            trained=self.clock.wall(),
            versions=installed_versions(),
            model=self.info.model,
        )
        try:
            write_predictor(self.directory / PREDICTOR, self.current, description)
        except OutputError as error:
            self.note(f"what was learnt is not kept for the next session: {error}")


def not_adapted(choice: Choice, predictor: LengthPredictor) -> AdaptedModel:
    """The predictor that a run begins with, as one that may be adapted."""
    return AdaptedModel(Base(choice.name, choice.options), predictor, Adaptation())
