"""Step times from steps as they were: non-negative least squares, near what was thought before.

Errors are counted relative to each step's own time, so that short steps, of which there are many,
count like long ones. What the steps do not tell apart (rows and cached tokens grow together) stays
in the proportions of the times that were assumed: they are rows of the system too, of little
weight. Steps in which the machine was busy with something else are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from uellm_cli.columns import Bools, Floats
from uellm_cli.types import Source, StepSample, StepTimes

# Fewer steps than this tell nothing.
LEAST_SAMPLES = 16
# How much the assumed proportions weigh, in steps: enough for what no step tells, and no more.
PRIOR_STEPS = 0.01
# A step that takes so many times what the fit says was disturbed. Twice fitted: disturbed steps are
# seen best once they are out.
DISTURBED = 3.0
FITS = 3


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted times; `error` is the median of |fitted - seen| over what was seen."""

    times: StepTimes
    samples: int
    error: float


def fitted(samples: Sequence[StepSample], assumed: StepTimes, source: Source) -> Fit | None:
    """The step times that say most nearly what the steps took; None for too few of them."""
    usable = [sample for sample in samples if sample.seconds > 0]
    if len(usable) < LEAST_SAMPLES:
        return None
    work = np.array(
        [(1.0, s.prefill_tokens, s.sequences, s.cached_tokens) for s in usable], dtype=np.float64
    )
    seconds = np.array([sample.seconds for sample in usable])
    prior = np.array(
        [
            assumed.fixed_s,
            assumed.per_prefill_token_s,
            assumed.per_sequence_s,
            assumed.per_cached_token_s,
        ]
    )
    prior = np.maximum(prior, 1e-15)
    prior *= float(np.median(seconds / (work @ prior)))
    kept: Bools = np.ones(len(seconds), dtype=np.bool_)
    found = prior
    for _ in range(FITS):
        found = _least_squares(work[kept], seconds[kept], prior)
        said = np.maximum(work @ found, 1e-15)
        kept = seconds / said < DISTURBED
    off = np.abs(work[kept] @ found - seconds[kept]) / seconds[kept]
    fixed, prefill, sequence, cached = found.tolist()
    times = StepTimes(fixed, prefill, sequence, cached, source)
    return Fit(times, int(kept.sum()), float(np.median(off)))


def _least_squares(work: Floats, seconds: Floats, prior: Floats) -> Floats:
    """Relative errors, and the prior's own, in units of the prior."""
    rows = work * prior / seconds[:, None]
    weight = np.sqrt(PRIOR_STEPS)
    system = np.vstack([rows, weight * np.eye(len(prior))])
    wanted = np.append(np.ones(len(seconds)), weight * np.ones(len(prior)))
    in_priors, _ = nnls(system, wanted)
    return np.asarray(in_priors * prior)
