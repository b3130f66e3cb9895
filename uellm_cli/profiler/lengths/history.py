"""Nearest past requests: how long the answers were to requests that are like a new one.

Stands on the folder of one that was learnt from past answers (`learning/history.py`). Requests are
alike in several ways (`LIKENESSES`), from the first words to the whole prompt, digits and quoted
parts left out of all but the last. What was learnt of those that are alike in one way is mixed with
what the ways before it said, in log tokens; it counts n/(n + strength), n being its answers. What
comes of it is calibrated by the narrowest way in which there is anything like the request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from uellm_cli.errors import PredictorError
from uellm_cli.profiler.learning.conformal import Calibration
from uellm_cli.profiler.lengths.bounds import Quantiles, repeated
from uellm_cli.types import QUANTILE_LEVELS, Request

HISTORY_FILE = "history.parquet"

# Ways of being alike, each mostly narrower than the one before.
LIKENESSES = ("first words", "last words", "system prompt", "opening", "template", "prompt")
FIRST_WORDS = 2
OPENING_WORDS = 8
LAST_WORDS = 6
# Where these words are looked for, however long the prompt.
_ENDS_CHARS = 400

# Also one that is still open where the text is cut.
_QUOTED = re.compile(r'"[^"]*(?:"|$)|“[^”]*(?:”|$)|`[^`]*(?:`|$)')
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class History:
    """`folder` is a trained predictor's."""

    folder: Path | None = None

    source = "history"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        return self._model.quantiles(requests, prompt_tokens)

    @cached_property
    def _model(self) -> HistoryModel:
        if self.folder is None:
            raise PredictorError(
                "history needs past answers: make one of them with uellm predictor train DATA "
                "--kind history -o DIR, and give DIR as --predictor"
            )
        return read_model(self.folder)


@dataclass(frozen=True, slots=True)
class Groups:
    """Past requests that are alike in one way: `keys` [groups] ascend.

    `rows` [groups] is how many answers each stands on, `quantiles` [groups, levels] their lengths.
    """

    keys: Keys
    rows: NDArray[np.int32]
    quantiles: NDArray[np.float32]

    def found(self, keys: Keys) -> tuple[NDArray[np.float64], Quantiles]:
        """Answers [requests] of each key's group, 0 without one, and its quantiles' logs."""
        if not len(self.keys):
            return np.zeros(len(keys)), np.zeros((len(keys), len(QUANTILE_LEVELS)))
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        rows = np.where(self.keys[places] == keys, self.rows[places], 0)
        return rows.astype(np.float64), np.log(self.quantiles[places].astype(np.float64))


def mixed(logs: Quantiles, own: Quantiles, rows: NDArray[np.float64], strength: float) -> Quantiles:
    """`own` in the measure in which `rows` of answers outweigh `strength` of them, else `logs`."""
    weight = rows / (rows + strength)
    return logs + weight[:, None] * (own - logs)


def tokens_of(logs: Quantiles) -> Quantiles:
    """Whole tokens, as answers have them: just below one, a quantile would cover none of those."""
    return np.rint(np.exp(logs))


def calibrated(
    quantiles: Quantiles, narrowest: NDArray[np.int64], calibrations: Sequence[Calibration]
) -> Quantiles:
    """Each row [rows, levels] by the calibration of its number in `narrowest` [rows]."""
    result = np.empty_like(quantiles)
    for number, calibration in enumerate(calibrations):
        chosen = narrowest == number
        result[chosen] = calibration.applied(quantiles[chosen])
    return result


