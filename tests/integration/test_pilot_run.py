"""A pilot, through the front door: with the real bundled model, and killed in virtual time."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.integration.test_resume import Session, answers, journal_ids, lines
from tests.integration.test_resume import run as session_run
from tests.integration.test_run import REQUESTS
from uellm_cli.profiler.learning.saved import read_description

Uellm = Callable[..., int]


def report_of(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return document


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The sample requests answered with a pilot and without, and what the first one said."""
    folder = tmp_path_factory.mktemp("pilot")
    code, text = session_run(folder, "run", REQUESTS, "--pilot", "20%", "-o", folder / "with")
    assert code == 0, text
    code, _ = session_run(folder, "run", REQUESTS, "--pilot", "off", "-o", folder / "without")
    assert code == 0
    return folder / "with", folder / "without", " ".join(text.split())


def test_a_pilot_s_answers_are_results_like_any_other(runs: tuple[Path, Path, str]) -> None:
    with_pilot, without, text = runs
    assert answers(with_pilot) == answers(without)
    assert set(journal_ids(with_pilot).values()) == {1}
    assert "Learnt from the answers so far" in text


def test_those_after_the_pilot_are_predicted_with_what_it_taught(
    runs: tuple[Path, Path, str], uellm: Uellm, tmp_path: Path
) -> None:
    with_pilot = runs[0]
    assert uellm("profile", REQUESTS, "-o", tmp_path / "profile.parquet") == 0
    before = {
        row["custom_id"]: row["output_tokens_p90"]
        for row in pq.read_table(tmp_path / "profile.parquet").to_pylist()
    }
    after = {
        row["custom_id"]: row["predicted_tokens_p90"]
        for row in pq.read_table(with_pilot / "latency.parquet").to_pylist()
    }
    changed = [name for name, tokens in after.items() if tokens != pytest.approx(before[name])]
    # 40 are the pilot, and of the other 160 a quarter and one batch more may go in beside it.
    assert 56 <= len(changed) <= 160
    plan = json.loads((with_pilot / "plan.json").read_text())
    pilot = plan["schedule"]["batches"][0]["custom_ids"]
    assert len(pilot) == 40
    assert not set(changed) & set(pilot)


def test_a_report_sets_predicted_beside_actual(runs: tuple[Path, Path, str]) -> None:
    for directory in runs[:2]:
        quality = report_of(directory)["predictions"]
        assert quality["requests"] == 200
        assert 0.8 <= quality["p90_coverage"] <= 1


def test_what_a_run_has_learnt_predicts_the_next_one(
    runs: tuple[Path, Path, str], uellm: Uellm, tmp_path: Path
) -> None:
    predictor = runs[0] / "predictor"
    description = read_description(predictor)
    assert (description.kind, description.rows) == ("adapted", 40)
    assert description.model is not None
    assert Path(description.model).name == "tiny-llm"
    output = tmp_path / "profile.parquet"
    assert uellm("profile", REQUESTS, "--predictor", predictor, "-o", output) == 0
    (source,) = set(pq.read_table(output).column("output_source").to_pylist())
    assert source.endswith(" answers")


def test_a_run_with_a_predictor_for_its_model_needs_no_pilot(
    runs: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """On by itself it would be, for a file of this size."""
    requests = tmp_path / "requests.jsonl"
    asked = [{"prompt": f"Count to {i}.", "max_tokens": 2} for i in range(400)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in asked))
    known = ("--predictor", runs[0] / "predictor")
    first, second = tmp_path / "first", tmp_path / "second"
    assert session_run(tmp_path, "run", requests, "-o", first)[0] == 0
    assert (first / "predictor").is_dir()
    assert session_run(tmp_path, "run", requests, *known, "-o", second)[0] == 0
    assert not (second / "predictor").exists()


