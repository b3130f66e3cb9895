"""Orders and batches: one file and one line each."""

from uellm_cli.registry import Registry
from uellm_cli.types import Scheduler

SCHEDULERS: Registry[Scheduler] = Registry(
    "scheduler",
    {
        "fifo": "uellm_cli.scheduler.fifo:Fifo",
        "odbs": "uellm_cli.scheduler.odbs:Odbs",
        "slo-dbs": "uellm_cli.scheduler.slo_dbs:SloDbs",
        "slo-odbs": "uellm_cli.scheduler.slo_odbs:SloOdbs",
    },
)
DEFAULT_SCHEDULER = "slo-odbs"
