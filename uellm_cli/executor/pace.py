"""What a run's own steps take, against what its plan counts on."""

from __future__ import annotations

from collections import deque

import numpy as np

from uellm_cli.timing.fit import Fit, fitted
from uellm_cli.types import Source, StepSample, StepTimes

# Steps that are kept to fit times to; of more, a fair sample.
KEPT_STEPS = 4096
# How many of the latest steps are looked at together, and how many new ones make it worth looking.
WINDOW = 256
EVERY = 128
# The plan's times are let go of when most of these steps take so much more or less than that.
OFF = 0.2


class Pace:
    """`times` are the step times that plans are to count on now, at first the `assumed` ones."""

    def __init__(self, assumed: StepTimes, seed: int) -> None:
        self.times = assumed
        self._kept: list[StepSample] = []
        self._latest: deque[StepSample] = deque(maxlen=WINDOW)
        self._count = self._looked_at = 0
        self._random = np.random.default_rng(seed % 2**63)

    def seen(self, sample: StepSample) -> None:
        self._count += 1
        self._latest.append(sample)
        if len(self._kept) < KEPT_STEPS:
            self._kept.append(sample)
        elif (place := int(self._random.integers(self._count))) < KEPT_STEPS:
            self._kept[place] = sample

    def has_changed(self) -> bool:
        """Whether `times` are others now, since the latest steps were far from them."""
        if self._count - self._looked_at < EVERY:
            return False
        self._looked_at = self._count
        # The median: a few steps in which something else was done are no other pace.
        said_s = (
            self.times.step_s(s.prefill_tokens, s.sequences, s.cached_tokens) for s in self._latest
        )
        ratios = [
            sample.seconds / max(said, 1e-12)
            for sample, said in zip(self._latest, said_s, strict=True)
        ]
        if 1 / (1 + OFF) < np.median(ratios) < 1 + OFF:
            return False
        # What was before tells of another machine, or of none.
        self._kept, self._count = list(self._latest), len(self._latest)
        self._looked_at = self._count
        fit = self.fit()
        if fit is None:
            return False
        self.times = fit.times
        return True

    def fit(self) -> Fit | None:
        """The step times of what was seen since they last changed; None for too little."""
        return fitted(self._kept, self.times, Source.CALIBRATED)
