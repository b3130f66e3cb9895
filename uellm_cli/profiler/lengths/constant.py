"""The same distribution for every request: the baseline that any predictor has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm_cli.errors import UsageError
from uellm_cli.profiler.lengths.bounds import Quantiles, repeated
from uellm_cli.types import QUANTILE_LEVELS, Request

# Output tokens at QUANTILE_LEVELS of 19,366 conversations with a production service: the Azure LLM
# inference trace 2023, "conversation" (CC BY 4.0). See docs/LOG.md.
CONVERSATION_QUANTILES = (41.0, 54.0, 85.0, 129.0, 395.0, 424.0, 451.0, 601.0)


@dataclass(frozen=True)
class Constant:
    """`tokens` are the quantiles, one for each of `types.QUANTILE_LEVELS`, ascending."""

    tokens: tuple[float, ...] = CONVERSATION_QUANTILES

    source = "constant"

    def __post_init__(self) -> None:
        if len(self.tokens) != len(QUANTILE_LEVELS):
            raise UsageError(f"constant takes {len(QUANTILE_LEVELS)} quantiles")
        if list(self.tokens) != sorted(self.tokens):
            raise UsageError("constant: quantiles must ascend")

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        return repeated(self.tokens, len(requests))
