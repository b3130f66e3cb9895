"""Workers as processes: one that answers, and those that die, hang or talk nonsense."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from uellm_cli.bench import engine as bench_engine
from uellm_cli.bench import serve
from uellm_cli.bench.engine import (
    EngineBench,
    answered_plainly,
    environment,
    run_rounds,
    running,
)
from uellm_cli.bench.entrants import find_entrants
from uellm_cli.bench.serve import Job
from uellm_cli.bench.summary import Showing
from uellm_cli.bench.workers import Entrant, Worker, WorkerError
from uellm_cli.errors import UsageError

# A peer's script: it loads at once, prints what it should not, and answers as it is asked.
PEER = """
import os
def load(job):
    print("loading", flush=True)
    os.system("echo noise")
    def run(count):
        lengths = job.output_tokens[:count]
        return {"seconds": 0.5, "output_tokens": lengths, "ttft_s": None,
                "tokens": [[7] * n for n in lengths]}
    return run, {"peer": "1.0", "threads": os.environ["OMP_NUM_THREADS"]}
"""
DIES = "import sys; sys.stdin.readline(); print('no such thing', file=sys.stderr); sys.exit(7)"
HANGS = "import time; time.sleep(60)"
TALKS = "print('Loading: 10 %', flush=True); import time; time.sleep(60)"
DIES_LATER = """
def load(job):
    def run(count):
        if count == 2:
            raise SystemExit("out of patience")
        return {"seconds": 0.5, "output_tokens": job.output_tokens[:count]}
    return run, {}
