"""Killed at any moment, out of disk, changed, asked again: nothing is lost and nothing doubled.

Sessions run in processes forked from one that has imported torch already, so that forty of them
take a minute and not five.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

SAMPLES = REPOSITORY / "sample_data"
REQUESTS = SAMPLES / "requests.jsonl"
KILLS = 40
# Rows at a time: few, so that there are many moments between writes.
SMALL_BATCHES = ("--max-batch", 4)

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["uellm_cli.engines.inflight.start", "uellm_cli.pipeline"])


def command(
    arguments: list[str], log: str, largest_file: int | None, ignored: list[signal.Signals]
) -> None:
    """What a session's process does: the command line, its terminal text in a file."""
    from uellm_cli.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["uellm", *arguments]
    main(arguments)


class Session:
    """A command in a process of its own."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        largest_file: int | None = None,
        ignored: tuple[signal.Signals, ...] = (),
    ) -> None:
        self.log = folder / "terminal.txt"
        words = [str(argument) for argument in arguments]
        self.process: ForkServerProcess = FORKS.Process(
            target=command, args=(words, str(self.log), largest_file, list(ignored))
        )
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self) -> int:
        self.process.join(300)
        assert self.process.exitcode is not None, self.text()
        return self.process.exitcode

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def run(folder: Path, *arguments: object, largest_file: int | None = None) -> tuple[int, str]:
    """A command to its end: its exit code and what it said."""
    session = Session(folder, *arguments, largest_file=largest_file)
    before = len(session.text())
    code = session.wait()
    return code, session.text()[before:]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(directory: Path) -> dict[str, Any]:
    """What was answered, by id; every request has one row."""
    rows = lines(directory / "results.jsonl")
    found = {row["custom_id"]: row["response"]["body"] for row in rows}
    assert len(found) == len(rows)
    return {
        custom_id: (body["choices"], body["usage"]) for custom_id, body in sorted(found.items())
    }


def journal_ids(directory: Path) -> Counter[str]:
    """How many whole records the journal has of each request."""
    records = (directory / "journal").read_bytes().splitlines(keepends=True)
    bodies = [json.loads(line[9:]) for line in records if line.endswith(b"\n")]
    return Counter(body["result"]["custom_id"] for body in bodies if body["type"] == "result")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, text = run(folder, "run", REQUESTS, *SMALL_BATCHES, "-o", folder / "run", "--quiet")
    assert code == 0, text
    return answers(folder / "run")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_somewhere(session: Session, journal: Path, moment: random.Random) -> None:
    """SIGKILL while starting, while answering, or as soon as the journal begins to grow."""
    kind = moment.choice(["starting", "writing", "writing", "answering"])
    if kind == "starting":
        time.sleep(moment.uniform(0.0, 1.0))
    else:
        before, patience = size(journal), time.monotonic() + 120
        while size(journal) == before and session.process.is_alive():
            assert time.monotonic() < patience, session.text()
        if kind == "answering":
            time.sleep(moment.uniform(0.0, 0.05))
    session.send(signal.SIGKILL)
    session.wait()


@pytest.mark.slow
def test_a_run_killed_at_forty_random_moments_answers_each_request_once_as_if_undisturbed(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    moment = random.Random(20261121)
    directory = tmp_path / "run"
    first = ("run", REQUESTS, *SMALL_BATCHES, "--durability", "result")
    killed = 0
    while killed < KILLS:
        # A session that was killed before it knew what to do left nothing to resume.
        known = (directory / "run.json").exists()
        session = Session(tmp_path, *(("run", "--resume") if known else first), "-o", directory)
        kill_somewhere(session, directory / "journal", moment)
        if session.process.exitcode != -signal.SIGKILL:
            break  # it was done: the moments were too late
        killed += 1
        for row in lines_so_far(directory / "results.jsonl"):
            assert row["custom_id"] in uninterrupted
    assert killed >= KILLS

    assert 0 < len(journal_ids(directory)) <= 200
    code, text = run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 0, text
    assert answers(directory) == uninterrupted
    # Not one request was answered twice, not even where only the journal would show it.
    assert set(journal_ids(directory).values()) == {1}
    assert len(journal_ids(directory)) == 200
    assert lines(directory / "errors.jsonl") == []


def lines_so_far(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may end in the middle of one."""
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize("largest_file", [3_000, 20_001, 44_444, 80_000])
def test_a_disk_that_fills_up_costs_nothing_that_was_answered(
    largest_file: int, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    directory = tmp_path / "run"
    code, text = run(
        tmp_path, "run", REQUESTS, *SMALL_BATCHES, "-o", directory, largest_file=largest_file
    )
    assert code == 1, text
    assert "cannot be" in text
    assert "Traceback" not in text
    if not (directory / "run.json").exists():
        # It was full before there was anything to keep.
        assert not (directory / "results.jsonl").exists()
        code, text = run(tmp_path, "run", REQUESTS, *SMALL_BATCHES, "-o", directory)
    else:
        kept = journal_ids(directory)
        code, text = run(tmp_path, "run", "--resume", "-o", directory)
        assert all(journal_ids(directory)[name] == 1 for name in kept)
    assert code == 0, text
    assert answers(directory) == uninterrupted


def until_running(session: Session, directory: Path) -> None:
    patience = time.monotonic() + 120
    while size(directory / "journal") == 0 and session.process.is_alive():
        assert time.monotonic() < patience, session.text()
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_ends_after_the_step_and_leaves_a_report_of_what_there_is(
    how: signal.Signals, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    directory = tmp_path / "run"
    session = Session(tmp_path, "run", REQUESTS, *SMALL_BATCHES, "-o", directory)
    until_running(session, directory)
    session.send(how)
    assert session.wait() == 130, session.text()
    assert "Stopping after this step" in session.text()
    report = json.loads((directory / "report.json").read_text())
    done = len(lines(directory / "results.jsonl"))
    assert 0 < done < 200
    assert (report["completed"], report["failures"]) == (done, {"interrupted": 200 - done})
    assert sum(journal_ids(directory).values()) == done

    code, text = run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 0, text
    assert answers(directory) == uninterrupted
    assert set(journal_ids(directory).values()) == {1}


@pytest.mark.parametrize("apart_s", [0.0, 0.02, 0.2])
def test_a_second_stop_ends_at_once_and_is_as_safe(
    apart_s: float, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    directory = tmp_path / "run"
    session = Session(tmp_path, "run", REQUESTS, *SMALL_BATCHES, "-o", directory)
    until_running(session, directory)
    session.send(signal.SIGINT)
    time.sleep(apart_s)
    session.send(signal.SIGTERM)
    assert session.wait() == 130, session.text()
    code, text = run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 0, text
    assert answers(directory) == uninterrupted
    assert set(journal_ids(directory).values()) == {1}


def test_a_hangup_that_nohup_has_ignored_stops_nothing(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    directory = tmp_path / "run"
    arguments = ("run", REQUESTS, *SMALL_BATCHES, "-o", directory)
    session = Session(tmp_path, *arguments, ignored=(signal.SIGHUP,))
    until_running(session, directory)
    session.send(signal.SIGHUP)
    assert session.wait() == 0, session.text()
    assert answers(directory) == uninterrupted


def test_a_terminal_that_has_gone_costs_the_view_and_not_the_run(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["run", REQUESTS, "--engine", "simulated", "-o", tmp_path / "run"]
    process = subprocess.run(
        [sys.executable, "-m", "uellm_cli", *map(str, arguments)],
        stderr=writer,
        check=False,
        cwd=REPOSITORY,
    )
    os.close(writer)
    assert process.returncode == 0
    assert len(answers(tmp_path / "run")) == 200


def test_a_stop_before_the_first_answer_can_be_resumed_wherever_the_run_is_moved(
    tmp_path: Path,
) -> None:
    line = b'{"id": "a", "prompt": "Is 7 even or odd?", "max_tokens": 8}\n'
    directory, moved = tmp_path / "run", tmp_path / "moved"
    process = subprocess.Popen(
        [sys.executable, "-m", "uellm_cli", "run", "-", "-o", str(directory)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.close()
    process.stdin = None
    patience = time.monotonic() + 120
    while not (directory / "run.json").exists():
        assert time.monotonic() < patience
        time.sleep(0.001)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"Go on with: uellm run --resume -o {directory}" in " ".join(said.decode().split())
    directory.rename(moved)
    code, text = run(tmp_path, "run", "--resume", "-o", moved)
    assert code == 0, text
    assert set(texts(moved)) == {"a"}


# --- Asked again ---------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Four requests, two of which are cut at their caps."""
    path = tmp_path / "few.jsonl"
    asked = [
        {"id": "whole", "prompt": "Is 7 even or odd?", "max_tokens": 20},
        {"id": "cut", "prompt": "Count from 3 to 9.", "max_tokens": 2},
        {"id": "cut-too", "prompt": "Count from 1 to 8.", "max_tokens": 3},
        {"id": "bad", "prompt": 5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return path


def texts(directory: Path) -> dict[str, str]:
    return {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in lines(directory / "results.jsonl")
    }


def test_truncated_answers_are_made_again_with_more_room_and_the_old_ones_stay_in_the_journal(
    few: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    assert run(tmp_path, "run", few, "-o", directory)[0] == 3
    before = texts(directory)
    again = ("run", "--resume", "--redo", "truncated", "--max-tokens", 64, "-o", directory)
    code, text = run(tmp_path, *again)
    assert code == 3, text
    after = texts(directory)
    assert set(after) == {"whole", "cut", "cut-too"}
    assert after["whole"] == before["whole"]
    for name in ("cut", "cut-too"):
        assert after[name].startswith(before[name])
        assert len(after[name]) > len(before[name])
    assert journal_ids(directory) == {"whole": 1, "cut": 2, "cut-too": 2}
    assert [row["error"]["line"] for row in lines(directory / "errors.jsonl")] == [4]

    # Nothing is truncated any more, so nothing is left to do.
    code, _ = run(tmp_path, *again)
    assert (code, texts(directory)) == (3, after)
    assert journal_ids(directory) == {"whole": 1, "cut": 2, "cut-too": 2}


def test_a_truncated_answer_is_not_made_again_where_it_could_only_be_the_same(
    few: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    assert run(tmp_path, "run", few, "-o", directory)[0] == 3
    before = texts(directory)
    assert run(tmp_path, "run", "--resume", "--redo", "truncated", "-o", directory)[0] == 3
    less = ("run", "--resume", "--redo", "truncated", "--max-tokens", 1, "-o", directory)
    assert run(tmp_path, *less)[0] == 3
    assert texts(directory) == before
    assert set(journal_ids(directory).values()) == {1}


def test_expired_requests_are_skipped_where_that_is_asked_for_and_can_be_wanted_after_all(
    tmp_path: Path,
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text(
        '{"id": "free", "prompt": "Is 7 even or odd?", "max_tokens": 8}\n'
        '{"id": "late", "prompt": "Is 8 even?", "max_tokens": 8, "slo": {"deadline": 0.001}}\n'
    )
    directory = tmp_path / "run"
    code, text = run(tmp_path, "run", requests, "--on-late", "skip", "-o", directory)
    assert code == 3, text
    (row,) = lines(directory / "errors.jsonl")
    assert (row["custom_id"], row["error"]["code"]) == ("late", "batch_expired")
    assert json.loads((directory / "report.json").read_text())["blame"] == {"expired": 1}

    code, text = run(tmp_path, "run", "--resume", "--redo", "expired", "-o", directory)
    assert code == 0, text
    assert set(texts(directory)) == {"free", "late"}
    assert lines(directory / "errors.jsonl") == []


def test_only_what_is_new_or_different_is_answered_after_a_change(
    few: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    assert run(tmp_path, "run", few, "-o", directory)[0] == 3
    before = texts(directory)
    changed = few.read_text().splitlines()
    changed[1] = json.dumps({"id": "cut", "prompt": "Count from 4 to 9.", "max_tokens": 40})
    changed[3] = json.dumps({"id": "new", "prompt": "Is 6 even or odd?", "max_tokens": 8})
    del changed[2]
    few.write_text("\n".join(changed))

    code, text = run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 2
    assert f"{few} changed" in text
    assert "--changed-only" in text
    assert texts(directory) == before

    code, text = run(tmp_path, "run", "--resume", "--changed-only", "-o", directory)
    assert code == 0, text
    after = texts(directory)
    assert list(after) == ["whole", "cut", "new"]  # in the order of the input, the gone one gone
    assert after["whole"] == before["whole"]
    assert after["cut"] != before["cut"]
    assert journal_ids(directory) == {"whole": 1, "cut": 2, "cut-too": 1, "new": 1}
    # From now on the changed file is the run's own.
    assert run(tmp_path, "run", "--resume", "-o", directory)[0] == 0


def test_a_changed_model_is_named_and_makes_all_answers_void(
    few: Path, tmp_path: Path, tiny_llm: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in Path(tiny_llm).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    directory = tmp_path / "run"
    assert run(tmp_path, "run", few, "--model", model, "-o", directory)[0] == 3
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**settings, "top_k": 7}))
    code, text = run(tmp_path, "run", "--resume", "-o", directory)
    assert code == 2
    assert f"the model {model} changed" in " ".join(text.split())
    assert run(tmp_path, "run", "--resume", "--changed-only", "-o", directory)[0] == 3
    assert set(journal_ids(directory).values()) == {2}


@pytest.mark.slow
def test_a_redone_run_survives_being_killed(tmp_path: Path) -> None:
    """Requests in virtual time: sessions are short, so kills fall anywhere in them."""
    moment = random.Random(7)
    requests = tmp_path / "requests.jsonl"
    asked = [
        {"id": f"r{i}", "prompt": f"Count to {i}.", "max_tokens": 2 + i % 600} for i in range(4000)
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in asked))
    directory = tmp_path / "run"
    fresh = ("run", requests, "--engine", "simulated", "--durability", "result", "-o", directory)
    resume = ("run", "--resume", "-o", directory)
    redo = (*resume, "--redo", "truncated", "--max-tokens", "500")

    def killed_at_times(arguments: tuple[object, ...], times: int) -> None:
        for kill in range(times):
            start = arguments if (directory / "run.json").exists() or arguments == fresh else fresh
            if start == fresh and (directory / "run.json").exists():
                start = resume
            session = Session(tmp_path, *start)
            # A start takes as long as the machine is busy: every second kill waits for its end.
            while kill % 2 and not (directory / "run.json").exists():
                assert session.process.is_alive(), session.text()
            time.sleep(moment.uniform(0.1, 1.2))
            session.send(moment.choice([signal.SIGKILL, signal.SIGTERM]))
            session.wait()

    killed_at_times(fresh, 6)
    code, text = run(tmp_path, *(resume if (directory / "run.json").exists() else fresh))
    assert code == 0, text
    assert len(answers(directory)) == 4000
    assert set(journal_ids(directory).values()) == {1}
    cut = [row for row in lines(directory / "results.jsonl") if is_cut(row)]
    assert cut

    killed_at_times(redo, 6)
    code, text = run(tmp_path, *redo)
    assert code == 0, text
    assert [row["custom_id"] for row in lines(directory / "results.jsonl")] == [
        line["id"] for line in asked
    ]
    counts = journal_ids(directory)
    # Asked for six times, and each was made again once.
    assert set(counts.values()) == {1, 2}
    assert {name for name, count in counts.items() if count == 2} == {r["custom_id"] for r in cut}


def is_cut(row: dict[str, Any]) -> bool:
    return bool(row["response"]["body"]["choices"][0]["finish_reason"] == "length")


def test_what_a_crash_cut_off_is_dropped_and_said(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", REQUESTS, "--limit", 20, "--engine", "simulated", "-o", tmp_path / "run")
    assert uellm(*arguments) == 0
    journal = tmp_path / "run" / "journal"
    journal.write_bytes(journal.read_bytes()[:-25])
    capsys.readouterr()
    assert uellm("run", "--resume", "-o", tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "results kept from before: 19; the last record was cut off" in said
    assert len(answers(tmp_path / "run")) == 20
