"""`uellm bench engine` through the front door: a table on stderr, one JSON line on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from uellm_cli.engines.inflight.native import load

Command = Callable[..., int]


@pytest.fixture
def line(
    uellm: Command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """The line of a bench with one round of each engine."""

    def run(*arguments: object, engines: Sequence[str] = ("static",)) -> dict[str, Any]:
        named = (part for name in engines for part in ("--engine", name))
        command = ("bench", "engine", *named, "--rounds", 1, "--json")
        assert uellm(*command, "--threads", 1, "--cache", tmp_path / "cache", *arguments) == 0
        shown = capfd.readouterr()
        assert "x floor" in shown.err
        (only,) = shown.out.splitlines()
        found: dict[str, Any] = json.loads(only)
        return found

    return run


def test_a_random_model_answers_as_long_as_it_is_told(line: Callable[..., dict[str, Any]]) -> None:
    found = line("--model", "small", "--requests", 4, "--seed", 1)
    assert found["rounds"] == 1
    assert found["machine"]["torch"]
    (contest,) = found["contests"]
    assert contest["parameters"] == pytest.approx(13.8e6, rel=0.01)
    assert contest["forced_lengths"]
    (row,) = contest["rows"]
    assert row["failure"] is None
    assert row["output_tokens"] == contest["output_tokens"] > 4
    assert row["times_floor"] > 1
    assert row["agreement"] == 1.0
    assert row["relative"] is None
    assert contest["check"]["requests"] == 4
    assert contest["check"]["output_tokens"] == contest["output_tokens"]
    assert 0 < row["ttft_p50_s"] <= row["median_s"]


def test_the_bundled_model_ends_its_answers_itself(line: Callable[..., dict[str, Any]]) -> None:
    (contest,) = line("--model", "bundled", "--requests", 6, "--dtype", "bfloat16")["contests"]
    assert not contest["forced_lengths"]
    (row,) = contest["rows"]
    assert row["failure"] is None
    assert 6 < row["output_tokens"] == contest["output_tokens"]
    # bfloat16 is compared, too; rounding may turn a near-tie.
    assert 0.5 < row["agreement"] <= 1.0


def test_our_kernels_are_told_and_can_be_left_out(line: Callable[..., dict[str, Any]]) -> None:
    names = ("inflight:longest-first", "inflight:torch:longest-first")
    (contest,) = line("--requests", 3, "--check", 0, engines=names)["contests"]
    assert contest["check"] is None
    ours, without = contest["rows"]
    assert (ours["engine"], without["engine"]) == names
    kernels = load()
    assert ours["versions"]["kernels"] == ("torch" if kernels is None else kernels.level)
    assert without["versions"]["kernels"] == "torch"
    assert ours["relative"] == 1.0
    assert without["relative"] > 0
    assert ours["agreement"] is without["agreement"] is None


def test_a_wrong_name_is_refused_at_once(uellm: Command) -> None:
    assert uellm("bench", "engine", "--model", "huge") == 2
    assert uellm("bench", "engine", "--engine", "none") == 2
