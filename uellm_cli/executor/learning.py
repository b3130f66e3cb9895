"""What a run learns of its answers' lengths while it goes on, and what that changes.

When the pilot is answered, the predictor is adapted to it and all that waits is predicted anew.
After that, answers that are longer or shorter than they were predicted to be, as they follow one
another, move the predictions of those that wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from uellm_cli.executor.todo import Todo, Work
from uellm_cli.profiler.learning.conformal import Calibration, calibrate
from uellm_cli.profiler.lengths.bounds import MEDIAN, P90
from uellm_cli.profiler.profile import with_output
from uellm_cli.types import (
    QUANTILE_LEVELS,
    Batch,
    Completion,
    Example,
    FinishReason,
    LengthEstimate,
    ModelSpec,
    ProfiledRequest,
    Schedule,
)

# How many answers are looked at together, and how many new ones make it worth looking again.
WINDOW = 256
EVERY = 64
# An answer is waited for until so many times as many as are in flight have ended after it, which is
# so many times the mean length: one that goes on then is far in the tail.
TURNS = 8
# The pilot's last answers are not waited for: of so many it is known only that they are long.
STILL_OPEN = 0.05
# While the pilot is answered, so much of the rest may be begun as it was planned at first: no seat
# is left empty, and most of the work is still there to be planned better.
FILLER = 0.25
# What is moved has to be off by so much, in log tokens, that it matters, and by so many standard
# errors that it is no chance: it is looked at again and again.
MEDIAN_OFF = 0.15
P90_OFF = 0.2
STANDARD_ERRORS = 3.5
RECALIBRATED = "+ own answers"

# Predicts requests that wait with what was learnt of the pilot; None where that was nothing.
Adapt = Callable[[Sequence[Example], Sequence[str]], "list[ProfiledRequest] | None"]
# Is told by how much predictions were moved.
Moved = Callable[[Calibration], None]
# Whether steps take another time by now than orders were made for.
PaceChanged = Callable[[], bool]
# An order for requests that are left.
Reschedule = Callable[[Sequence[ProfiledRequest]], Schedule]


class Learner(Protocol):
    """Sees answers as they come, and says when the rest is to be done in another way."""

    def given(self, works: Sequence[Work]) -> None:
        """These are handed to the engine now."""
        ...

    def dropped(self, names: Iterable[str]) -> None:
        """These are not run: they fit nowhere, or have expired."""
        ...

    def answered(self, work: Work, completion: Completion) -> None: ...

    def waits(self) -> bool:
        """Whether no more is to be begun before what has been begun is answered."""
        ...

    def revised(self, waiting: Sequence[Batch]) -> Schedule | None:
        """A new schedule of what is in `waiting`; None where it stands."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long an answer was, or at least was where `censored`, and what was predicted of it."""

    work: Work
    tokens: int
    censored: bool

    @property
    def predicted(self) -> tuple[float, ...]:
        return self.work.profiled.output.tokens

    @property
    def example(self) -> Example:
        profiled = self.work.profiled
        return Example(self.work.request, profiled.prompt_tokens, self.tokens, self.censored)


class InOrder:
    """Outcomes in the order in which requests were begun: those that end first are the short ones.

    A request that is still open when many later ones have ended counts as longer than those.
    """

    def __init__(self) -> None:
        self._open: dict[str, Work] = {}
        self._order: deque[str] = deque()
        self._ended: dict[str, Outcome | None] = {}

    def __len__(self) -> int:
        return len(self._order)

    def begin(self, works: Iterable[Work]) -> None:
        for work in works:
            self._open[work.profiled.custom_id] = work
            self._order.append(work.profiled.custom_id)

    def end(self, work: Work, outcome: Outcome | None) -> None:
        """None for what teaches nothing; who is not known to have begun is passed over."""
        name = work.profiled.custom_id
        if self._open.pop(name, None) is not None:
            self._ended[name] = outcome

    def open_names(self) -> Collection[str]:
        return self._open.keys()

    def taken(self, most_behind: int) -> list[Outcome]:
        """Outcomes up to the first open request, and on where more than `most_behind` ended after
        it; they are forgotten.
        """
        taken: list[Outcome] = []
        while self._order and (self._order[0] in self._ended or len(self._ended) > most_behind):
            outcome = self._first()
            if outcome is not None:
                taken.append(outcome)
        return taken

    def _first(self) -> Outcome | None:
        name = self._order.popleft()
        if name in self._ended:
            return self._ended.pop(name)
        later = (outcome.tokens for outcome in self._ended.values() if outcome is not None)
        longest = max(later, default=0)
        work = self._open.pop(name)
        return Outcome(work, longest, censored=True) if longest else None


