"""What `uellm profile` shows and writes, at the widths that people have."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.builders import profiled
from tests.conftest import REPOSITORY
from uellm_cli.atomic import write_json
from uellm_cli.cli.profile_view import HEAVIEST, heaviest, heaviest_table, memory_table, trust_words
from uellm_cli.profiler.learning.saved import DESCRIPTION, Description
from uellm_cli.profiler.resources import BatchMemory
from uellm_cli.profiler.trust import Trust, trust
from uellm_cli.report.histogram import LengthBars, LengthBin, length_bins
from uellm_cli.types import QUANTILE_LEVELS

SAMPLES = REPOSITORY / "sample_data"
REQUESTS = SAMPLES / "requests.jsonl"
LLAMA_70B = SAMPLES / "models" / "llama-70b.json"
Command = Callable[..., int]


def shown(renderable: object, width: int = 80, encoding: str = "utf-8") -> list[str]:
    """The lines that a terminal of this width and encoding gets."""
    raw = BytesIO()
    file = TextIOWrapper(raw, encoding=encoding, newline="\n")
    Console(file=file, width=width, highlight=False).print(renderable)
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


# --- Bins ----------------------------------------------------------------------------------------


def test_a_request_counts_in_a_bin_with_the_share_of_its_lengths_there() -> None:
    # Up to 1.5 lie 0.05 + 0.5·0.05 = 0.075; up to 3.5 0.25 + 0.5·0.25 = 0.375; up to 7.5
    # 0.95 + 0.5·0.04 = 0.97; beyond it the rest.
    bins = length_bins(np.array([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=float))
    assert [(b.low, b.high) for b in bins] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    assert [b.requests for b in bins] == pytest.approx([0.075, 0.3, 0.595, 0.03])


def test_lengths_that_are_known_lie_in_one_bin() -> None:
    bins = length_bins(np.full((3, len(QUANTILE_LEVELS)), 64.0))
    assert [(b.low, b.high) for b in bins] == [(64, 127)]
    assert bins[0].requests == pytest.approx(3)
    assert length_bins(np.zeros((0, len(QUANTILE_LEVELS)))) == ()


ROWS = st.lists(
    st.lists(st.floats(1, 200_000), min_size=8, max_size=8).map(sorted), min_size=1, max_size=9
)


@given(ROWS)
def test_every_request_is_in_the_bins_exactly_once(rows: list[list[float]]) -> None:
    bins = length_bins(np.array(rows))
    assert sum(b.requests for b in bins) == pytest.approx(len(rows))
    assert all(b.requests > -1e-9 for b in bins)
    assert [b.low for b in bins[1:]] == [b.high + 1 for b in bins[:-1]]
    assert bins[0].low <= min(row[0] for row in rows) + 0.5 < bins[0].high + 1
    assert bins[-1].low <= max(row[-1] for row in rows) + 0.5 < bins[-1].high + 1


# --- Bars ----------------------------------------------------------------------------------------

BINS = (
    LengthBin(1, 1, 1000.0),
    LengthBin(2, 3, 500.0),
    LengthBin(4, 7, 0.0),
    LengthBin(8, 15, 0.4),
)


def test_bars_are_as_long_as_their_bins_are_full() -> None:
    lines = shown(LengthBars(BINS), width=80)
    bars = [line.count("█") for line in lines]
    assert bars[0] == 80 - len("  8-15 ") - len(" 1,000")
    assert bars[1] == bars[0] // 2
    assert bars[2:] == [0, 0]
    assert "▏" in lines[3]  # little is not nothing
    assert [line.split()[-1] for line in lines] == ["1,000", "500", "0", "1"]
    assert lines[3].rstrip().endswith("< 1")


def test_bars_are_ascii_where_the_terminal_knows_no_blocks() -> None:
    lines = shown(LengthBars(BINS), encoding="ascii")
    bars = [line.count("#") for line in lines]
    assert bars[1] == pytest.approx(bars[0] / 2, abs=1)
    assert bars[2:] == [0, 1]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bars_fit_the_terminal_and_80_columns(width: int, encoding: str) -> None:
    wide = (*BINS, LengthBin(65_536, 131_071, 1_000_000.0))
    lines = shown(LengthBars(wide), width, encoding)
    assert len(lines) == len(wide)
    assert all(cell_len(line) <= min(width, 80) for line in lines)


# --- Tables --------------------------------------------------------------------------------------


def batches(overhead: int = 0) -> list[BatchMemory]:
    return [
        BatchMemory(rows, 141 * 10**9, 10**8 * rows, 10**7 * rows, overhead, 142 * 10**9, rows < 64)
        for rows in (1, 64)
    ]


@pytest.mark.parametrize("overhead", [0, 859_000_000])
def test_what_fits_the_machine_is_marked_in_80_columns(overhead: int) -> None:
    lines = shown(memory_table(batches(overhead), "a/rather/long/path/to/some/topology.yaml"))
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[-2].split()[0] == "1"
    assert [line.split()[-1] for line in lines[-2:]] == ["yes", "no"]
    assert ("859.0 MB" in lines[-1]) is bool(overhead)
    assert "6.4 GB" in lines[-1]


def test_the_heaviest_come_first_and_ties_by_id() -> None:
    requests = [profiled(f"{i:02}", output=i // 2) for i in range(30)]
    assert [r.custom_id for r in heaviest(requests)[:4]] == ["28", "29", "26", "27"]
    assert len(heaviest(requests)) == HEAVIEST


@pytest.mark.parametrize("name", ["x" * 300, "[red]x[/red]\x1b[2J", "two\nlines", "漢" * 100])
def test_ids_from_outside_neither_break_lines_nor_inject(name: str) -> None:
    lines = shown(heaviest_table([profiled(name, output=100_000)]))
    assert all(cell_len(line) <= 80 for line in lines)
    assert all(char.isprintable() for line in lines for char in line)
    assert "100,000" in lines[-1]


# --- Trust ---------------------------------------------------------------------------------------


def saved(folder: Path, model: str | None) -> str:
    description = Description(
        kind="ngram", rows=1200, censored=7, seed=0, data=("chats.jsonl",),
        trained=datetime(2026, 1, 1, tzinfo=UTC), versions={}, model=model,
    )  # fmt: skip
    write_json(folder / DESCRIPTION, description)
    return str(folder)


def test_coverage_is_only_spoken_of_for_the_model_that_answers_are_known_of(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, "org/model")
    own = trust(folder, {}, "ngram", model="org/model")
    other = trust(folder, {}, "ngram", model="org/other")
    assert own == Trust("ngram", "chats.jsonl", 1200, 7, "org/model", is_adapted=True)
    assert "1,200 answers of org/model, 7 of them cut" in trust_words(own)
    assert "About 90 % of answers should be within their p90" in trust_words(own)
    assert "no coverage is promised without a pilot" in trust_words(other)
    assert "About 90 %" not in trust_words(other)


def test_a_predictor_whose_model_is_not_known_promises_nothing(tmp_path: Path) -> None:
    unknown = trust(saved(tmp_path, None), {}, "ngram", model="org/model")
    assert not unknown.is_adapted
    assert "no coverage is promised" in trust_words(unknown)


def test_a_model_s_folder_is_known_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "other" / "model").mkdir(parents=True)
    folder = saved(tmp_path, str(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    assert trust(folder, {}, "ngram", model="model").is_adapted
    assert trust(folder, {}, "ngram", model="./other/../model").is_adapted
    assert not trust(folder, {}, "ngram", model="other/model").is_adapted


def test_a_folder_given_as_an_option_is_read_too(tmp_path: Path) -> None:
    folder = saved(tmp_path, "m")
    assert trust("ngram", {"folder": folder}, "ngram", model="m").rows == 1200


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("constant", {}, "Azure"),
        ("constant", {"tokens": "..."}, "figures that were given"),
        ("prompt-length", {}, "Azure"),
    ],
)
def test_what_a_predictor_without_a_folder_stands_on_is_told(
    name: str, options: dict[str, object], told: str
) -> None:
    words = trust_words(trust(name, options, name, model="org/model"))
    assert words.startswith(f"lengths by {name}, from ")
    assert told in words
    assert "no coverage is promised" in words


def test_lengths_that_were_told_are_not_predicted() -> None:
    words = trust_words(trust("oracle", {}, "oracle", model="org/model"))
    assert words.endswith("in the requests themselves, taken as they are.")
    assert "pilot" not in words


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def profile(uellm: Command, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """The command's --json document, and what it told people."""

    def run(*arguments: object) -> tuple[Any, str]:
        assert uellm("profile", *arguments, "--predictor", "constant", "--json") == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return run


