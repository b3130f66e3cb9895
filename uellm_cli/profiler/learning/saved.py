"""Predictors that were learnt, in folders: what they are in `predictor.json`, the rest their own.

`--predictor` takes such a folder in place of a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from uellm_cli.atomic import replacing_folder, write_json
from uellm_cli.errors import OutputError, PredictorError
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.types import QUANTILE_LEVELS, LengthPredictor, Trained

DESCRIPTION = "predictor.json"
FORMAT = 1


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a trained predictor is. `model` is whose answers it learnt from, where that is known.

    `files` are the paths, within its folder, of all that it is kept in.
    """

    kind: str
    rows: int
    censored: int
    seed: int
    data: tuple[str, ...]
    trained: datetime
    versions: Mapping[str, str]
    model: str | None = None
    files: tuple[str, ...] = ()
    levels: tuple[float, ...] = QUANTILE_LEVELS
    format: int = FORMAT


def is_saved(name: str) -> bool:
    """Whether `name` is a folder with a trained predictor, and not a predictor's name.

    What a name stands for must not depend on the folder that one works in; ./name is a folder.
    """
    return name not in LENGTH_PREDICTORS.names() and (Path(name) / DESCRIPTION).is_file()


def build_predictor(name: str, options: Mapping[str, object]) -> LengthPredictor:
    """The predictor of this name, or the one in the folder of this name.

    UsageError for a name or an option that there is not; PredictorError for a folder that is no
    predictor's. What the folder holds beside its description is read when it is needed.
    """
    if not is_saved(name):
        return LENGTH_PREDICTORS.build(name, options)
    return LENGTH_PREDICTORS.build(
        read_description(Path(name)).kind, {**options, "folder": str(Path(name))}
    )


def read_description(folder: Path) -> Description:
    """Raises PredictorError where it is not there or not as it was written."""
    path = folder / DESCRIPTION
    try:
        description = msgspec.json.decode(path.read_bytes(), type=Description)
    except FileNotFoundError:
        raise PredictorError(f"{folder} holds no predictor: it has no {DESCRIPTION}") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise PredictorError(f"{path} cannot be used: {error}") from None
    if description.format != FORMAT or description.levels != QUANTILE_LEVELS:
        raise PredictorError(f"{path} is of another version of uellm; train it again")
    return description


def write_predictor(folder: Path, trained: Trained, description: Description) -> Description:
    """Puts a predictor into `folder`, whole or not at all; one that is there is replaced.

    Returns the description as it is written: with the files. OutputError where the folder holds
    anything else, or cannot be written.
    """
    refuse_taken(folder)
    with replacing_folder(folder) as fresh:
        trained.write(fresh)
        written = replace(description, files=tuple(_entries(fresh)))
        write_json(fresh / DESCRIPTION, written)
    return written


def refuse_taken(folder: Path) -> None:
    """OutputError where `folder` holds anything but a predictor: before hours of learning, too."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder; choose a new one")
    own = _own_entries(folder)
    other = next((entry for entry in _entries(folder) if entry not in own), None)
    if other is not None:
        raise OutputError(f"{folder} holds other files, such as {other}; choose a new folder")


def _own_entries(folder: Path) -> set[str]:
    try:
        return {DESCRIPTION, *read_description(folder).files}
    except PredictorError:
        return set()  # whatever predictor.json is there, uellm has not written it


def _entries(folder: Path) -> list[str]:
    """All files and folders below a folder, by their paths within it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
