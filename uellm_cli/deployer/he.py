"""HE: fewest devices, highest use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.place import place
from uellm_cli.deployer.search import Candidate, rank_s
from uellm_cli.types import ModelSpec, Placement, Topology, Workload


@dataclass(frozen=True, slots=True)
class He(MemoryRules):
    """The paper's efficiency-first variant.

    Of the placements on the fewest devices, those whose devices have the least free memory in
    all, which the model then uses the most of; of these the fastest.
    """

    def place(self, model: ModelSpec, topology: Topology, workload: Workload) -> Placement:
        return place("he", model, topology, workload, self, _fullest)


def _fullest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: (len(c.devices), c.free_bytes, rank_s(c)))
