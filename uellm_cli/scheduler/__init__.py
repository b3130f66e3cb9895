"""Orders and batches: one file and one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uellm_cli.registry import Registry

if TYPE_CHECKING:
    from uellm_cli.columns import Arrangement, RequestColumns
    from uellm_cli.types import Conditions


class Scheduler(Protocol):
    """Orders and batches profiled requests. A pure function of its arguments."""

    def arrange(self, columns: RequestColumns, conditions: Conditions) -> Arrangement:
        """Every request in exactly one batch, or in `oversized`; no batch beyond the budget."""
        ...


SCHEDULERS: Registry[Scheduler] = Registry(
    "scheduler",
    {
        "edf": "uellm_cli.scheduler.edf:Edf",
        "fifo": "uellm_cli.scheduler.fifo:Fifo",
        "lpt": "uellm_cli.scheduler.lpt:Lpt",
        "morphling": "uellm_cli.scheduler.morphling:Morphling",
        "multi-bin": "uellm_cli.scheduler.multi_bin:MultiBin",
        "odbs": "uellm_cli.scheduler.odbs:Odbs",
        "s3": "uellm_cli.scheduler.s3:S3",
        "s3-uellm": "uellm_cli.scheduler.s3_uellm:S3Uellm",
        "sjf": "uellm_cli.scheduler.sjf:Sjf",
        "slo-dbs": "uellm_cli.scheduler.slo_dbs:SloDbs",
        "slo-odbs": "uellm_cli.scheduler.slo_odbs:SloOdbs",
        "sorted-f": "uellm_cli.scheduler.sorted_f:SortedF",
        "uellm": "uellm_cli.scheduler.uellm:Uellm",
    },
)
DEFAULT_SCHEDULER = "uellm"