class OwnAnswers:
    """The learner of a run; `pilot` is whose answers the predictor is adapted to by `adapt`.

    Where nothing is promised, no order is worth changing for the pace of the steps.
    """

    def __init__(
        self,
        todo: Todo,
        pilot: Collection[str],
        model: ModelSpec,
        adapt: Adapt,
        moved: Moved,
        reschedule: Reschedule,
        pace_changed: PaceChanged,
    ) -> None:
        self._todo = todo
        self._model = model
        self._adapt = adapt
        self._moved = moved
        self._reschedule = reschedule
        self._pace_changed = pace_changed
        self._promises = any(r.is_promised for r in todo.profiled.values())
        # Of the pilot, those that are not begun yet.
        self._pilot = set(pilot)
        self._is_adapted = not pilot
        self._open_enough = math.floor(STILL_OPEN * len(pilot))
        self._filler = FILLER * (len(todo) - len(pilot))
        self._pilots = InOrder()
        # Given to the engine since predictions last changed.
        self._begun = InOrder()
        self._seen: deque[Outcome] = deque(maxlen=WINDOW)
        self._fresh = 0

    def given(self, works: Sequence[Work]) -> None:
        self._begun.begin(works)
        if not self._is_adapted:
            pilot = [work for work in works if work.profiled.custom_id in self._pilot]
            self._pilots.begin(pilot)
            self.dropped(work.profiled.custom_id for work in pilot)
            self._filler -= len(works) - len(pilot)

    def dropped(self, names: Iterable[str]) -> None:
        self._pilot.difference_update(names)

    def waits(self) -> bool:
        return not self._is_adapted and not self._pilot and self._filler <= 0

    def answered(self, work: Work, completion: Completion) -> None:
        outcome = outcome_of(work, completion)
        self._pilots.end(work, outcome)
        self._begun.end(work, outcome)

    def revised(self, waiting: Sequence[Batch]) -> Schedule | None:
        if not self._is_adapted:
            if self._pilot or len(self._pilots.open_names()) > self._open_enough:
                return None
            self._is_adapted = True
            examples = [outcome.example for outcome in self._pilots.taken(most_behind=0)]
            anew = self._adapt(examples, _names(waiting))
            return None if anew is None else self._scheduled(anew, waiting)
        is_other_pace = self._promises and self._pace_changed()
        calibration = self._drift()
        if calibration is None and not is_other_pace:
            return None
        left = [self._todo.profiled[name] for name in _names(waiting)]
        if calibration is not None:
            self._moved(calibration)
            left = [recalibrated(request, calibration, self._model) for request in left]
        return self._scheduled(left, waiting)

    def _scheduled(self, requests: Sequence[ProfiledRequest], waiting: Sequence[Batch]) -> Schedule:
        # What is in flight was predicted as before, and says nothing of the new predictions.
        self._begun = InOrder()
        self._seen.clear()
        self._fresh = 0
        self._todo.profiled.update((request.custom_id, request) for request in requests)
        schedule = self._reschedule(requests)
        first = waiting[0].batch_id
        batches = (replace(batch, batch_id=first + batch.batch_id) for batch in schedule.batches)
        return Schedule(schedule.algorithm, tuple(batches), schedule.oversized)

    def _drift(self) -> Calibration | None:
        """How far predictions are off, where it is time to look and they are off by much."""
        most_behind = max(WINDOW, TURNS * len(self._begun.open_names()))
        taken = self._begun.taken(most_behind)
        self._seen.extend(taken)
        self._fresh += len(taken)
        if self._fresh < EVERY:
            return None
        self._fresh = 0
        return drift_of(self._seen)


def _names(batches: Sequence[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.custom_ids]


def drift_of(outcomes: Collection[Outcome]) -> Calibration | None:
    """How predictions have to be moved to be right of these; None where that may be chance."""
    predicted = np.array([outcome.predicted for outcome in outcomes])
    tokens = np.array([float(outcome.tokens) for outcome in outcomes])
    censored = np.array([outcome.censored for outcome in outcomes])
    calibration = calibrate(predicted, tokens, censored)
    for column, least in ((MEDIAN, MEDIAN_OFF), (P90, P90_OFF)):
        level = QUANTILE_LEVELS[column]
        above = int(np.count_nonzero(tokens > predicted[:, column]))
        # Of what was cut below its quantile nobody knows on which side it would have ended.
        known = int(np.count_nonzero(~censored | (tokens > predicted[:, column])))
        expected, error = known * (1 - level), math.sqrt(max(known * level * (1 - level), 1e-9))
        is_large = abs(calibration.log_shifts[column]) > least
        if is_large and abs(above - expected) > STANDARD_ERRORS * error:
            return calibration
    return None


def outcome_of(work: Work, completion: Completion) -> Outcome | None:
    """What an answer teaches; None where its length was not the model's to choose."""
    if not completion.answers or not work.request.sampling.is_length_free:
        return None
    answer = completion.answers[0]
    is_cut = answer.finish_reason is FinishReason.LENGTH
    return Outcome(work, max(answer.output_tokens, 1), is_cut)


def recalibrated(
    request: ProfiledRequest, calibration: Calibration, model: ModelSpec
) -> ProfiledRequest:
    """The request with its prediction moved; its source says so, once.

    A length that is certain stays, and a quantile that was cut at the cap does not move down: how
    far beyond it was is not known here.
    """
    before = np.array(request.output.tokens)
    if before[0] == before[-1]:
        return request
    moved = calibration.applied(before[None, :])[0]
    moved = np.where(before >= request.max_tokens, request.max_tokens, moved)
    tokens = tuple(np.sort(np.clip(moved, 1.0, request.max_tokens)).tolist())
    source = request.output.source
    if not source.endswith(RECALIBRATED):
        source = f"{source} {RECALIBRATED}"
    return with_output(request, LengthEstimate(tokens, source), model)
