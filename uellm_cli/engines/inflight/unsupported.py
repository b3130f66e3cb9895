"""Why a model is not served in flight."""

from __future__ import annotations


class Unsupported(Exception):  # noqa: N818  # no error: the static engine takes over
    """A model that only the static engine can run; the message ends "…, since {message}"."""
