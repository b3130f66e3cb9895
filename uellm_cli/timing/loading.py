"""How long it takes until an engine can begin, before that has been measured."""

from __future__ import annotations

from uellm_cli.types import ModelSpec

# Starting Python, torch and transformers on an ordinary machine; and reading weights from an
# ordinary solid-state disk. Both assumed: a plan says so.
STARTUP_S = 6.0
READ_BYTES_PER_S = 1.0e9


def loading_s(model: ModelSpec) -> float:
    """Assumed seconds from the command's start until the first batch can run."""
    return STARTUP_S + model.weight_bytes / READ_BYTES_PER_S