@dataclass(frozen=True)
class HistoryModel:
    """`groups` and `strengths` are by `LIKENESSES`; `overall` is of all answers.

    `calibrations` were made of rows that were left out of the groups: the first of those that are
    like no others, the next of those that are so in the first of LIKENESSES at most, and so on.
    """

    overall: tuple[float, ...]
    groups: tuple[Groups, ...]
    strengths: tuple[float, ...]
    calibrations: tuple[Calibration, ...]

    source = "history"

    def quantiles(self, requests: Sequence[Request], prompt_tokens: Sequence[int]) -> Quantiles:
        keys = keys_of(requests)
        logs = np.log(repeated(self.overall, len(requests)))
        narrowest = np.zeros(len(requests), dtype=np.int64)
        for column, (groups, strength) in enumerate(
            zip(self.groups, self.strengths, strict=True), start=1
        ):
            rows, own = groups.found(keys[:, column - 1])
            logs = mixed(logs, own, rows, strength)
            narrowest[rows > 0] = column
        return calibrated(tokens_of(logs), narrowest, self.calibrations)

    def write(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sizes = [len(groups.keys) for groups in self.groups]
        quantiles = np.concatenate([groups.quantiles for groups in self.groups])
        columns = {
            "likeness": pa.array(np.repeat(np.arange(len(sizes), dtype=np.int8), sizes)),
            "key": pa.array(np.concatenate([groups.keys for groups in self.groups])),
            "rows": pa.array(np.concatenate([groups.rows for groups in self.groups])),
        }
        for i, name in enumerate(_QUANTILE_COLUMNS):
            columns[name] = pa.array(np.ascontiguousarray(quantiles[:, i]))
        about = _About(self.overall, self.strengths, self.calibrations)
        table = pa.table(columns).replace_schema_metadata({_ABOUT: msgspec.json.encode(about)})
        pq.write_table(table, folder / HISTORY_FILE, compression="zstd")


class _About(msgspec.Struct, frozen=True):
    """What is said once, beside the table of groups."""

    overall: tuple[float, ...]
    strengths: tuple[float, ...]
    calibrations: tuple[Calibration, ...]


_ABOUT = b"uellm"
_QUANTILE_COLUMNS = tuple(f"p{round(level * 100):02d}" for level in QUANTILE_LEVELS)


def read_model(folder: Path) -> HistoryModel:
    """Raises PredictorError where the file is missing or not as it was written."""
    import pyarrow
    import pyarrow.parquet as pq

    path = folder / HISTORY_FILE
    try:
        table = pq.read_table(path)
        about = msgspec.json.decode(table.schema.metadata[_ABOUT], type=_About)
        groups = tuple(_groups(table, number) for number in range(len(LIKENESSES)))
    except (OSError, KeyError, TypeError, msgspec.MsgspecError, pyarrow.ArrowException) as error:
        raise PredictorError(f"{path} cannot be used as a predictor: {error}") from None
    sizes = (len(about.strengths), len(about.calibrations), len(about.overall))
    if sizes != (len(LIKENESSES), len(LIKENESSES) + 1, len(QUANTILE_LEVELS)):
        raise PredictorError(f"{path} is of another version of uellm; train it again")
    return HistoryModel(about.overall, groups, about.strengths, about.calibrations)


def _groups(table: Any, number: int) -> Groups:
    chosen = table.filter(table.column("likeness").to_numpy() == number)
    quantiles = [chosen.column(name).to_numpy() for name in _QUANTILE_COLUMNS]
    return Groups(
        keys=chosen.column("key").to_numpy(),
        rows=chosen.column("rows").to_numpy(),
        quantiles=np.column_stack(quantiles),
    )


# --- Keys ----------------------------------------------------------------------------------------


def keys_of(requests: Sequence[Request]) -> Keys:
    """[requests, LIKENESSES]: requests that are alike in a way have the same key in its column."""
    keys = [_keys(request) for request in requests]
    return np.array(keys, dtype=np.uint64).reshape(len(keys), len(LIKENESSES))


def _keys(request: Request) -> list[int]:
    system, text, whole = _texts(request)
    opening = _masked(text[:_ENDS_CHARS]).split()[:OPENING_WORDS]
    ending = _masked(" ".join(text[-_ENDS_CHARS:].split()[-LAST_WORDS:]))
    frame = _masked_system(system)
    begins = " ".join(opening)
    return [
        _key(" ".join(opening[:FIRST_WORDS])),
        _key(ending),
        _key(frame),
        _key(f"{frame}\0{begins}"),
        _key(f"{frame}\0{begins}\0{ending}"),
        _key(whole),
    ]


def _texts(request: Request) -> tuple[str, str, str]:
    """The system prompt, what was said last, and all of it."""
    messages = request.messages
    if len(messages) == 1:
        return "", messages[0].content, f"{messages[0].role}\0{messages[0].content}"
    if not messages:
        return "", request.prompt, request.prompt
    system = "\n".join(message.content for message in messages if message.role == "system")
    whole = "\0".join(f"{message.role}\0{message.content}" for message in messages)
    return system, messages[-1].content, whole


def _masked(text: str) -> str:
    return _NUMBER.sub("0", _QUOTED.sub('""', text.lower()))


# A file has few of them, over and over.
@lru_cache(maxsize=256)
def _masked_system(text: str) -> str:
    return _masked(text)


def _key(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