def test_a_pilot_that_means_nothing_is_refused_before_anything_is_read(
    uellm: Uellm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert uellm("run", tmp_path / "none.jsonl", "--pilot", "some", "-o", tmp_path / "run") == 2
    assert "--pilot 'some'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_killed_around_its_pilot_loses_and_doubles_nothing(tmp_path: Path) -> None:
    moment = random.Random(3)
    requests = tmp_path / "requests.jsonl"
    asked = [
        {"id": f"r{i}", "prompt": f"Count to {i % 50}.", "max_tokens": 2 + i % 40}
        for i in range(600)
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in asked))
    directory = tmp_path / "run"
    fresh = ("run", requests, "--pilot", "10%", "--max-batch", 16, "-o", directory)
    resume = ("run", "--resume", "-o", directory)
    for _ in range(8):
        arguments = resume if (directory / "run.json").exists() else fresh
        session = Session(tmp_path, *arguments, "--durability", "result")
        while not (directory / "run.json").exists():
            assert session.process.is_alive(), session.text()
        time.sleep(moment.uniform(0.5, 5.0))
        session.send(moment.choice([signal.SIGKILL, signal.SIGTERM]))
        session.wait()
    code, text = session_run(tmp_path, *resume)
    assert code == 0, text
    assert [row["custom_id"] for row in lines(directory / "results.jsonl")] == [
        line["id"] for line in asked
    ]
    assert set(journal_ids(directory).values()) == {1}
    assert read_description(directory / "predictor").kind == "adapted"


def test_an_asked_pilot_is_not_made_twice_and_its_predictor_not_made_of_itself(
    runs: tuple[Path, Path, str], tmp_path: Path, uellm: Uellm
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs[0], directory)
    journal = directory / "journal"
    records = journal.read_bytes().splitlines(keepends=True)
    before = answers(directory)
    for _ in range(2):
        # As if it had been killed when it had answered a half.
        journal.write_bytes(b"".join(records[:100]))
        code, text = session_run(tmp_path, "run", "--resume", "-o", directory)
        assert code == 0, text
        assert answers(directory) == before
    assert uellm("profile", REQUESTS, "--predictor", directory / "predictor") == 0


def test_a_damaged_predictor_costs_no_run(runs: tuple[Path, Path, str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs[0], directory)
    journal = directory / "journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:100]))
    (directory / "predictor" / "adaptation.json").write_text("")
    code, text = session_run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 0, text
    assert "lengths are predicted as at the run's start" in " ".join(text.split())
    assert answers(directory) == answers(runs[0])


def test_what_cannot_be_kept_of_what_was_learnt_ends_no_run(
    runs: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """Somebody has put a file of their own beside what is to be replaced."""
    directory = tmp_path / "run"
    shutil.copytree(runs[0], directory)
    journal = directory / "journal"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:20]))
    (directory / "predictor" / "adaptation.json").write_text("")
    (directory / "predictor" / "notes.txt").write_text("mine")
    code, text = session_run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 0, text
    assert "is not kept for the next session" in " ".join(text.split())
    assert (directory / "predictor" / "notes.txt").read_text() == "mine"
    assert answers(directory) == answers(runs[0])


def test_a_run_is_not_begun_where_a_predictor_is_kept(
    runs: tuple[Path, Path, str], tmp_path: Path, uellm: Uellm
) -> None:
    shutil.copytree(runs[0] / "predictor", tmp_path / "run" / "predictor")
    assert uellm("run", REQUESTS, "--limit", 1, "-o", tmp_path / "run") == 2
    assert (tmp_path / "run" / "predictor" / "adaptation.json").exists()


def test_a_pilot_of_a_few_promises_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    limited = ("--limit", 30, "--pilot", 5, "-o", directory)
    assert session_run(tmp_path, "run", REQUESTS, *limited)[0] == 0
    assert not (directory / "predictor").exists()


def test_simulated_lengths_teach_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    simulated = ("--engine", "simulated", "--pilot", "50%", "-o", directory)
    code, text = session_run(tmp_path, "run", REQUESTS, *simulated)
    assert code in (0, 3), text
    assert "made up teach nothing" in " ".join(text.split())
    assert not (directory / "predictor").exists()


def test_a_run_s_predictor_goes_with_what_it_was_made_of(
    runs: tuple[Path, Path, str], uellm: Uellm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained predictor named by a relative path, adapted by a run, and used from elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert uellm("predictor", "train", runs[0], "--kind", "history", "-o", "mine") == 0
    limited = ("--limit", 120, "--pilot", 40, "--predictor", "mine", "-o", "run")
    assert uellm("run", REQUESTS, *limited) == 0
    shutil.rmtree("mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert uellm("profile", REQUESTS, "--predictor", "../run/predictor") == 0
