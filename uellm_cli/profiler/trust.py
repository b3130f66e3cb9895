"""What predicted lengths stand on, and so how far they can be relied on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uellm_cli.errors import PredictorError
from uellm_cli.profiler.learning.saved import Description, is_saved, read_description

_CONVERSATIONS = "19,366 conversations with a production service (Azure LLM trace 2023)"


@dataclass(frozen=True, slots=True)
class Trust:
    """`source` is the predictor's, `learnt_from` what it knows, in words; None is not known.

    It has learnt from `rows` answers, `censored` of which were cut, and is calibrated on them;
    `model` is whose they were. `is_adapted` says that this is the model that is asked now, or
    that its lengths were told: only then is a share of answers within a quantile promised.
    """

    source: str
    learnt_from: str | None
    rows: int | None = None
    censored: int | None = None
    model: str | None = None
    is_adapted: bool = False


def trust(
    name: str,
    options: Mapping[str, object],
    source: str,
    model: str,
    is_adapted: bool = False,
) -> Trust:
    """How far to trust the predictor of this name, or in the folder of this name.

    `model` is the folder or Hub id that requests are for; `is_adapted` says that the predictor is
    one that has been adapted to it since.
    """
    description = _description(name, options)
    if description is None:
        return Trust(source, _known(name, options), is_adapted=is_adapted or name == "oracle")
    return Trust(
        source=source,
        learnt_from=", ".join(description.data) or None,
        rows=description.rows,
        censored=description.censored,
        model=description.model,
        is_adapted=is_adapted or _is_same(description.model, model),
    )


def _is_same(learnt_from: str | None, asked: str) -> bool:
    """Whether both are one model: the same folder, however it is written, or the same Hub id."""
    if learnt_from is None:
        return False
    if Path(learnt_from).exists() and Path(asked).exists():
        return Path(learnt_from).samefile(asked)
    return learnt_from == asked


def _description(name: str, options: Mapping[str, object]) -> Description | None:
    folder = Path(name) if is_saved(name) else options.get("folder")
    if folder is None and name == "ngram":
        from uellm_cli.profiler.lengths.ngram import SHIPPED

        folder = SHIPPED
    if folder is None:
        return None
    try:
        return read_description(Path(str(folder)))
    except PredictorError:
        return None  # it predicts all the same; what it stands on is not written down


def _known(name: str, options: Mapping[str, object]) -> str | None:
    """What predictors stand on that are in no folder, as long as no option changes that."""
    if name == "oracle":
        return "the lengths that stand in the requests themselves"
    if name in ("constant", "prompt-length"):
        return "figures that were given" if options else _CONVERSATIONS
    return None
