"""Model and machine to a placement: which layers go on which device, and what then fits."""

from __future__ import annotations

from uellm_cli.registry import Registry
from uellm_cli.types import PlacementAlgorithm

PLACEMENTS: Registry[PlacementAlgorithm] = Registry(
    "placement algorithm",
    {
        "helr": "uellm_cli.deployer.helr:Helr",
        "he": "uellm_cli.deployer.he:He",
        "lr": "uellm_cli.deployer.lr:Lr",
    },
)

DEFAULT_PLACEMENT = "helr"
