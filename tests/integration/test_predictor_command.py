"""`uellm predictor` through the front door, on answers that the bundled model has given."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from uellm_cli.profiler.learning import TRAINERS
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS

REQUESTS = REPOSITORY / "sample_data" / "requests.jsonl"
Command = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def document(uellm: Command, capsys: Captured) -> Callable[..., dict[str, Any]]:
    """A command's --json document."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert uellm(*arguments, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def answered(path: Path, count: int, median: float = 60, seed: int = 0) -> Path:
    """Rows of two tasks: answers of a median length, and others four times as long."""
    draw = np.random.default_rng(seed)
    with path.open("w") as file:
        for i in range(count):
            task, times = (("list", 1), ("essay", 4))[i % 2]
            tokens = max(1, round(median * times * draw.lognormal(0, 0.3)))
            row: dict[str, object] = {
                "prompt": f"Please make me one {task} about {draw.integers(10**9)}",
                "kind": task,
            }
            row |= {"output_tokens": min(tokens, 500), "censored": tokens > 500}
            file.write(json.dumps(row) + "\n")
    return path


def error_of(uellm: Command, capsys: Captured, *arguments: object) -> str:
    assert uellm(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return " ".join(told.err.split())


# --- train ---------------------------------------------------------------------------------------


def test_the_tool_learns_from_its_own_run_and_uses_what_it_learnt(
    uellm: Command,
    document: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert uellm("run", REQUESTS, "-o", "first") == 0
    report = json.loads((tmp_path / "first/report.json").read_text())
    made = document("predictor", "train", "first", "--kind", "history", "-o", "mine")
    assert made["folder"] == "mine"
    assert (made["kind"], made["rows"]) == ("history", report["completed"])
    assert made["model"].endswith("tiny-llm")
    assert made["censored"] > 0

    known = document("profile", REQUESTS, "--predictor", "mine")["requests"]
    lengths = {}
    for line in (tmp_path / "first/results.jsonl").read_text().splitlines():
        row = json.loads(line)
        lengths[row["custom_id"]] = row["response"]["body"]["usage"]["completion_tokens"]
    said = {request["custom_id"]: request["output"]["tokens"][3] for request in known}
    error = np.mean([abs(said[name] - tokens) for name, tokens in lengths.items()])
    median = np.median(list(lengths.values()))
    # It has seen these very answers: far better than one length for all.
    assert error < 0.8 * np.mean([abs(tokens - median) for tokens in lengths.values()])


def test_training_says_what_it_learnt_from_how_sure_it_is_and_what_comes_next(
    uellm: Command, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = answered(Path("answers.jsonl"), 200)
    data.write_text(data.read_text() + '{"prompt": "a"}\n')
    assert uellm("predictor", "train", data, "--kind", "history", "-o", "made") == 0
    told = capsys.readouterr()
    assert told.out == ""
    text = " ".join(told.err.split())
    assert "200 in 'output_tokens'" in text
    assert "1 rows teach nothing" in text
    assert "answers.jsonl:201: line: has no answer" in text
    (after,) = re.findall(r"before calibration and ([0-9.]+)% after", text)
    assert 85 < float(after) < 95
    assert "history has learnt from 200 answers, " in text
    assert "Wrote made. Next: uellm profile REQUESTS --predictor made" in text

    assert uellm("predictor", "train", data, "--kind", "history", "-o", "history") == 0
    assert "Next: uellm profile REQUESTS --predictor ./history" in " ".join(
        capsys.readouterr().err.split()
    )
    assert {path.name for path in Path("made").iterdir()} == {"predictor.json", "history.parquet"}


def test_ngram_is_what_is_trained_unless_another_is_named(
    document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    data = answered(tmp_path / "answers.jsonl", 120)
    made = document("predictor", "train", data, "--option", "rounds=20", "-o", tmp_path / "made")
    assert made["kind"] == "ngram"
    listed = document("predictor", "list", tmp_path / "made")["saved"]
    assert listed == [{**{k: v for k, v in made.items() if k != "notes"}}]


def test_the_same_seed_writes_the_same_file(uellm: Command, tmp_path: Path) -> None:
    data = answered(tmp_path / "answers.jsonl", 100)
    for name in ("one", "two"):
        assert uellm("predictor", "train", data, "--kind", "history", "-o", tmp_path / name) == 0
    one, two = ((tmp_path / name / "history.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_folder_with_other_files_is_refused_before_anything_is_read(
    uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("years of work")
    missing = tmp_path / "missing.jsonl"
    arguments = ("predictor", "train", missing, "--kind", "history", "-o", tmp_path / "taken")
    assert uellm(*arguments) == 1
    assert "holds other files" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "taken/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "oracle"], "there is no trainable predictor called 'oracle'"),
        (["--option", "depth=3"], "trainable predictor 'ngram' has no option 'depth'"),
        (["--base", "somewhere"], "trainable predictor 'ngram' has no option 'base'"),
        (["--kind", "history", "--tokens-field", "x"], "there is no answer to learn from"),
        (["--kind", "history", "--limit", "5"], "history learns from at least 20 answers"),
    ],
)
def test_what_cannot_be_learnt_is_said_in_a_sentence_and_nothing_is_written(
    arguments: list[str], said: str, uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    data = answered(tmp_path / "answers.jsonl", 60)
    out = tmp_path / "made"
    assert said in error_of(uellm, capsys, "predictor", "train", data, "-o", out, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl"]


def test_a_simulated_run_is_nothing_to_learn_from(
    uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    run = tmp_path / "run"
    assert uellm("run", REQUESTS, "--engine", "simulated", "--limit", 30, "-o", run) in (0, 3)
    capsys.readouterr()
    told = error_of(uellm, capsys, "predictor", "train", run, "-o", tmp_path / "made")
    assert "its answers were simulated" in told


# --- evaluate ------------------------------------------------------------------------------------


def test_a_judgement_has_every_figure_with_its_spread(
    document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    data = answered(tmp_path / "answers.jsonl", 300)
    trained = tmp_path / "made"
    document("predictor", "train", data, "--kind", "history", "-o", trained)
    found = document(
        "predictor", "evaluate", data, "--kind", "history", "--task-field", "kind",
        "--predictor", trained, "--seeds", 3,
    )  # fmt: skip
    assert (found["rows"], found["seeds"]) == (300, [0, 1, 2])
    assert found["censored"] > 0
    lines = {line["name"]: line for line in found["lines"]}
    saved = f"{trained}, as it is"
    assert {*lines} == {"constant", "prompt-length", "constant of the task", "history", saved}
    for name, line in lines.items():
        assert line["failure"] is None
        assert line["pilot"] is None
        for figure in ("mae", "pinball", "coverage"):
            assert {*line[figure]} == {"mean", "sd"}, name
    assert lines["history"]["mae"]["mean"] < 0.7
    assert lines["history"]["tau"]["mean"] > 0.4
    assert 0.8 < lines["history"]["coverage"]["mean"] < 0.98


def test_the_table_fits_eighty_columns_and_says_what_it_stands_on(
    uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    data = answered(tmp_path / "answers.jsonl", 300)
    arguments = ("predictor", "evaluate", data, "--kind", "history", "--task-field", "kind")
    assert uellm(*arguments, "--predictor", "constant") == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert max(map(len, told.err.splitlines())) <= 80
    text = " ".join(told.err.split())
    for word in ("constant of the task", "MAE", "tau", "pinball", "P90 covers", "±"):
        assert word in told.err
    assert "Means over 5 seeds" in text
    assert "were cut" in text
    # A constant that ships has not seen these; whoever reads the table is told that others may.
    assert "constant, as it is" in told.err
    assert "may have learnt from these very answers" in text


def test_what_is_learnt_elsewhere_is_judged_after_pilots(
    document: Callable[..., dict[str, Any]], uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    data = answered(tmp_path / "one.jsonl", 200)
    other = answered(tmp_path / "other.jsonl", 300, median=15, seed=1)
    arguments = ("predictor", "evaluate", data, "--kind", "history", "--transfer", other)
    found = document(*arguments, "--pilot", 0, "--pilot", 60, "--seeds", 2)
    lines = {(line["name"], line["pilot"]): line for line in found["lines"]}
    assert {*lines} == {(n, p) for n in ("constant", "history") for p in (0, 60)}
    assert {line["rows"] for line in lines.values()} == {240.0 - found["test_censored"]}
    assert lines["history", 0]["mae"]["mean"] > 2  # four times as long there
    assert lines["history", 60]["mae"]["mean"] < 1
    assert uellm(*arguments, "--pilot", 60) == 0
    told = capsys.readouterr().err
    assert max(map(len, told.splitlines())) <= 80
    assert "Means over 8 seeds" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pilot", "24"], "--pilot needs --transfer"),
        (["--base", "x"], "--base is for --kind encoder"),
        (["--option", "folds=3"], "--option is for one --kind; there are several"),
        (["--kind", "nobody"], "there is no trainable predictor called 'nobody'"),
        (["--predictor", "nobody"], "there is no length predictor called 'nobody'"),
        (["--limit", "30"], "at least 50 answers"),
        (["--transfer", "missing.jsonl"], "missing.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_judged_is_said_in_a_sentence(
    arguments: list[str], said: str, uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    data = answered(tmp_path / "answers.jsonl", 80)
    assert said in error_of(uellm, capsys, "predictor", "evaluate", data, *arguments)


# --- list, help ----------------------------------------------------------------------------------


def test_every_kind_is_listed_with_what_it_is_and_its_options(
    document: Callable[..., dict[str, Any]], uellm: Command, capsys: Captured
) -> None:
    kinds = {kind["name"]: kind for kind in document("predictor", "list")["kinds"]}
    assert [*kinds] == LENGTH_PREDICTORS.names()
    assert [name for name in kinds if kinds[name]["training_options"] is not None] == (
        TRAINERS.names()
    )
    assert all(len(kind["what"]) > 20 for kind in kinds.values())
    assert kinds["oracle"]["options"] == ["field"]
    assert uellm("predictor", "list") == 0
    told = capsys.readouterr().err
    assert all(name in told for name in kinds)
    assert "uellm predictor train DATA --kind NAME -o DIR" in " ".join(told.split())


def test_a_folder_that_is_no_predictor_is_named(
    uellm: Command, tmp_path: Path, capsys: Captured
) -> None:
    assert "holds no predictor" in error_of(uellm, capsys, "predictor", "list", tmp_path)


@pytest.mark.parametrize("command", ["--help", "train --help", "evaluate --help", "list"])
def test_help_and_list_come_without_what_is_heavy(command: str) -> None:
    probe = (
        "import sys\nfrom uellm_cli.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "print([m for m in ('torch', 'transformers', 'lightgbm', 'scipy') if m in sys.modules])\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", probe, "predictor", *command.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.splitlines()[-1] == "[]"
