"""LR: lowest latency, whatever it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.place import place
from uellm_cli.deployer.search import Candidate, rank_s
from uellm_cli.types import ModelSpec, Placement, Topology, Workload


@dataclass(frozen=True, slots=True)
class Lr(MemoryRules):
    """The paper's latency-first variant: the fastest step of all placements.

    Of equally fast ones that on fewer devices, then that with more free memory.
    """

    def place(self, model: ModelSpec, topology: Topology, workload: Workload) -> Placement:
        return place("lr", model, topology, workload, self, _fastest)


def _fastest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: (rank_s(c), len(c.devices), -c.free_bytes))
