"""Lengths that are known beforehand, from the requests' own metadata: for experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uellm_cli.errors import PredictorError
from uellm_cli.profiler.lengths.bounds import Quantiles
from uellm_cli.types import QUANTILE_LEVELS, Request

_PREFIX = "metadata."


@dataclass(frozen=True)
class Oracle:
    """`field` is the key of `metadata` that holds output tokens; `metadata.KEY` names it too."""

    field: str = "output_tokens"

    source = "oracle"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        """All quantiles are the length itself; PredictorError where a request does not tell it."""
        tokens = np.array([self._tokens(request) for request in requests], dtype=np.float64)
        return np.repeat(tokens[:, None], len(QUANTILE_LEVELS), axis=1)

    def _tokens(self, request: Request) -> float:
        value = metadata_value(request, self.field)
        try:
            # The values of OpenAI's metadata are text.
            tokens = float(value) if isinstance(value, str | int | float) else math.nan
        except ValueError:
            tokens = math.nan
        if isinstance(value, bool) or not 0 <= tokens < math.inf:
            key = self.field.removeprefix(_PREFIX)
            raise PredictorError(
                f"oracle needs the output tokens of every request in metadata.{key}: "
                f"{request.custom_id!r} ({request.source}) has none there"
            )
        return tokens


def metadata_value(request: Request, name: str) -> str | int | float | bool | None:
    """What a request's metadata hold under a key, which may be written `metadata.KEY`."""
    if name in request.metadata:
        return request.metadata[name]
    return request.metadata.get(name.removeprefix(_PREFIX))
