"""How a run is told to stop: between steps while it runs, at once where nothing can be lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether a run is to end after the step in flight; engines ask it between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def __call__(self) -> bool:
        return self.requested

    def request(self) -> None:
        """Asks the run to stop; KeyboardInterrupt where nothing is in flight that could end."""
        self.requested = True
        if not self._deferred:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that ends by itself soon after a stop is asked for."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