def test_the_table_and_the_document_have_the_same_figures(
    profile: Callable[..., tuple[Any, str]], tmp_path: Path
) -> None:
    table = tmp_path / "profile.parquet"
    document, _ = profile(REQUESTS, "-o", table, "--topology", SAMPLES / "topologies" / "cpu.yaml")
    rows = {row["custom_id"]: row for row in pq.read_table(table).to_pylist()}
    assert len(document["requests"]) == len(rows) == 200
    for request in document["requests"]:
        row = rows[request["custom_id"]]
        assert row["prompt_tokens"] == request["prompt_tokens"]
        assert row["kv_bytes_p90"] == request["kv_bytes"]
        columns = [row[f"output_tokens_p{round(level * 100):02}"] for level in QUANTILE_LEVELS]
        assert columns == request["output"]["tokens"]
        assert row["prefill_s"] == request["prefill_s"] > 0
        assert row["decode_s_p50"] == request["decode_s_p50"] > 0
        sources = [row[name] for name in ("output_source", "kv_bytes_source", "seconds_source")]
        assert sources == ["constant", "specified", document["time"]["source"]]
    assert document["tokens"]["prompt"] == sum(row["prompt_tokens"] for row in rows.values())
    expected = document["tokens"]["output_expected"]
    assert document["tokens"]["output_p05"] < expected < document["tokens"]["output_p95"]
    assert sum(each["requests"] for each in document["lengths"]) == pytest.approx(200)
    assert document["heaviest"][0] in rows


