"""Workers as processes: one that answers, and those that die, hang or talk nonsense."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from uellm_cli.bench import serve
from uellm_cli.bench.engine import EngineBench, environment, run_rounds, running
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
    names = [entrant.name for entrant in find_entrants([], tmp_path)]
    assert "static" in names
    assert "plain" in names
    assert "missing" not in names
    assert "simulated" not in names
    (chosen,) = find_entrants(["static:longest-first"], None)
    assert chosen.command[-2:] == ("static", "longest-first")
    with pytest.raises(UsageError, match="no such folder"):
        find_entrants([], tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no environment yet"):
        find_entrants(["missing"], tmp_path)
    with pytest.raises(UsageError, match=r"there are: .*static"):
        find_entrants(["nothing"], tmp_path)


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
