from __future__ import annotations

from pathlib import Path

import pytest

from uellm_cli.atomic import replace_file, write_json
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
