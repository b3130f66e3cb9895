"""Predictors in folders: what is theirs there, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from uellm_cli.errors import OutputError
from uellm_cli.profiler.learning.saved import (
    DESCRIPTION,
    Description,
    build_predictor,
    is_saved,
    read_description,
    refuse_taken,
    write_predictor,
)
from uellm_cli.profiler.lengths.ngram import SHIPPED, NGram
from uellm_cli.types import Request

ABOUT = Description(
    kind="history",
    rows=20,
    censored=0,
    seed=0,
    data=("answers.jsonl",),
    trained=datetime(2026, 1, 1, tzinfo=UTC),
    versions={},
)


@dataclass(frozen=True)
class Kept:
    """A predictor that is kept in a file and one in a folder."""

    text: str = "weights"
    source: str = "kept"

    def quantiles(
        self, requests: Sequence[Request], prompt_tokens: Sequence[int]
    ) -> NDArray[np.float64]:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        (folder / "weights").write_text(self.text)
        (folder / "own").mkdir()
        (folder / "own" / "more").write_text(self.text)


def test_a_predictor_names_its_own_files_and_is_replaced_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    written = write_predictor(folder, Kept("first"), ABOUT)
    assert written == read_description(folder)
    assert set(written.files) == {"weights", "own", "own/more"}
    write_predictor(folder, Kept("second"), ABOUT)
    assert (folder / "own" / "more").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("name", ["thesis.txt", "own/thesis.txt", "own/drafts", ".hidden"])
def test_a_file_that_is_no_part_of_the_predictor_is_not_deleted_with_it(
    name: str, tmp_path: Path
) -> None:
    write_predictor(tmp_path / "made", Kept(), ABOUT)
    other = tmp_path / "made" / name
    if name == "own/drafts":
        other.mkdir()
    else:
        other.write_text("years of work")
    with pytest.raises(OutputError, match=f"holds other files, such as {name}; choose a new"):
        write_predictor(tmp_path / "made", Kept("second"), ABOUT)
    assert other.exists()
    assert (tmp_path / "made" / "weights").read_text() == "weights"


def test_a_description_that_uellm_has_not_written_is_another_s_file(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_text('{"of": "another tool"}')
    with pytest.raises(OutputError, match=r"such as predictor\.json"):
        refuse_taken(tmp_path)


def test_an_empty_folder_and_none_are_free_and_a_file_is_not(tmp_path: Path) -> None:
    refuse_taken(tmp_path)
    refuse_taken(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is no folder"):
        refuse_taken(tmp_path / "file")


def test_a_predictor_s_name_is_not_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_predictor(Path("ngram"), Kept(), ABOUT)
    write_predictor(Path("mine"), Kept(), ABOUT)
    assert not is_saved("ngram")
    assert is_saved("./ngram")
    assert is_saved("mine")
    assert build_predictor("ngram", {}) == NGram()
    # And it still is no free place for another.
    (tmp_path / "ngram" / "thesis.txt").touch()
    with pytest.raises(OutputError):
        refuse_taken(Path("ngram"))


def test_the_predictor_that_ships_names_all_its_files() -> None:
    assert {*read_description(SHIPPED).files} == {
        path.name for path in SHIPPED.iterdir() if path.name != DESCRIPTION
    }
