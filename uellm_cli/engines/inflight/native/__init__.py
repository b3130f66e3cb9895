"""Attention over a paged cache, and what stands around it, compiled for this machine's CPU.

Optional: everything here has a plain torch counterpart, which the engine uses where `load` gives
None.
"""

from uellm_cli.engines.inflight.native.library import (
    DTYPES,
    AttendPlan,
    Kernels,
    load,
    machine_levels,
    why_not,
)

__all__ = ["DTYPES", "AttendPlan", "Kernels", "load", "machine_levels", "why_not"]
