from __future__ import annotations

from pathlib import Path

import pytest

from uellm_cli.models.fingerprint import BLOCK_BYTES, SAMPLED_BLOCKS, WHOLE_BYTES, model_fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_changed_file_changes_the_fingerprint(name: str, model: Path) -> None:
    before = model_fingerprint(str(model))
    assert model_fingerprint(str(model)) == before
    content = (model / name).read_bytes()
    (model / name).write_bytes(content[:-1] + b"!")
    assert model_fingerprint(str(model)) != before


def test_a_new_file_that_decides_answers_changes_it_and_a_readme_does_not(model: Path) -> None:
    before = model_fingerprint(str(model))
    (model / "README.md").write_text("a model")
    assert model_fingerprint(str(model)) == before
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert model_fingerprint(str(model)) != before


def test_the_same_model_in_another_folder_is_the_same_model(model: Path, tmp_path: Path) -> None:
    before = model_fingerprint(str(model))
    model.rename(tmp_path / "moved")
    assert model_fingerprint(str(tmp_path / "moved")) == before


def test_large_weights_are_sampled_all_over(model: Path) -> None:
    weights = model / "model.safetensors"
    size = WHOLE_BYTES * 2
    weights.write_bytes(bytes(size))
    before = model_fingerprint(str(model))
    gap = size // SAMPLED_BLOCKS + BLOCK_BYTES
    for start in (0, size // 3, size - gap):
        content = bytearray(size)
        # A change as long as the gap between two samples touches one of them.
        content[start : start + gap] = b"\x01" * gap
        weights.write_bytes(content)
        assert model_fingerprint(str(model)) != before, start


def test_a_bare_config_has_a_fingerprint_of_its_own(model: Path) -> None:
    assert len(model_fingerprint(str(model / "config.json"))) == 32
    assert model_fingerprint(str(model / "config.json")) != model_fingerprint(str(model))
