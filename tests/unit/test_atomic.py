from __future__ import annotations

import os
from pathlib import Path

import pytest

from uellm_cli.atomic import replace_file, replacing_folder, write_json
from uellm_cli.errors import OutputError


def test_a_file_is_replaced_whole_and_leaves_no_part(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    write_json(target, {"a": 1})
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    replace_file(Path("/dev/null"), b"gone")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OutputError, match=r"/dev/full.*No space"):
        replace_file(Path("/dev/full"), b"gone")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("place", ["nowhere/plan.json", "."])
def test_a_place_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        replace_file(tmp_path / place, b"content")


# --- Folders -------------------------------------------------------------------------------------


def filled(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


def refill(folder: Path, error: BaseException | None = None) -> None:
    with replacing_folder(folder) as fresh:
        (fresh / "file").write_text("new")
        if error is not None:
            raise error


def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = filled(tmp_path / "made", "old")
    (target / "gone").write_text("with the old one")
    with replacing_folder(target) as fresh:
        (fresh / "file").write_text("new")
        assert (target / "file").read_text() == "old"
    assert [path.name for path in target.iterdir()] == ["file"]
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_folder_whose_writing_fails_leaves_the_old_one(
    error: BaseException, tmp_path: Path
) -> None:
    target = filled(tmp_path / "made", "old")
    with pytest.raises(type(error)):
        refill(target, error)
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = filled(tmp_path / "made", "old")
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        # The new folder into place; putting the old one aside and back goes well.
        if to == target and not path.name.endswith("-old"):
            raise OSError("a disk that has no number for it")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OutputError, match="made: cannot be written: a disk that has no number"):
        refill(target)
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    filled(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    refill(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_every_file_of_a_folder_is_on_the_disk_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made"
    synced: set[str] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        if not target.exists():
            synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with replacing_folder(target) as fresh:
        filled(fresh / "own", "new")
        (fresh / "top").write_text("new")
    assert {"own", "file", "top"} <= synced
