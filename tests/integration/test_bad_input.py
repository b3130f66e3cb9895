"""What goes wrong before anything runs: one sentence, the right code, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SAMPLES = REPOSITORY / "sample_data"
GOOD = '{"prompt": "Is 7 even?", "max_tokens": 8}\n'

FILES = {
    "good.jsonl": GOOD,
    "empty.jsonl": "",
    "invalid.jsonl": '{"prompt": 5}\nnonsense\n',
    "typo.yaml": "default: {deadline: 30s}\nclasses:\n  - {name: a, deadlin: 5s}\n",
    "list.yaml": "- 1\n- 2\n",
    "broken.yaml": "default: {deadline: 30s\n",
    "never.yaml": "default: {deadline: 0s}\n",
    "link.yaml": (
        "devices:\n"
        "  - {id: gpu0, name: NVIDIA A100-SXM4-80GB, kind: cuda, memory: 80GiB}\n"
        "links:\n"
        "  - {a: gpu0, b: gpu7, type: NV12}\n"
    ),
    "tiny.yaml": "devices:\n  - {id: gpu0, name: NVIDIA A10, kind: cuda, memory: 24GiB}\n",
    "config.json": "{}",
}

CASES = [
    ("run missing.jsonl", ["missing.jsonl", "no such file"]),
    ("run empty.jsonl", ["empty.jsonl", "no requests"]),
    ("run invalid.jsonl", ["invalid.jsonl:1", "prompt"]),
    ("run .", ["directory"]),
    ("run *.nothing", ["*.nothing"]),
    ("run", ["no request files"]),
    ("run good.jsonl --model ./nowhere", ["./nowhere", "no model folder"]),
    ("run good.jsonl --model config.json", ["config.json"]),
    ("run good.jsonl --slo-file typo.yaml", ["typo.yaml:3", "deadlin", "deadline"]),
    ("run good.jsonl --slo-file list.yaml", ["list.yaml", "mapping"]),
    ("run good.jsonl --slo-file broken.yaml", ["broken.yaml:"]),
    ("run good.jsonl --slo-file never.yaml", ["never.yaml:1", "more than zero"]),
    ("run good.jsonl --slo-file gone.yaml", ["gone.yaml", "o such file"]),
    ("run good.jsonl --topology link.yaml", ["link.yaml", "gpu7"]),
    ("run good.jsonl --scheduler fastest", ["fastest", "fifo", "slo-odbs"]),
    ("run good.jsonl --scheduler fifo --variant code", ["fifo", "variant"]),
    ("run good.jsonl --scheduler odbs --variant best", ["odbs", "best"]),
    ("run good.jsonl --scheduler-option threshold", ["threshold", "KEY=VALUE"]),
    ("run good.jsonl --engine-option dtype=int3", ["dtype", "bfloat16", "int3"]),
    ("run good.jsonl --engine warp", ["warp", "static"]),
    ("run good.jsonl --max-batch 0", ["max-batch"]),
    ("run --resume -o nowhere", ["nowhere", "no run"]),
    ("run --resume", ["--resume needs -o"]),
    ("report good.jsonl", ["good.jsonl is no run directory"]),
    ("plan good.jsonl --topology link.yaml", ["link.yaml", "gpu7"]),
    ("plan-deploy --topology tiny.yaml --model LLAMA", ["141", "GB", "missing"]),
    ("plan-deploy --algorithm best", ["best", "helr"]),
    ("report nowhere", ["nowhere", "no run directory"]),
    ("topology --topology gone.yaml", ["gone.yaml", "no such file"]),
    ("profile good.jsonl -o good.jsonl", ["good.jsonl is one of the request files"]),
    ("plan good*.jsonl -o ./good.jsonl", ["good.jsonl is one of the request files"]),
    ("run good.jsonl --redo failed", ["--resume"]),
    ("run good.jsonl --changed-only", ["--resume"]),
    ("run --resume --max-tokens 5 -o nowhere", ["--max-tokens", "only with --redo"]),
    ("run --resume --seed 5 -o nowhere", ["--seed", "--resume"]),
    ("run good.jsonl --durability never", ["--durability", "never"]),
]


@pytest.mark.parametrize(("command", "expected"), CASES, ids=[command for command, _ in CASES])
def test_bad_input_is_one_sentence_with_code_2_and_leaves_nothing(
    command: str,
    expected: list[str],
    uellm: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    llama = str(SAMPLES / "models" / "llama-70b.json")

    code = uellm(*(llama if word == "LLAMA" else word for word in command.split()))

    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    for words in expected:
        assert words in captured.err
    assert {path.name for path in tmp_path.rglob("*")} == set(FILES)


def test_verbose_shows_where_an_error_came_from(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uellm("run", tmp_path / "missing.jsonl", "--verbose") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_code_1_and_says_that_it_is_one(
    uellm: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("uellm_cli.planning.topology_of", broken)
    assert uellm("plan", SAMPLES / "requests.jsonl") == 1
    err = capsys.readouterr().err
    assert "defect in uellm" in err
    assert "Traceback" not in err


def test_a_model_folder_without_weights_leaves_no_run_behind(
    uellm: Callable[..., int],
    tmp_path: Path,
    tiny_llm: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model / name).write_bytes((Path(tiny_llm) / name).read_bytes())
    requests = tmp_path / "requests.jsonl"
    requests.write_text(GOOD)
    assert uellm("run", requests, "--model", model, "-o", tmp_path / "run") == 2
    assert str(model) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
