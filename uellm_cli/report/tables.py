"""Parquet tables written row by row, so that a million rows are never in memory together."""

from __future__ import annotations

from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Generic, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    import pyarrow as pa

# Rows that are in memory together while a table is written or read.
ROWS_IN_A_GROUP = 16_384


RowT = TypeVar("RowT", bound=msgspec.Struct)


class TableWriter(Generic[RowT]):
    """Writes rows into an open file as they come; use as a context manager.

    The columns are attributes of a row. `schema` is stated, since a column of nulls alone has no
    type of its own.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema)
        self._rows: list[RowT] = []

    def add(self, row: RowT) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_IN_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = {name: list(map(attrgetter(name), self._rows)) for name in self._schema.names}
        self._writer.write_table(pa.Table.from_pydict(columns, schema=self._schema))
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()
