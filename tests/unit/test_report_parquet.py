"""The latency table on disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from uellm_cli.errors import OutputError, RunDirectoryError
from uellm_cli.report.parquet import read_latency_table, write_latency_table
from uellm_cli.report.rows import LatencyRow
from uellm_cli.types import Blame, FinishReason

ANSWERED = LatencyRow(
    custom_id="[red]\n\x1b[31mé",
    slo_class="gold",
    batch_id=1,
    replica=0,
    queue_s=0.1,
    ttft_s=0.2,
    tpot_s=0.3,
    e2e_s=1 / 3,
    deadline_s=5.0,
    met=True,
    blame=Blame.NONE,
    prompt_tokens=7,
    predicted_tokens_p50=3.5,
    predicted_tokens_p90=9.0,
    output_tokens=4,
    kv_bytes=2**40,
    finish_reason=FinishReason.LENGTH,
    error=None,
    itl_s=(0.125, 0.25, 0.0),
    answers=3,
)
FAILED = LatencyRow(
    custom_id="b",
    slo_class="default",
    batch_id=None,
    replica=None,
    queue_s=None,
    ttft_s=None,
    tpot_s=None,
    e2e_s=None,
    deadline_s=None,
    met=None,
    blame=Blame.ERROR,
    prompt_tokens=0,
    predicted_tokens_p50=None,
    predicted_tokens_p90=None,
    output_tokens=0,
    kv_bytes=0,
    finish_reason=None,
    error="timeout",
)


@pytest.mark.parametrize("rows", [[ANSWERED, FAILED], [FAILED, FAILED], []])
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[LatencyRow]) -> None:
    path = tmp_path / "latency.parquet"
    write_latency_table(path, rows)
    back = list(read_latency_table(path))
    assert back == rows
    assert all(type(row.blame) is Blame for row in back)


@pytest.mark.parametrize("rows", [[FAILED], []])
def test_a_column_without_values_keeps_its_type(tmp_path: Path, rows: list[LatencyRow]) -> None:
    full, empty = tmp_path / "full.parquet", tmp_path / "empty.parquet"
    write_latency_table(full, [ANSWERED])
    write_latency_table(empty, rows)
    assert pq.read_schema(empty) == pq.read_schema(full)
    assert pq.read_schema(full).names == list(LatencyRow.__struct_fields__)


def test_a_table_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "latency.parquet"
    write_latency_table(path, [ANSWERED])
    write_latency_table(path, [FAILED])
    assert list(read_latency_table(path)) == [FAILED]
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latency.parquet"
    write_latency_table(path, [ANSWERED])

    def disk_full(fd: int) -> None:
        raise OSError(28, f"no space left on {fd}")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OutputError, match="no space"):
        write_latency_table(path, [FAILED])
    assert list(read_latency_table(path)) == [ANSWERED]
    assert list(tmp_path.iterdir()) == [path]


def test_columns_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "latency.parquet"
    write_latency_table(path, [ANSWERED])
    pq.write_table(pq.read_table(path).append_column("later", pa.array([1])), path)
    assert list(read_latency_table(path)) == [ANSWERED]


def _with_column(path: Path, name: str, values: pa.Array) -> None:
    write_latency_table(path, [ANSWERED])
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)


def test_what_is_no_latency_table_is_refused_by_its_name(tmp_path: Path) -> None:
    missing, text, other = (tmp_path / name for name in ("missing", "text", "other"))
    text.write_text("custom_id\n")
    pq.write_table(pa.table({"custom_id": ["a"]}), other)
    no_id, no_cause = tmp_path / "no-id", tmp_path / "no-cause"
    _with_column(no_id, "custom_id", pa.array([None], pa.string()))
    _with_column(no_cause, "blame", pa.array(["bad luck"]))
    for path in (missing, text, other, no_id, no_cause, tmp_path):
        with pytest.raises(RunDirectoryError, match=f"{path.name} is no readable latency table"):
            list(read_latency_table(path))


def test_a_table_of_other_types_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.parquet"
    _with_column(path, "e2e_s", pa.array(["soon"]))
    with pytest.raises(RunDirectoryError):
        list(read_latency_table(path))


def test_a_fraction_is_never_cut_to_fit_an_integer_column(tmp_path: Path) -> None:
    path = tmp_path / "latency.parquet"
    write_latency_table(path, [replace(ANSWERED, predicted_tokens_p50=10.25)])
    assert next(read_latency_table(path)).predicted_tokens_p50 == 10.25
    _with_column(path, "output_tokens", pa.array([4.5]))
    with pytest.raises(RunDirectoryError):
        list(read_latency_table(path))
