"""`results.parquet`: one row a request, answered or not, for those who read tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import msgspec

from uellm_cli.report.tables import TableWriter
from uellm_cli.types import FinishReason, Result

if TYPE_CHECKING:
    import pyarrow as pa


class ResultRow(msgspec.Struct, frozen=True, gc=False):
    """One row of `results.parquet`.

    `text` is the first answer and `texts` all of them, where a request asked for more than one.
    """

    custom_id: str
    text: str | None
    texts: list[str] | None
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    error_code: str | None
    error_message: str | None
    error_field: str | None
    file: str | None
    line: int | None


def result_table(file: BinaryIO) -> TableWriter[ResultRow]:
    """A table of results in an open file."""
    return TableWriter(file, _schema())


def result_row(result: Result) -> ResultRow:
    texts = [answer.text for answer in result.answers]
    failure, source = result.failure, result.source
    return ResultRow(
        custom_id=result.custom_id,
        text=texts[0] if texts else None,
        texts=texts if len(texts) > 1 else None,
        finish_reason=result.finish_reason,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.output_tokens,
        error_code=failure.code if failure else None,
        error_message=failure.message if failure else None,
        error_field=failure.field if failure else None,
        file=source.file if source else None,
        line=source.line if source else None,
    )


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("custom_id", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("texts", pa.list_(pa.string())),
            pa.field("finish_reason", pa.string()),
            pa.field("prompt_tokens", pa.int64(), nullable=False),
            pa.field("completion_tokens", pa.int64(), nullable=False),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("error_field", pa.string()),
            pa.field("file", pa.string()),
            pa.field("line", pa.int64()),
        ]
    )
