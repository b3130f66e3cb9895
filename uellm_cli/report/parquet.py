"""`latency.parquet`: one row per request, with the columns of `LatencyRow`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from uellm_cli.atomic import replacing
from uellm_cli.errors import RunDirectoryError
from uellm_cli.report.rows import LatencyRow
from uellm_cli.report.tables import ROWS_IN_A_GROUP, TableWriter
from uellm_cli.types import Blame, FinishReason

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = LatencyRow.__struct_fields__


def latency_table(file: BinaryIO) -> TableWriter[LatencyRow]:
    """A table of latency rows in an open file."""
    return TableWriter(file, _schema())


def write_latency_table(path: Path, rows: Iterable[LatencyRow]) -> None:
    """Writes `rows` in their order; `path` holds the old table or the new one, never a part.

    Raises OutputError where the folder cannot be written.
    """
    with replacing(path) as (file,), latency_table(file) as table:
        for row in rows:
            table.add(row)


def read_latency_table(path: Path) -> Iterator[LatencyRow]:
    """The rows of a table that `write_latency_table` wrote, in order; further columns are ignored.

    Raises RunDirectoryError, naming the file, if there is no such table.
    """
    import pyarrow.parquet as pq

    try:
        # Opened here because pyarrow would take a folder for a partitioned table.
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(ROWS_IN_A_GROUP, columns=list(_COLUMNS)):
                yield from _rows(_as_table(batch))
    except (OSError, KeyError, ValueError) as error:
        # pa.ArrowInvalid is a ValueError; a value that is no Blame is one too.
        raise RunDirectoryError(f"{path} is no readable latency table: {error}") from error


def _as_table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch]).select(_COLUMNS).cast(_schema())


def _rows(table: pa.Table) -> Iterator[LatencyRow]:
    for row in table.to_pylist():
        reason = row["finish_reason"]
        row["blame"] = Blame(row["blame"])
        row["itl_s"] = tuple(row["itl_s"])
        row["finish_reason"] = None if reason is None else FinishReason(reason)
        yield LatencyRow(**row)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("custom_id", pa.string(), nullable=False),
            pa.field("slo_class", pa.string(), nullable=False),
            pa.field("batch_id", pa.int64()),
            pa.field("replica", pa.int64()),
            pa.field("queue_s", pa.float64()),
            pa.field("ttft_s", pa.float64()),
            pa.field("tpot_s", pa.float64()),
            pa.field("e2e_s", pa.float64()),
            pa.field("deadline_s", pa.float64()),
            pa.field("met", pa.bool_()),
            pa.field("blame", pa.string(), nullable=False),
            pa.field("prompt_tokens", pa.int64(), nullable=False),
            pa.field("predicted_tokens_p50", pa.float64()),
            pa.field("predicted_tokens_p90", pa.float64()),
            pa.field("output_tokens", pa.int64(), nullable=False),
            pa.field("kv_bytes", pa.int64(), nullable=False),
            pa.field("finish_reason", pa.string()),
            pa.field("error", pa.string()),
            # Milliseconds to seven digits; twice as many bytes would be most of the file.
            pa.field("itl_s", pa.list_(pa.float32()), nullable=False),
            pa.field("answers", pa.int64(), nullable=False),
        ]
    )
