"""LightGBM by itself.

Where scikit-learn, pandas or dask are installed it imports them, for interfaces that nothing here
uses: a second or more of every `uellm plan`. They are hidden from it, and from nobody else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_UNUSED = ("dask", "matplotlib", "pandas", "sklearn")


def load_lightgbm() -> ModuleType:
    if "lightgbm" in sys.modules:
        return sys.modules["lightgbm"]
    with _hidden(name for name in _UNUSED if name not in sys.modules):
        import lightgbm
    module: ModuleType = lightgbm
    return module


@contextmanager
def _hidden(names: Iterator[str]) -> Iterator[None]:
    """These cannot be imported for a while."""
    hidden = list(names)
    # What the import system takes for "there is no such module".
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