"""


def job(cache: Path) -> Job:
    """Two requests, of which one at a time may run."""
    return Job(
        model="model",
        dtype="float32",
        device="cpu",
        threads=1,
        max_sequences=1,
        prefill_tokens=100,
        context_tokens=10,
        kv_bytes=2**30,
        eos_token_ids=[],
        prompts=[[11, 12], [13]],
        output_tokens=[3, 2],
        cache=str(cache),
    )


def peer(folder: Path, script: str, name: str = "peer") -> Entrant:
    path = folder / name / "worker.py"
    path.parent.mkdir()
    path.write_text(script)
    return Entrant(name, (sys.executable, "-P", str(serve.__file__), str(path)), is_peer=True)


@contextmanager
def started(entrant: Entrant, folder: Path) -> Iterator[Worker]:
    environ = environment(job(folder), entrant)
    with Worker(entrant.command, folder / "log", environ) as worker:
        yield worker


def test_a_peer_without_uellm_answers_and_its_noise_is_kept_out(tmp_path: Path) -> None:
    with started(peer(tmp_path, PEER), tmp_path) as worker:
        ready = worker.begin(job(tmp_path), timeout_s=30)
        assert ready.versions == {"peer": "1.0", "threads": "1"}
        assert worker.round(1, timeout_s=30).output_tokens == [3]
        told = worker.round(2, timeout_s=30)
        assert told.tokens == [[7, 7, 7], [7, 7]]
        assert worker.cpu_s() > 0
    assert (tmp_path / "log").read_text().split() == ["loading", "noise"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (DIES, "ended with code 7: no such thing"),
        (HANGS, "no answer within 0.5 s"),
        (TALKS, "answered with 'Loading: 10 %'"),
    ],
)
def test_a_worker_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr("uellm_cli.bench.workers.GRACE_S", 0.5)
    entrant = Entrant("bad", (sys.executable, "-c", program))
    timeout_s = 0.5 if program == HANGS else 30
    with started(entrant, tmp_path) as worker, pytest.raises(WorkerError, match=reason):
        worker.begin(job(tmp_path), timeout_s)


def test_a_worker_s_own_processes_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uellm_cli.bench.workers.GRACE_S", 0.1)
    pid = tmp_path / "pid"
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with started(Entrant("nested", (sys.executable, "-c", program)), tmp_path):
        until = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
    child = int(pid.read_text())
    until = time.monotonic() + 30
    while psutil.pid_exists(child) and time.monotonic() < until:
        if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    assert not psutil.pid_exists(child) or (psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_the_others_go_on_without_who_is_out_and_turns_move_on(tmp_path: Path) -> None:
    entrants = [
        peer(tmp_path, PEER, "a"),
        peer(tmp_path, DIES_LATER, "b"),
        Entrant("c", (sys.executable, "-c", DIES)),
        peer(tmp_path, PEER, "d"),
    ]
    showings = [Showing(entrant) for entrant in entrants]
    asked = EngineBench(("small",), ("float32",), threads=1, rounds=3, timeout_s=30)
    said: list[str] = []
    with running(showings, job(tmp_path), 30, said.append) as workers:
        run_rounds(showings, workers, job(tmp_path), asked, said.append)
    assert [len(showing.rounds) for showing in showings] == [3, 0, 0, 3]
    assert showings[1].failure == "ended with code 1: out of patience"
    assert showings[2].failure == "ended with code 7: no such thing"
    measured = [line.split()[4] for line in said if line.startswith("round")]
    assert measured == ["a", "d", "d", "a", "a", "d"]
    # Workers that wait do not spin.
    assert all(s.idle_cpu_s < 0.5 * s.idle_s for s in showings if s.idle_s)


def test_entrants_are_ours_and_the_peers_that_are_installed(tmp_path: Path) -> None:
    peer(tmp_path, PEER, "plain")
    peer(tmp_path, PEER, "missing")
    (tmp_path / "missing" / "requirements.txt").write_text("something\n")
    found = find_entrants([], tmp_path)
    assert {entrant.name for entrant in found} == {"inflight", "static", "plain"}
    assert not any(entrant.is_longest_first for entrant in found)
    with pytest.raises(UsageError, match="no such folder"):
        find_entrants([], tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no environment yet"):
        find_entrants(["missing"], tmp_path)
    with pytest.raises(UsageError, match=r"there are: .*static"):
        find_entrants(["nothing"], tmp_path)


def test_anyone_can_be_given_the_longest_first_and_keeps_its_command(tmp_path: Path) -> None:
    peer(tmp_path, PEER, "plain")
    names = ["inflight:longest-first", "plain:longest-first", "plain", "inflight:torch"]
    found = find_entrants([*names, "inflight:torch:longest-first"], tmp_path)
    assert [entrant.name for entrant in found[:4]] == names
    assert [entrant.is_longest_first for entrant in found] == [True, True, False, False, True]
    assert found[1].command == found[2].command
    assert found[0].command[-1] == "inflight"
    assert found[3].command[-2:] == found[4].command[-2:] == ("inflight", "kernels=torch")


@pytest.mark.parametrize("wrong", ["inflight:longest", "static:torch", "plain:", ":longest-first"])
def test_a_name_with_a_suffix_that_there_is_not_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UsageError, match=r"there are: .*inflight:torch, each also as NAME:longest"):
        find_entrants([wrong], tmp_path)


def test_a_peer_s_answers_are_put_back_from_the_order_it_was_given(tmp_path: Path) -> None:
    # Its answers tell the prompts that it had: the longer answer is the second request's.
    script = PEER.replace("[7] * n for n in lengths", "prompt for prompt in job.prompts[:count]")
    entrant = replace(peer(tmp_path, script), is_longest_first=True)
    asked = replace(job(tmp_path), output_tokens=[2, 3])
    showings = [Showing(entrant)]
    rounds = EngineBench(("small",), ("float32",), threads=1, rounds=1, timeout_s=30)
    with running(showings, asked, 30, print) as workers:
        run_rounds(showings, workers, asked, rounds, print)
    (told,) = showings[0].rounds
    assert told.output_tokens == [2, 3]
    assert told.tokens == asked.prompts
    assert (tmp_path / "logs" / "peer-longest-first.log").exists()


@pytest.mark.parametrize("own", [None, "500"])
def test_a_worker_starts_with_what_uellm_run_sets_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    script = PEER.replace("OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    with started(peer(tmp_path, script), tmp_path) as worker:
        assert worker.begin(job(tmp_path), 30).versions["threads"] == (own or "10000")


def test_the_reference_is_asked_for_the_first_requests_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = PEER.replace('"peer": "1.0"', '"peer": f"{job.max_sequences} {len(job.prompts)}"')
    monkeypatch.setattr(bench_engine, "REFERENCE", peer(tmp_path, script, "reference"))
    some = replace(job(tmp_path), max_sequences=64)
    reference = answered_plainly(some, checking(1), print)
    assert reference.answers == ((7, 7, 7),)
    assert (reference.check.requests, reference.check.output_tokens) == (1, 3)
    assert reference.check.versions["peer"] == "1 1"
    # More than there are is all that there are; none is nobody asked.
    assert answered_plainly(some, checking(16), print).answers == ((7, 7, 7), (7, 7))
    assert answered_plainly(some, checking(0), print).answers == ()


@pytest.mark.parametrize("program", [DIES, TALKS])
def test_a_reference_that_fails_leaves_the_others_to_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr("uellm_cli.bench.workers.GRACE_S", 0.5)
    entrant = Entrant("reference", (sys.executable, "-c", program))
    monkeypatch.setattr(bench_engine, "REFERENCE", entrant)
    said: list[str] = []
    reference = answered_plainly(job(tmp_path), checking(2), said.append)
    assert reference.answers == ()
    assert reference.check.failure
    assert "answers are not compared" in said[-1]


def checking(count: int) -> EngineBench:
    return EngineBench(("small",), ("float32",), threads=1, check=count, timeout_s=30)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"models": ("huge",)}, "no model 'huge'"),
        ({"dtypes": ("int8",)}, "no dtype 'int8'"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"models": ("bundled",), "lengths": Path("trace.csv")}, "has its own"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(
    wrong: dict[str, Any], reason: str
) -> None:
    asked: dict[str, Any] = {"models": ("small",), "dtypes": ("float32",), "threads": 1}
    with pytest.raises(UsageError, match=reason):
        EngineBench(**asked | wrong)
