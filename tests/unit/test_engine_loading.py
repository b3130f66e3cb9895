"""What is said of a model whose files are damaged, or ask for what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.engine_cases import inflight_engine, static_engine
from uellm_cli.engines import ENGINES
from uellm_cli.errors import ModelError, UsageError

Start = Callable[..., Any]
MISSING = "model.layers.1.mlp.down_proj.weight"
each_engine = pytest.mark.parametrize("start", [inflight_engine, static_engine])


@pytest.fixture
def copied(tiny_llm: str, tmp_path: Path) -> Path:
    """The bundled model, to be damaged."""
    shutil.copytree(tiny_llm, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, changed: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@each_engine
def test_weights_that_the_files_lack_are_not_made_up(start: Start, copied: Path) -> None:
    change(copied, lambda weights: weights.__delitem__(MISSING))
    with pytest.raises(ModelError, match=rf"is not whole: its files hold no {MISSING};"):
        start(str(copied))


def test_many_weights_that_are_missing_are_counted(copied: Path) -> None:
    def thin_out(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".mlp." in name]:
            del weights[name]

    change(copied, thin_out)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.down_proj.* and 9 more;"):
        static_engine(str(copied))


@each_engine
def test_a_file_that_was_cut_short_is_the_model_s_fault(start: Start, copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"model' cannot be loaded: SafetensorError: .*incomplete"):
        start(str(copied))


def test_weights_that_are_no_numbers_stop_a_run_before_all_its_requests_fail(copied: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[MISSING][3, 4] = torch.nan

    change(copied, spoil)
    with pytest.raises(ModelError, match=rf"infinity\) in {MISSING};"):
        inflight_engine(str(copied))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_generation_config_that_is_no_json_is_not_passed_over(copied: Path) -> None:
    (copied / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json: cannot be read: "):
        static_engine(str(copied))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -3),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
    ],
)
def test_a_default_that_means_nothing_is_refused(name: str, value: object, copied: Path) -> None:
    configure(copied, do_sample=True, **{name: value})
    with pytest.raises(ModelError, match=name if value != "hot" else "hot"):
        static_engine(str(copied))


def test_what_a_generation_config_asks_for_and_is_not_followed_is_said(copied: Path) -> None:
    configure(copied, num_beams=4, no_repeat_ngram_size=2, temperature=0.5, do_sample=True)
    notes: list[str] = []
    static_engine(str(copied), note=notes.append)
    (note,) = notes
    assert "has num_beams, no_repeat_ngram_size, which uellm does not follow" in note


def test_a_model_that_asks_for_nothing_odd_goes_without_a_word(tiny_llm: str) -> None:
    notes: list[str] = []
    static_engine(tiny_llm, note=notes.append)
    assert notes == []


@pytest.mark.parametrize(
    "options", [{"page_tokens": 0}, {"page_tokens": 10**20}, {"step_tokens": -1}]
)
def test_options_that_no_array_could_hold_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="tokens"):
        ENGINES.build("inflight", options)