def test_a_model_that_has_no_room_has_no_seconds_and_the_reason_is_told(
    profile: Callable[..., tuple[Any, str]], tmp_path: Path
) -> None:
    table = tmp_path / "profile.parquet"
    topology = SAMPLES / "topologies" / "4x3090.yaml"
    document, told = profile(REQUESTS, "--model", LLAMA_70B, "--topology", topology, "-o", table)
    assert document["time"] is None
    assert "141.1 GB for weights" in document["time_problem"]
    assert not any(batch["fits"] for batch in document["memory"])
    rows = pq.read_table(table).to_pylist()
    assert {(r["prefill_s"], r["decode_s_p50"], r["seconds_source"]) for r in rows} == {
        (None, None, None)
    }
    assert all(row["kv_bytes_p90"] > 0 for row in rows)
    assert "not known, since the model has no room on" in " ".join(told.split())


def test_what_fits_and_how_long_it_takes_is_the_machines(
    profile: Callable[..., tuple[Any, str]],
) -> None:
    topology = SAMPLES / "topologies" / "8xh100.yaml"
    document, told = profile(REQUESTS, "--model", LLAMA_70B, "--topology", topology)
    assert [batch["rows"] for batch in document["memory"]] == [1, 4, 16, 64]
    assert all(batch["fits"] for batch in document["memory"])
    kv = [batch["kv_bytes"] for batch in document["memory"]]
    assert kv == sorted(kv)
    found = document["time"]
    assert found["source"] == "specified"
    alone = sum(r["prefill_s"] + r["decode_s_p50"] for r in document["requests"])
    assert 0 < found["together_s"] < alone
    for words in ("Answers by predicted length", "Memory", "heaviest", "no coverage is promised"):
        assert words in " ".join(told.split())
    assert f"Next: uellm plan {REQUESTS} --model {LLAMA_70B} --topology {topology}" in told


def test_all_that_is_told_fits_80_columns_but_the_next_command(
    profile: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, told = profile(REQUESTS, "--model", LLAMA_70B)
    lines = [line for line in told.splitlines() if not line.startswith("Next: ")]
    assert len(lines) > 30
    assert all(cell_len(line) <= 80 for line in lines)


def test_colour_is_left_out_where_the_environment_says_no_color() -> None:
    def codes(environment: dict[str, str]) -> str:
        out = StringIO()
        console = Console(file=out, width=80, force_terminal=True, _environ=environment)
        console.print(LengthBars(BINS))
        console.print(memory_table(batches(), "this machine"))
        return out.getvalue()

    green, cyan = "\x1b[32m", "\x1b[36m"
    coloured = codes({"TERM": "xterm"})
    assert green in coloured
    assert cyan in coloured
    plain = codes({"TERM": "xterm", "NO_COLOR": "1"})
    assert green not in plain
    assert cyan not in plain


def test_a_profile_of_200_requests_comes_at_once() -> None:
    # About half a second; the best of three, so that a busy machine is no failure.
    def seconds() -> float:
        began = time.perf_counter()
        command: Sequence[object] = ("-m", "uellm_cli", "profile", REQUESTS, "--predictor",
                                     "constant")  # fmt: skip
        subprocess.run([sys.executable, *map(str, command)], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 3.0
