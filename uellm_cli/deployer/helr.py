"""HELR: lowest latency among the placements with about the fewest devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.deployer.place import place
from uellm_cli.deployer.search import Candidate, rank_s
from uellm_cli.types import ModelSpec, Placement, Topology, Workload


@dataclass(frozen=True, slots=True)
class Helr(MemoryRules):
    """UELLM's placement (arXiv 2409.14961), in the spirit of what is public of it.

    With n the fewest devices that hold model and workload, the fastest placement on at most
    floor((1 + tolerance)·n) devices; of equally fast ones that with fewer devices, then
    with more free memory. So a tolerance
    of 0.1 adds a device only from n = 10 on, and 1.0 allows twice as many as needed.
    """

    tolerance: float = 0.1

    def __post_init__(self) -> None:
        # A slotted dataclass is a new class, which `super()` without arguments does not know.
        MemoryRules.__post_init__(self)
        if self.tolerance < 0:
            raise ValueError(f"tolerance cannot be negative ({self.tolerance})")

    def place(self, model: ModelSpec, topology: Topology, workload: Workload) -> Placement:
        return place("helr", model, topology, workload, self, self._choose)

    def _choose(self, candidates: Sequence[Candidate]) -> Candidate:
        fewest = min(len(candidate.devices) for candidate in candidates)
        # Rounded first: 1.1 · 10 is a hair above 11 in floating point, 1.1 · 30 a hair below 33.
        allowed = int(round((1 + self.tolerance) * fewest, 9))
        return min(
            (c for c in candidates if len(c.devices) <= allowed),
            key=lambda c: (rank_s(c), len(c.devices), -c.free_bytes),
        )
