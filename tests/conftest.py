from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Tests load folders only; a Hub id must fail at once, not after retries.
os.environ["HF_HUB_OFFLINE"] = "1"
# As `uellm run` does it, before anything here imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# The bundled model is too small to gain by a second thread, and where another process wants the
# core, two are many times slower than one (docs/LOG.md).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What one test's run measures is no other test's plan.
os.environ["UELLM_STEP_TIMES"] = "off"

import pytest
from hypothesis import settings

settings.register_profile("uellm", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("uellm")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_llm() -> str:
    """The bundled model's folder."""
    return str(REPOSITORY / "sample_data" / "tiny-llm")


@pytest.fixture
def uellm() -> Callable[..., int]:
    """The command line in this process: arguments in, exit code out."""

    from uellm_cli.cli import main

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        code = exit_.value.code
        return code if isinstance(code, int) else 0 if code is None else 1

    return run
