"""Requests with their answers' lengths, read from files: what predictors learn from.

Files are as for requests: JSON lines, a JSON array, Parquet; packed or not. An answer is censored,
known to be only the beginning of one, where its row says so (`censored`, or a finish reason
"length"), or where the row says nothing and it has as many tokens as its request allows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from typing import BinaryIO

from uellm_cli.errors import ModelError, RequestFileError
from uellm_cli.models.tokens import COUNT_AT_ONCE, PromptTokenizer
from uellm_cli.profiler.learning.answered import Answered, Fields, Record, answered
from uellm_cli.requests.decoding import BOM, decoded
from uellm_cli.requests.fields import MAX_OUTPUT_TOKENS
from uellm_cli.requests.files import MAX_LINE_BYTES, expand_paths
from uellm_cli.requests.streams import (
    Format,
    damaged_file,
    named_errors,
    one_line,
    opened,
    shown,
    text_rows,
)
from uellm_cli.requests.wording import LineError, invalid, kind
from uellm_cli.types import Endpoint, Example, InvalidRequest, Request, SourceLine

_ROWS_AT_A_TIME = 256


@dataclass(slots=True)
class Read:
    """What became of the rows: how many teach nothing, with the first of them and why.

    `answers_in` counts the others by where their answer was found.
    """

    passed_over: int = 0
    first: InvalidRequest | None = None
    answers_in: Counter[str] = field(default_factory=Counter)

    def pass_over(self, row: InvalidRequest) -> None:
        self.passed_over += 1
        self.first = self.first or row


def read_examples(
    paths: Sequence[str],
    tokenizer: PromptTokenizer,
    fields: Fields,
    read: Read,
    limit: int | None = None,
    stdin: BinaryIO | None = None,
    *,
    counts_exactly: bool = True,
) -> Iterator[Example]:
    """The examples of several files, of at most `limit` rows; `read` is told how it goes.

    Prompts, and answers that are texts, are counted with `tokenizer`; the token that ends an answer
    counts. `counts_exactly` says that it is the tokenizer of the model that gave the answers:
    another one's counts cannot tell whether a text has reached its cap. Answers' texts are not
    kept. Raises RequestFileError where a file cannot be read.
    """
    rows = islice(_rows(paths, fields, stdin), limit)
    while chunk := list(islice(rows, COUNT_AT_ONCE)):
        known = [row for row in chunk if isinstance(row, Answered)]
        read.answers_in.update(row.name for row in known)
        refused = [row for row in chunk if isinstance(row, InvalidRequest)]
        for example in _counted(known, tokenizer, fields.censored_from, counts_exactly):
            if isinstance(example, InvalidRequest):
                refused.append(example)
            else:
                yield example
        for row in refused:
            read.pass_over(row)


def _rows(
    paths: Sequence[str], fields: Fields, stdin: BinaryIO | None
) -> Iterator[Answered | InvalidRequest]:
    for path in expand_paths(paths):
        for source, record in _records(path, fields, stdin):
            try:
                if isinstance(record, LineError):
                    raise record
                yield answered(record, source, fields)
            except LineError as refusal:
                yield invalid(source, refusal)


# --- Files ---------------------------------------------------------------------------------------


def _records(
    path: str, fields: Fields, stdin: BinaryIO | None
) -> Iterator[tuple[SourceLine, Record | LineError]]:
    name = shown(path)
    with named_errors(path), opened(path, stdin) as (file, form):
        if form is Format.PARQUET:
            for number, row in enumerate(_table_rows(path, file, fields), start=1):
                yield SourceLine(name, number), row
            return
        for number, line in text_rows(path, file, form, MAX_LINE_BYTES):
            source = SourceLine(name, number)
            if isinstance(line, LineError):
                yield source, line
            elif content := line.removeprefix(BOM).strip():
                yield source, _decoded(content)


def _decoded(text: bytes) -> Record | LineError:
    try:
        data = decoded(text)
    except LineError as refusal:
        return refusal
    if not isinstance(data, dict):
        return LineError("line", f"holds {kind(data)}, not an object with one request")
    return data


def _table_rows(path: str, file: BufferedReader, fields: Fields) -> Iterator[Record]:
    """Rows of a Parquet file, of the columns that may hold a request or its answer."""
    import pyarrow
    from pyarrow import parquet

    if not file.seekable():
        raise RequestFileError(
            f"{shown(path)}: Parquet cannot be read from standard input or a pipe; give a file"
        )
    wanted = fields.columns()
    try:
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 16)
        columns = [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(_ROWS_AT_A_TIME, columns=columns, use_threads=False):
            yield from batch.to_pylist(maps_as_pydicts="strict")
    except (pyarrow.ArrowException, TypeError, KeyError) as error:
        raise damaged_file(path, one_line(error)) from None


# --- Tokens --------------------------------------------------------------------------------------


def _counted(
    rows: Sequence[Answered],
    tokenizer: PromptTokenizer,
    censored_from: int | None,
    counts_exactly: bool,
) -> Iterator[Example | InvalidRequest]:
    counts = answer_tokens(tokenizer, [row.answer for row in rows if isinstance(row.answer, str)])
    of_texts = iter(counts)
    for row, prompt_tokens in zip(rows, _prompt_tokens(rows, tokenizer), strict=True):
        is_text = isinstance(row.answer, str)
        tokens = row.answer if isinstance(row.answer, int) else next(of_texts)
        if isinstance(prompt_tokens, InvalidRequest):
            yield prompt_tokens
            continue
        is_exact = counts_exactly or not is_text
        cap = (row.request.sampling.max_tokens if is_exact else None) or MAX_OUTPUT_TOKENS
        # The token that ends an answer is none of its text.
        tokens = min(tokens + (is_text and not row.censored), cap)
        is_cut = tokens == cap if row.censored is None else row.censored
        is_cut = is_cut or tokens >= (censored_from or math.inf)
        yield Example(row.request, prompt_tokens, tokens, is_cut, row.task)


def answer_tokens(tokenizer: PromptTokenizer, texts: Iterable[str]) -> list[int]:
    """Tokens of texts as a model writes them: without those that a tokenizer puts in front."""
    bare = [Request("", Endpoint.COMPLETION, prompt=text) for text in ("", *texts)]
    in_front, *counts = tokenizer.count(bare)
    return [max(count - in_front, 1) for count in counts]


def _prompt_tokens(
    rows: Sequence[Answered], tokenizer: PromptTokenizer
) -> list[int | InvalidRequest]:
    requests = [row.request for row in rows]
    try:
        return [*tokenizer.count(requests)]
    except ModelError:
        pass  # some conversation breaks the template: find out which
    counts: list[int | InvalidRequest] = []
    for request in requests:
        try:
            counts += tokenizer.count([request])
        except ModelError as error:
            counts.append(invalid(request.source, LineError("messages", str(error))))
    return counts
