"""Of the cuts that are equally fast on the same devices, the one that leaves most room for KV.

On alike devices every cut takes the same time, and the search takes any. What a schedule may fill
is decided by the stage with the least room for its share of the cache, so that stage is relieved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from uellm_cli.deployer.cost import FloatMatrix, stage_headroom, stage_seconds, stage_sizes
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.search import Candidate
from uellm_cli.types import ModelSpec, Workload

# Cuts within this share of the fastest count as equally fast; sums differ by about 1e-15.
EQUALLY_FAST = 1e-6


def balance(
    candidate: Candidate, model: ModelSpec, workload: Workload, rules: MemoryRules
) -> Candidate:
    """The candidate with its cuts moved to where the tightest stage has the most headroom.

    Bisection over the headroom asked of every stage; the seconds stay as they are.
    """
    if len(candidate.devices) == 1:
        return candidate
    sizes = stage_sizes(model, workload, rules)
    seconds = [stage_seconds(sizes, device, rules) for device in candidate.devices]
    headroom = [stage_headroom(sizes, device, rules) for device in candidate.devices]
    allowed_s = _fastest_cuts(seconds)[1] * (1 + EQUALLY_FAST)

    levels = np.unique(
        np.concatenate([room[np.isfinite(s)] for s, room in zip(seconds, headroom, strict=True)])
    )
    best, low, high = candidate.layers, 0, len(levels)
    while low < high:
        middle = (low + high) // 2
        roomy = [
            np.where(room >= levels[middle], s, np.inf)
            for s, room in zip(seconds, headroom, strict=True)
        ]
        cuts, total_s = _fastest_cuts(roomy)
        if total_s <= allowed_s:
            best, low = cuts, middle + 1
        else:
            high = middle
    return replace(candidate, layers=best)


def _fastest_cuts(seconds: Sequence[FloatMatrix]) -> tuple[tuple[range, ...], float]:
    """Layers of each stage, in order, and their seconds; infinite when there is no such cut."""
    reached = np.full(len(seconds[0]), np.inf)
    reached[0] = 0.0
    came_from = []
    for stage in seconds:
        totals = reached[:, None] + stage
        came_from.append(totals.argmin(axis=0))
        reached = totals.min(axis=0)
    end = len(reached) - 1
    cuts = []
    for previous in reversed(came_from):
        cuts.append(range(int(previous[end]), end))
        end = int(previous[end])
    return tuple(reversed(cuts)), float(reached[-1])
