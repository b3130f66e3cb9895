"""`uellm plan` and what follows it: the verdict, what would help, plans run, step times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from uellm_cli.scheduler import SCHEDULERS

SAMPLES = REPOSITORY / "sample_data"
REQUESTS = SAMPLES / "requests.jsonl"
SLO_FILE = SAMPLES / "slo.yaml"
Command = Callable[..., int]


@pytest.fixture
def told(uellm: Command, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A command's exit code, and what it told people, on one line."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = uellm(*arguments)
        return code, " ".join(capsys.readouterr().err.split())

    return run


def promises(folder: Path, text: str) -> Path:
    path = folder / "slo.yaml"
    path.write_text(text)
    return path


# --- The verdict ---------------------------------------------------------------------------------


def test_a_promise_nobody_can_keep_is_named_with_what_would_help(
    told: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    slo = promises(tmp_path, "classes: [{name: now, match: {custom_id: '*1'}, deadline: 1s}]")
    code, text = told("plan", REQUESTS, "--slo-file", slo)
    assert code == 0
    # Loading alone takes longer than a second.
    assert "20 of 200 would be late" in text
    assert "(now), due after 1 s, would take until" in text
    assert "with the machine to itself" in text
    assert "more for every deadline" in text
    assert "the 20 requests of class now at another time" in text


def test_what_can_be_kept_says_so_and_when_it_would_be_done(
    told: Callable[..., tuple[int, str]],
) -> None:
    code, text = told("plan", REQUESTS, "--slo-file", SLO_FILE)
    assert code == 0
    assert "All 200 would be in time, done after" in text
    assert "assumed step times, 16 draws of the lengths" in text
    assert "When they would run" in text
    assert "would do" not in text


def test_a_machine_without_enough_memory_for_a_request_names_it_as_late(
    uellm: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    slo = promises(tmp_path, "default: {deadline: 30m}")
    assert uellm("plan", REQUESTS, "--slo-file", slo, "--json") == 0
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["late"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert verdict["first_late"] is None
    assert verdict["remedies"] == []
    assert sum(entry["promised"] for entry in verdict["classes"]) == 200


def test_every_scheduler_is_compared_and_one_is_advised(
    uellm: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # About half of them can be in time: who is first decides who is.
    slo = promises(tmp_path, "default: {deadline: 6.3s}")
    arguments = ("plan", REQUESTS, "--slo-file", slo, "--compare", "--engine", "static")
    assert uellm(*arguments, "--json") == 0
    captured = capsys.readouterr()
    found: list[dict[str, Any]] = json.loads(captured.out)
    assert sorted(each["scheduler"] for each in found) == SCHEDULERS.names()
    late = [each["verdict"]["late"]["mean"] for each in found]
    assert late == sorted(late)
    assert late[0] < late[-1]
    text = " ".join(captured.err.split())
    assert f"Take {found[0]['scheduler']}:" in text


def test_where_all_orders_come_to_the_same_any_will_do(
    told: Callable[..., tuple[int, str]],
) -> None:
    code, text = told("plan", REQUESTS, "--slo-file", SLO_FILE, "--compare")
    assert code == 0
    assert "Any of them will do" in text


def test_a_comparison_keeps_no_plan(told: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, text = told("plan", REQUESTS, "--compare", "-o", tmp_path / "plan.json")
    assert code == 2
    assert "--compare decides nothing that -o could keep" in text


# --- A plan that is run --------------------------------------------------------------------------


@pytest.fixture
def kept_plan(uellm: Command, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    arguments = ("--scheduler", "sjf", "--slo-file", SLO_FILE, "-o", path, "--quiet")
    assert uellm("plan", REQUESTS, *arguments) == 0
    return path


def test_a_plan_is_run_as_it_is(uellm: Command, kept_plan: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = ("--slo-file", SLO_FILE, "--plan", kept_plan, "-o", directory, "--quiet")
    assert uellm("run", REQUESTS, *arguments) == 0
    planned, run = (
        json.loads(path.read_text())["schedule"] for path in (kept_plan, directory / "plan.json")
    )
    assert run == planned
    assert planned["algorithm"] == "sjf"
    assert json.loads((directory / "run.json").read_text())["scheduler"] == "sjf"
    assert len((directory / "results.jsonl").read_text().splitlines()) == 200


def test_a_run_by_a_plan_is_resumed_by_it(uellm: Command, kept_plan: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = ("--slo-file", SLO_FILE, "--plan", kept_plan, "-o", directory, "--quiet")
    assert uellm("run", REQUESTS, *arguments) == 0
    journal = directory / "journal"
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size // 2])
    assert uellm("run", "--resume", "-o", directory, "--quiet") == 0
    assert len((directory / "results.jsonl").read_text().splitlines()) == 200
    left = json.loads((directory / "plan.json").read_text())["schedule"]["batches"]
    assert 0 < sum(len(batch["custom_ids"]) for batch in left) < 200


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("--slo-file", SAMPLES / "topologies" / "2xa100.yaml"), "error"),
        (("--limit", 10), "other requests"),
        (("--engine", "static"), "another --engine (inflight, not static)"),
        (("--max-tokens", 900), "another --max-tokens (None, not 900)"),
        (("--topology", SAMPLES / "topologies" / "2xa100.yaml"), "other files"),
    ],
    ids=["promises", "requests", "engine", "cap", "machine"],
)
def test_a_plan_for_something_else_is_refused(
    change: tuple[object, ...],
    why: str,
    told: Callable[..., tuple[int, str]],
    kept_plan: Path,
    tmp_path: Path,
) -> None:
    slo = () if "--slo-file" in change else ("--slo-file", SLO_FILE)
    arguments = ("--plan", kept_plan, *slo, *change, "-o", tmp_path / "run")
    code, text = told("run", REQUESTS, *arguments)
    assert code == 2
    assert why in text
    assert not (tmp_path / "run").exists()


def test_a_plan_for_another_model_is_refused(
    told: Callable[..., tuple[int, str]], kept_plan: Path, tiny_llm: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llm, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-5}))
    arguments = ("--model", tmp_path / "model", "--slo-file", SLO_FILE, "--plan", kept_plan)
    code, text = told("run", REQUESTS, *arguments, "-o", tmp_path / "run")
    assert code == 2
    assert "was made for another model (it is for tiny-llm)" in text


def test_a_plan_for_another_machine_is_refused(
    told: Callable[..., tuple[int, str]], kept_plan: Path, tmp_path: Path
) -> None:
    plan = json.loads(kept_plan.read_text())
    plan["topology"]["devices"][0]["memory_bytes"] += 1
    kept_plan.write_text(json.dumps(plan))
    arguments = ("--slo-file", SLO_FILE, "--plan", kept_plan, "-o", tmp_path / "run")
    code, text = told("run", REQUESTS, *arguments)
    assert code == 2
    assert "was made for another machine" in text


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"origin": null}'])
def test_what_is_no_plan_is_refused_by_name(
    content: str, told: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    code, text = told("run", REQUESTS, "--plan", path, "-o", tmp_path / "run")
    assert code == 2
    assert "plan.json: is no plan of `uellm plan -o`" in text


def test_a_run_s_own_plan_does_not_say_what_it_is_for(
    uellm: Command, told: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    first = tmp_path / "first"
    assert uellm("run", REQUESTS, "--engine", "simulated", "-o", first, "--quiet") == 0
    arguments = ("--engine", "simulated", "--plan", first / "plan.json", "-o", tmp_path / "run")
    code, text = told("run", REQUESTS, *arguments)
    assert code == 2
    assert "does not say what it was made for; make it with `uellm plan -o`" in text


@pytest.mark.parametrize("flag", [("--scheduler", "fifo"), ("--pilot", "5%"), ("--max-batch", 4)])
def test_flags_that_would_plan_otherwise_contradict_a_plan(
    flag: tuple[object, ...], told: Callable[..., tuple[int, str]], kept_plan: Path, tmp_path: Path
) -> None:
    code, text = told("run", REQUESTS, "--plan", kept_plan, *flag, "-o", tmp_path / "run")
    assert code == 2
    assert f"{flag[0]} and --plan contradict each other" in text


# --- Step times ----------------------------------------------------------------------------------


def test_a_plan_counts_on_what_earlier_runs_measured(
    uellm: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UELLM_STEP_TIMES", str(tmp_path / "steps"))

    def source() -> str:
        capsys.readouterr()
        assert uellm("plan", REQUESTS, "--json") == 0
        found: str = json.loads(capsys.readouterr().out)["verdict"]["step_source"]
        return found

    assert source() == "assumed"
    assert uellm("run", REQUESTS, "--engine", "simulated", "-o", tmp_path / "no", "--quiet") == 0
    assert source() == "assumed"  # simulated steps say nothing of a machine
    assert uellm("run", REQUESTS, "-o", tmp_path / "run", "--quiet") == 0
    assert source() == "calibrated"
    (kept,) = (tmp_path / "steps").iterdir()
    kept.write_text("damaged")
    assert source() == "assumed"


def test_that_step_times_cannot_be_kept_ends_no_run(
    told: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "steps").write_text("in the way")
    monkeypatch.setenv("UELLM_STEP_TIMES", str(tmp_path / "steps"))
    code, text = told("run", REQUESTS, "--limit", 40, "-o", tmp_path / "run")
    assert code == 0
    assert "what steps took is not kept for later plans" in text
