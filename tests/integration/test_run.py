"""The main job through the front door, on the bundled model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY

SAMPLES = REPOSITORY / "sample_data"
REQUESTS = SAMPLES / "requests.jsonl"
SLO_FILE = SAMPLES / "slo.yaml"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, with its output captured."""
    return subprocess.Popen(
        [sys.executable, "-m", "uellm_cli", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any], str]:
    """A whole run of the sample requests: its directory, its JSON and its terminal text."""
    directory = tmp_path_factory.mktemp("run") / "sample"
    process = start("run", REQUESTS, "--slo-file", SLO_FILE, "-o", directory, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    return directory, json.loads(out), err


def test_every_sample_request_is_answered_once(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    directory, document, _ = finished
    asked = {line.get("custom_id", line.get("id")) for line in lines(REQUESTS)}
    answered = [row["custom_id"] for row in lines(directory / "results.jsonl")]
    assert len(answered) == 200
    assert set(answered) == asked
    assert lines(directory / "errors.jsonl") == []
    assert (document["completed"], document["failed"]) == (200, 0)


def test_a_run_directory_holds_all_that_is_promised(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    directory, _, _ = finished
    assert {path.name for path in directory.iterdir()} == {
        "run.json",
        "plan.json",
        "journal",
        "results.jsonl",
        "errors.jsonl",
        "latency.parquet",
        "report.json",
    }
    info = json.loads((directory / "run.json").read_text())
    assert info["bundled_model"] is True
    assert set(info["versions"]) >= {"uellm", "torch", "transformers", "python"}
    assert set(info["inputs"]) == {str(REQUESTS), str(SLO_FILE)}
    assert all(len(digest) == 64 for digest in info["inputs"].values())
    plan = json.loads((directory / "plan.json").read_text())
    planned = [c for batch in plan["schedule"]["batches"] for c in batch["custom_ids"]]
    assert len(set(planned)) == len(planned) == 200


def test_the_summary_is_on_stderr_and_says_that_the_model_is_a_toy(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    _, _, err = finished
    assert "bundled model" in err
    assert "200 of 200 answered" in err
    for name in ("interactive", "nightly", "default", "TTFT", "TPOT", "E2E"):
        assert name in err


def test_latencies_are_in_order_and_agree_with_the_report(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    directory, document, _ = finished
    rows = pq.read_table(directory / "latency.parquet").to_pylist()
    assert len(rows) == 200
    for row in rows:
        assert 0 < row["queue_s"] < row["ttft_s"] <= row["e2e_s"] <= document["duration"]
        assert row["met"] == (row["e2e_s"] <= row["deadline_s"])
        assert (row["blame"] == "none") == row["met"]
        assert row["predicted_tokens_p50"] <= row["predicted_tokens_p90"]
    assert sum(row["output_tokens"] for row in rows) == document["total_output_tokens"]
    assert document["slo_attainment"] == sum(row["met"] for row in rows) / 200
    assert {entry["name"]: entry["requests"] for entry in document["classes"]} == {
        "interactive": 60,
        "default": 100,
        "nightly": 40,
    }


def test_answers_end_by_themselves_in_openai_s_form(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    directory, _, _ = finished
    rows = lines(directory / "results.jsonl")
    bodies = [row["response"]["body"] for row in rows]
    assert {body["object"] for body in bodies} == {"chat.completion", "text_completion"}
    assert all(body["usage"]["completion_tokens"] > 0 for body in bodies)
    stops = [body["choices"][0]["finish_reason"] for body in bodies]
    assert stops.count("stop") >= 190


def test_a_report_from_the_directory_alone_equals_the_run_s(
    finished: tuple[Path, dict[str, Any], str],
    uellm: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, document, _ = finished
    assert uellm("report", directory, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {key: value for key, value in document.items() if key != "run_dir"}


def test_goodput_targets_replace_the_requests_own(
    finished: tuple[Path, dict[str, Any], str],
    uellm: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, document, _ = finished
    assert uellm("report", directory, "--json", "--goodput", "e2el:3600000") == 0
    generous = json.loads(capsys.readouterr().out)
    assert generous["request_goodput"] == pytest.approx(200 / document["duration"])


def test_parquet_requests_are_answered_as_the_same_jsonl(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    for form in ("jsonl", "parquet"):
        code = uellm(
            "run", SAMPLES / f"requests.{form}", "--limit", 12, "-o", tmp_path / form, "--quiet"
        )
        assert code == 0
    texts = [
        {
            row["custom_id"]: row["response"]["body"]["choices"]
            for row in lines(tmp_path / form / "results.jsonl")
        }
        for form in ("jsonl", "parquet")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


def test_invalid_lines_become_error_rows_and_the_rest_runs(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text(
        '{"custom_id": "good", "prompt": "Is 7 even?", "max_tokens": 8}\n'
        "not json\n"
        '{"custom_id": "bad", "prompt": 5}\n'
        '{"custom_id": "good", "prompt": "again"}\n'
    )
    assert uellm("run", requests, "-o", tmp_path / "run") == 3
    assert [row["custom_id"] for row in lines(tmp_path / "run" / "results.jsonl")] == ["good"]
    errors = lines(tmp_path / "run" / "errors.jsonl")
    assert [(row["error"]["line"], row["error"]["field"]) for row in errors] == [
        (2, "line"),
        (3, "prompt"),
        (4, "custom_id"),
    ]
    assert all(row["error"]["file"] == str(requests) for row in errors)
    assert all(row["error"]["message"] for row in errors)


def test_strict_runs_nothing_and_leaves_nothing(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "fine"}\n{"prompt": 5}\n')
    assert uellm("run", requests, "--strict", "-o", tmp_path / "run") == 2
    assert f"{requests}:2: prompt" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missed_promise_is_an_exit_code_only_when_asked_for(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "Is 7 even?", "max_tokens": 8, "slo": {"deadline": "1ms"}}\n')
    assert uellm("run", requests, "-o", tmp_path / "a") == 0
    assert uellm("run", requests, "-o", tmp_path / "b", "--fail-on-slo-miss") == 4
    (row,) = pq.read_table(tmp_path / "a" / "latency.parquet").to_pylist()
    assert (row["met"], row["blame"]) == (False, "infeasible")


def test_a_simulated_run_takes_virtual_time_and_says_so(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    code = uellm(
        "run", REQUESTS, "--slo-file", SLO_FILE, "--engine", "simulated", "--engine-option",
        "load_s=3600", "-o", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["duration"] > 3600 > time.monotonic() - began
    assert document["completed"] == 200
    assert "simulated" in captured.err


def test_requests_from_standard_input_are_kept_with_the_run(tmp_path: Path) -> None:
    process = start("run", "-", "-o", tmp_path / "run", "--quiet")
    _, err = process.communicate('{"prompt": "Is 7 even?", "max_tokens": 8}\n')
    assert process.returncode == 0, err
    assert (tmp_path / "run" / "requests-piped").exists()
    assert len(lines(tmp_path / "run" / "results.jsonl")) == 1


# --- Interrupted and resumed ---------------------------------------------------------------------


def wait_for_rows(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Returns as soon as the run has written `count` rows."""
    patience = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < patience:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_answers(
    how: signal.Signals, finished: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    process = start("run", REQUESTS, "--slo-file", SLO_FILE, "-o", directory)
    wait_for_rows(process, directory / "results.jsonl", 20)
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130), err
    before = lines(directory / "results.jsonl")
    assert 20 <= len(before) < 200

    out, err = start("report", directory, "--json").communicate()
    partial = json.loads(out)
    assert partial["completed"] == len(before)
    if how is signal.SIGKILL:
        assert "cut off" in err
    else:
        # What was not answered has no kept promise.
        assert partial["failures"] == {"interrupted": 200 - len(before)}
        assert partial["slo_attainment"] <= len(before) / 200

    resumed = start("run", "--resume", "-o", directory, "--quiet")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    after = {row["custom_id"]: row for row in lines(directory / "results.jsonl")}
    assert len(lines(directory / "results.jsonl")) == len(after) == 200
    assert all(after[row["custom_id"]] == row for row in before)
    reference = {row["custom_id"]: row for row in lines(finished[0] / "results.jsonl")}
    for custom_id, row in after.items():
        expected = reference[custom_id]["response"]["body"]
        assert row["response"]["body"]["choices"] == expected["choices"]
        assert row["response"]["body"]["usage"] == expected["usage"]


def test_a_finished_run_is_not_run_again_and_resuming_it_changes_nothing(
    finished: tuple[Path, dict[str, Any], str],
    uellm: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, _, _ = finished
    assert uellm("run", REQUESTS, "-o", directory) == 2
    assert "--resume" in capsys.readouterr().err
    names = ("results.jsonl", "report.json", "run.json", "plan.json")
    before = [(directory / name).read_bytes() for name in names]
    assert uellm("run", "--resume", "-o", directory, "--quiet") == 0
    assert [(directory / name).read_bytes() for name in names] == before


def test_a_resumed_run_tells_the_pause_from_the_queue(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    requests, directory = tmp_path / "requests.jsonl", tmp_path / "run"
    promise = {"deadline": "2h"}
    requests.write_text(
        "".join(
            json.dumps({"id": name, "prompt": "hi", "max_tokens": 4, "slo": promise}) + "\n"
            for name in "ab"
        )
    )
    options = ("--engine", "simulated", "--engine-option", "load_s=0", "--max-batch", 1)
    assert uellm("run", requests, *options, "-o", directory, "--quiet") == 0
    # As if the run had been cut off after its first answer, which came three hours late.
    first = json.loads((directory / "journal").read_bytes().splitlines()[0][9:])
    first["result"]["timing"] = dict.fromkeys(first["result"]["timing"], 3 * 3600.0)
    body = json.dumps(first).encode()
    (directory / "journal").write_bytes(b"%08x %s\n" % (crc32(body), body))
    assert uellm("run", "--resume", "-o", directory, "--quiet") == 0
    blames = {
        row["custom_id"]: row["blame"]
        for row in pq.read_table(directory / "latency.parquet").to_pylist()
    }
    assert blames["b"] == "interrupted"


@pytest.mark.parametrize("missing", ["journal", "run.json"])
def test_a_run_without_its_records_is_not_resumed_and_keeps_its_answers(
    missing: str,
    uellm: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    requests, directory = tmp_path / "requests.jsonl", tmp_path / "run"
    requests.write_text('{"prompt": "hi", "max_tokens": 4}\n')
    assert uellm("run", requests, "--engine", "simulated", "-o", directory, "--quiet") == 0
    answers = (directory / "results.jsonl").read_bytes()
    (directory / missing).unlink()
    for arguments in (["--resume"], [requests]):
        assert uellm("run", *arguments, "-o", directory) == 2
    assert missing in capsys.readouterr().err
    assert (directory / "results.jsonl").read_bytes() == answers


def test_files_that_are_not_the_run_s_are_neither_overwritten_nor_removed(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    mine = tmp_path / "results.jsonl"
    mine.write_text("precious")
    for requests in (REQUESTS, tmp_path / "missing.jsonl"):
        assert uellm("run", requests, "--engine", "simulated", "-o", tmp_path) == 2
    assert mine.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_settings_cannot_change_in_the_middle_of_a_run(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slo_file, directory = tmp_path / "slo.yaml", tmp_path / "run"
    slo_file.write_text("default: {deadline: 60s}\n")
    options = ("--slo-file", slo_file, "--engine", "simulated", "--limit", 5)
    assert uellm("run", REQUESTS, *options, "-o", directory, "--quiet") == 0
    assert uellm("run", "--resume", "-o", directory, "--scheduler", "fifo") == 2
    assert "--scheduler cannot be given with --resume" in capsys.readouterr().err
    slo_file.write_text("default: {deadline: 1s}\n")
    assert uellm("run", "--resume", "-o", directory) == 2
    assert f"{slo_file} changed" in capsys.readouterr().err


def test_an_arrival_time_makes_no_latency_look_better(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    requests = tmp_path / "requests.jsonl"
    line = {"prompt": "hi", "max_tokens": 4, "arrival_s": 100, "slo": {"deadline": "1ms"}}
    requests.write_text(json.dumps(line) + "\n")
    assert uellm("run", requests, "--engine", "simulated", "-o", tmp_path / "run") == 0
    (row,) = pq.read_table(tmp_path / "run" / "latency.parquet").to_pylist()
    assert row["queue_s"] > 0
    assert row["met"] is False


def test_a_plan_of_a_bare_config_can_be_simulated(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    options = ("--engine", "simulated", "--topology", SAMPLES / "topologies" / "8xh100.yaml")
    model = SAMPLES / "models" / "llama-70b.json"
    for name in "ab":
        assert uellm("run", REQUESTS, *options, "--model", model, "-o", tmp_path / name) == 0
    rows = [lines(tmp_path / name / "results.jsonl") for name in "ab"]
    assert all(
        row["response"]["body"]["model"] == f"simulated:{model}" for both in rows for row in both
    )
    # The same run gives the same times, whatever else the machine does.
    tables = [pq.read_table(tmp_path / name / "latency.parquet").to_pylist() for name in "ab"]
    assert tables[0] == tables[1]


def test_a_changed_input_is_named_and_not_resumed(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "Is 7 even?", "max_tokens": 8}\n')
    assert uellm("run", requests, "-o", tmp_path / "run", "--quiet") == 0
    requests.write_text('{"prompt": "Is 8 even?", "max_tokens": 8}\n')
    assert uellm("run", "--resume", "-o", tmp_path / "run") == 2
    assert f"{requests} changed" in capsys.readouterr().err
    assert uellm("run", SAMPLES / "requests.jsonl", "--resume", "-o", tmp_path / "run") == 2
    assert "leave the files out" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_refused_before_anything_loads(
    uellm: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert uellm("run", REQUESTS, "-o", blocked / "run") == 2
    assert str(blocked) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
