"""The planning commands through the front door: one JSON document out, text on stderr."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import REPOSITORY
from uellm_cli.cli.output import amount, duration

SAMPLES = REPOSITORY / "sample_data"
REQUESTS = SAMPLES / "requests.jsonl"
Command = Callable[..., int]


@pytest.fixture
def document(uellm: Command, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """A command's --json document; everything for people must be on stderr."""

    def run(*arguments: object) -> dict[str, Any]:
        assert uellm(*arguments, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


@pytest.mark.parametrize(
    ("template", "line", "is_said"),
    [
        (False, {"id": "a", "prompt": "Count."}, True),
        (False, {"id": "a", "url": "/v1/completions", "body": {"prompt": "1 2 3"}}, False),
        (True, {"id": "a", "prompt": "Count."}, False),
    ],
    ids=["a chat", "no chat", "a template"],
)
def test_chats_that_a_model_has_no_template_for_are_said(
    template: bool,
    line: dict[str, Any],
    is_said: bool,
    uellm: Command,
    tiny_llm: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_llm, tmp_path / "model")
    if not template:
        (tmp_path / "model/chat_template.jinja").unlink()
    if "url" in line:
        line = {"custom_id": line["id"], "method": "POST", "url": line["url"], "body": line["body"]}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line))
    assert uellm("plan", tmp_path / "requests.jsonl", "--model", tmp_path / "model") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert ("has no chat template: messages are given to it joined" in told) is is_said


def test_a_profile_counts_tokens_as_the_model_does(
    document: Callable[..., dict[str, Any]], tiny_llm: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    table = tmp_path / "profile.parquet"
    found = document("profile", REQUESTS, "-o", table)
    assert found["prompt_tokens_source"] == "measured"
    counted = {request["custom_id"]: request["prompt_tokens"] for request in found["requests"]}
    assert {row["custom_id"]: row["prompt_tokens"] for row in pq.read_table(table).to_pylist()} == (
        counted
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    for line in map(json.loads, REQUESTS.read_text().splitlines()):
        body = line.get("body", line)
        if line.get("url") == "/v1/completions":
            ids = tokenizer(body["prompt"])["input_ids"]
        else:
            asked = [{"role": "user", "content": body.get("prompt")}]
            text = tokenizer.apply_chat_template(
                body.get("messages", asked), add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert counted[line.get("custom_id", line.get("id"))] == len(ids)


def test_a_plan_holds_verdict_schedule_and_placement(
    document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    found = document("plan", REQUESTS, "--slo-file", SAMPLES / "slo.yaml", "-o", path)
    assert json.loads(path.read_text()) == found
    assert sum(entry["requests"] for entry in found["verdict"]["classes"]) == 200
    assert found["verdict"]["makespan_s"]["mean"] > 0
    assert found["verdict"]["step_source"] == "assumed"
    placed = [c for batch in found["schedule"]["batches"] for c in batch["custom_ids"]]
    assert len(set(placed)) == 200
    stages = found["placement"]["replicas"][0]["stages"]
    assert stages[0]["first_layer"] == 0
    assert stages[-1]["last_layer"] == len(found["model"]["layers"])


def test_a_plan_without_weights_or_gpu_says_that_tokens_are_estimated(
    document: Callable[..., dict[str, Any]],
) -> None:
    found = document(
        "profile", REQUESTS, "--model", SAMPLES / "models" / "llama-70b.json", "--limit", 5
    )
    assert found["prompt_tokens_source"] == "assumed"
    assert len(found["requests"]) == 5


@pytest.mark.parametrize("algorithm", ["helr", "he", "lr"])
def test_a_70b_model_is_placed_on_two_of_eight_h100s_in_order(
    algorithm: str, document: Callable[..., dict[str, Any]]
) -> None:
    found = document(
        "plan-deploy", "--dry-run", "--algorithm", algorithm,
        "--topology", SAMPLES / "topologies" / "8xh100.yaml",
        "--model", SAMPLES / "models" / "llama-70b.json",
    )  # fmt: skip
    # 141 GB of weights on devices of 80 GiB: two are the fewest, and more only add transfers.
    layers = [(s["first_layer"], s["last_layer"]) for r in found["replicas"] for s in r["stages"]]
    assert len(layers) == 2
    assert (layers[0][0], layers[-1][1]) == (0, 80)
    assert layers[0][1] == layers[1][0]
    assert set(found["device_map"].values()) == {0, 1}


def test_a_dry_run_writes_nothing_even_when_told_where(uellm: Command, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    assert uellm("plan-deploy", "--dry-run", "-o", path) == 0
    assert not path.exists()
    assert uellm("plan-deploy", "-o", path) == 0
    assert json.loads(path.read_text())["device_map"]


def test_a_placement_for_requests_makes_room_for_their_size(
    document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    small.write_text('{"prompt": "hi", "max_tokens": 10}\n' * 16)
    large.write_text('{"prompt": "hi", "max_tokens": 900}\n' * 16)

    def kv_bytes(path: Path) -> int:
        found = document("plan-deploy", path, "--topology", SAMPLES / "topologies" / "cpu.yaml")
        return int(found["replicas"][0]["stages"][0]["kv_bytes"])

    assert kv_bytes(small) < kv_bytes(large) / 5


def test_a_topology_that_was_written_is_read_back_the_same(
    document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "topology.yaml"
    for sample in sorted((SAMPLES / "topologies").glob("*.yaml")):
        first = document("topology", "--topology", sample, "-o", path)
        again = document("topology", "--topology", path)
        assert again["devices"] == first["devices"]
        assert again["links"] == first["links"]
    machine = document("topology", "-o", path)
    assert yaml.safe_load(path.read_text())["devices"]
    assert len(machine["devices"]) >= 1


def test_version_names_what_answers_depend_on(
    uellm: Command, document: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = document("version")
    assert set(found) >= {"uellm", "python", "torch", "transformers"}
    assert uellm("version") == 0
    assert f"uellm {found['uellm']}" in capsys.readouterr().out


def test_quiet_says_nothing(uellm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("profile", "plan"):
        assert uellm(command, REQUESTS, "--quiet") == 0
    assert uellm("topology", "--quiet") == 0
    assert uellm("plan-deploy", "--dry-run", "--quiet") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_ids_and_class_names_never_become_markup_or_control_characters(
    uellm: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "[red]x[/red]\x1b[2J\r\n\u202eevil"
    requests = tmp_path / "requests.jsonl"
    line = {"custom_id": hostile, "prompt": "hi", "max_tokens": 5, "slo": {"deadline": "1ms"}}
    requests.write_text(json.dumps(line) + "\n")
    assert uellm("profile", requests) == 0
    assert uellm("plan", requests) == 0
    assert uellm("run", requests, "--engine", "simulated", "-o", tmp_path / "run") == 0
    shown = capsys.readouterr().err
    assert "[red]x" in shown
    assert not {"\x1b", "\r", "\u202e"} & set(shown)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2.5e6, "2.5 MB"),
        (8e10, "80.0 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes_are_shown_in_powers_of_ten(size: float, text: str) -> None:
    assert amount(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (5.04, "5.04 s"), (99, "99 s"), (150, "2 min 30 s"), (7384, "2 h 3 min")],
)
def test_durations_are_shown_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
