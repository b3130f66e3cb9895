"""Why a model is not served in flight."""

from __future__ import annotations

from uellm_cli.engines.memory import is_out_of_memory
from uellm_cli.errors import UellmError


class Unsupported(Exception):  # noqa: N818  # no error: the static engine takes over
    """A model that only the static engine can run; the message ends "…, since {message}"."""


def why_failed(error: Exception) -> str:
    """In a line, what a model's code raised that was handed something it may not be made for.

    That may be anything at all. Only what says nothing of the model is raised again.
    """
    if isinstance(error, UellmError | Unsupported) or is_out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {error}".splitlines()[0]
