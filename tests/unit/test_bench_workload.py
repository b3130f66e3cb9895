"""Requests to measure with: seeded, heavy-tailed, or of a trace's lengths."""

from __future__ import annotations

import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from uellm_cli.bench.workload import from_requests, from_trace, heavy_tailed
from uellm_cli.errors import RequestFileError, UsageError


def test_the_same_seed_is_the_same_work_and_another_is_not() -> None:
    assert heavy_tailed(20, 1000, seed=3) == heavy_tailed(20, 1000, seed=3)
    assert heavy_tailed(20, 1000, seed=3) != heavy_tailed(20, 1000, seed=4)
    # A smaller measurement is the beginning of a larger one.
    assert heavy_tailed(20, 1000, seed=3)[:5] == heavy_tailed(5, 1000, seed=3)


def test_lengths_have_a_heavy_tail_and_ids_are_of_the_vocabulary() -> None:
    works = heavy_tailed(256, 8192, seed=0)
    outputs = [work.output_tokens for work in works]
    prompts = [len(work.prompt_token_ids) for work in works]
    assert 2 <= min(outputs) <= max(outputs) <= 256
    assert 4 <= min(prompts) <= max(prompts) <= 512
    assert 30 < statistics.median(outputs) < 50
    assert max(outputs) > 5 * statistics.median(outputs)
    assert all(10 <= token < 8182 for work in works for token in work.prompt_token_ids)


def azure_trace(path: Path, rows: list[tuple[int, int]]) -> Path:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:15:46.{i:07},{p},{o}" for i, (p, o) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_trace_gives_its_lengths_and_what_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    rows = [(10, 5), (4000, 9), (20, 6), (30, 0), (100, 1)]
    trace = azure_trace(tmp_path / "azure.csv", rows)
    works = from_trace(trace, 3, vocab_size=100, context_tokens=101, seed=0)
    lengths = [(len(work.prompt_token_ids), work.output_tokens) for work in works]
    assert lengths == [(10, 5), (20, 6), (100, 1)]
    table = tmp_path / "trace.parquet"
    columns = {"in_tokens": [p for p, _ in rows], "out_tokens": [o for _, o in rows]}
    pq.write_table(pa.table(columns), table)
    assert from_trace(table, 3, vocab_size=100, context_tokens=101, seed=0) == works
    with pytest.raises(UsageError, match="3 rows fit"):
        from_trace(trace, 4, vocab_size=100, context_tokens=101, seed=0)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "ContextTokens,GeneratedTokens\n1,many\n"])
def test_a_file_without_lengths_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(RequestFileError, match=r"trace\.csv"):
        from_trace(path, 1, vocab_size=100, context_tokens=100, seed=0)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestFileError, match="No such file"):
        from_trace(tmp_path / "none.csv", 1, vocab_size=100, context_tokens=100, seed=0)


def test_sample_requests_keep_their_own_caps(tiny_llm: str) -> None:
    requests = REPOSITORY / "sample_data" / "requests.jsonl"
    works = from_requests(requests, Path(tiny_llm), context_tokens=1024, count=10)
    assert len(works) == 10
    assert works[0].output_tokens == 16
    assert all(work.tokens <= 1024 and work.prompt_token_ids for work in works)
