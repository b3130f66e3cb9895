"""The kinds of predictors that there are, told by their own modules."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import Any, cast

from uellm_cli.profiler.learning import TRAINERS
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS


@dataclass(frozen=True, slots=True)
class Offered:
    """A kind of predictor: what it is, in its module's words, and its options.

    `training_options` are those of its training; None for a kind that is not trained.
    """

    name: str
    what: str
    options: tuple[str, ...]
    training_options: tuple[str, ...] | None


def offered() -> list[Offered]:
    return [
        Offered(
            name,
            _first_paragraph(sys.modules[LENGTH_PREDICTORS.variant(name).__module__].__doc__),
            _options(LENGTH_PREDICTORS.variant(name)),
            _options(TRAINERS.variant(name)) if name in TRAINERS.names() else None,
        )
        for name in LENGTH_PREDICTORS.names()
    ]


def _first_paragraph(docstring: str | None) -> str:
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def _options(variant: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cast("Any", variant)))
