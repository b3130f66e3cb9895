"""In-flight batching: a finished row leaves and the next one enters at once, in the same step.

The model is transformers' own, unmodified. It computes the tokens of all rows in one line, and
attention, which alone has to tell rows apart, is ours: it keeps keys and values in pages, looks
each row's up, and lets rows that begin alike share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uellm_cli.errors import UsageError

if TYPE_CHECKING:
    from uellm_cli.engines import EngineContext
    from uellm_cli.types import Engine

# Beyond these, arrays of a step are no arrays any more.
MOST_PAGE_TOKENS = 2**16
MOST_STEP_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class Inflight:
    """`dtype` is the checkpoint's own when "auto".

    `page_tokens` tokens of KV cache are given at a time. A step computes up to `step_tokens` tokens
    (0: what suits the device), so that long prompts do not hold up the rows that decode.
    `share_prefixes` computes what requests begin with alike once. `kernels` are compiled where a
    compiler is found ("auto"), or torch's own ("torch"). On GPUs, steps that only decode are
    replayed as CUDA `graphs`, and with `lookahead` a step begins before the host knows the tokens
    of the one before.
    """

    in_virtual_time: ClassVar[bool] = False
    dtype: str = "auto"
    page_tokens: int = 32
    step_tokens: int = 0
    share_prefixes: bool = True
    kernels: str = "auto"
    graphs: bool = True
    lookahead: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.page_tokens <= MOST_PAGE_TOKENS:
            raise UsageError(
                f"page_tokens must be from 1 to {MOST_PAGE_TOKENS}, not {self.page_tokens}"
            )
        if not 0 <= self.step_tokens <= MOST_STEP_TOKENS:
            raise UsageError(
                f"step_tokens must be from 0 to {MOST_STEP_TOKENS}, not {self.step_tokens}"
            )
        if self.kernels not in ("auto", "torch"):
            raise UsageError(f"kernels must be auto or torch, not {self.kernels!r}")

    def start(self, context: EngineContext) -> Engine:
        """Serves what it can in flight; a model that it cannot is left to the static engine."""
        from uellm_cli.engines.inflight.start import start

        return start(self, context)
