"""What there is to do: prompts as token ids, and how long each answer is made to be.

Lengths decide which engine looks good, so they are heavy-tailed, as real ones are: a few answers
many times longer than the median. Or they are taken from a trace.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from uellm_cli.errors import RequestFileError, UsageError
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.requests import read_requests
from uellm_cli.types import Request

# Log-normal lengths in tokens: median, sigma, least, most.
PROMPT_LENGTHS = (60, 0.8, 4, 512)
OUTPUT_LENGTHS = (40, 0.9, 2, 256)
# Ids at both ends of a vocabulary are left to special tokens.
SPECIAL_IDS = 10
# What traces call prompt and output tokens: Azure's LLM inference trace, uellm's latency table, …
PROMPT_COLUMNS = ("ContextTokens", "prompt_tokens", "in_tokens", "input_tokens")
OUTPUT_COLUMNS = ("GeneratedTokens", "output_tokens", "out_tokens")


@dataclass(frozen=True, slots=True)
class Work:
    """A request: answered with exactly `output_tokens`, or at most, where end tokens count."""

    prompt_token_ids: tuple[int, ...]
    output_tokens: int

    @property
    def tokens(self) -> int:
        return len(self.prompt_token_ids) + self.output_tokens


def heavy_tailed(count: int, vocab_size: int, seed: int) -> list[Work]:
    """`count` requests of log-normal lengths, the same ones for the same `seed`."""
    drawn = random.Random(seed)  # noqa: S311 - no secret
    works = []
    for _ in range(count):
        prompt_tokens = _log_normal(drawn, *PROMPT_LENGTHS)
        output_tokens = _log_normal(drawn, *OUTPUT_LENGTHS)
        works.append(Work(_prompt(drawn, prompt_tokens, vocab_size), output_tokens))
    return works


def from_trace(
    path: Path, count: int, vocab_size: int, context_tokens: int, seed: int
) -> list[Work]:
    """`count` requests with lengths drawn from a trace, in its order.

    Rows longer than `context_tokens` are passed over, never cut. Raises RequestFileError where the
    file has no lengths, and UsageError where it has too few that fit.
    """
    lengths = [(p, o) for p, o in _lengths(path) if p > 0 and o > 0 and p + o <= context_tokens]
    if len(lengths) < count:
        raise UsageError(
            f"{path}: {len(lengths)} rows fit into a context of {context_tokens} tokens, and "
            f"{count} are asked for; say --requests"
        )
    drawn = random.Random(seed)  # noqa: S311 - no secret
    chosen = sorted(drawn.sample(range(len(lengths)), count))
    return [Work(_prompt(drawn, p, vocab_size), o) for p, o in (lengths[i] for i in chosen)]


def from_requests(path: Path, model: Path, context_tokens: int, count: int | None) -> list[Work]:
    """What a request file asks, with the caps that it sets; answered greedily by the bench."""
    rows = read_requests([str(path)], started=datetime.now(UTC), limit=count)
    requests = [row for row in rows if isinstance(row, Request)]
    ids = load_tokenizer(str(model)).encode(requests)
    works = []
    for request, prompt in zip(requests, ids, strict=True):
        room = context_tokens - len(prompt)
        works.append(Work(tuple(prompt), min(request.sampling.max_tokens or room, room)))
    return works


def _log_normal(drawn: random.Random, median: int, sigma: float, least: int, most: int) -> int:
    return int(min(most, max(least, drawn.lognormvariate(math.log(median), sigma))))


def _prompt(drawn: random.Random, tokens: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(drawn.randrange(SPECIAL_IDS, vocab_size - SPECIAL_IDS) for _ in range(tokens))


def _lengths(path: Path) -> Iterator[tuple[int, int]]:
    """Prompt and output tokens of each row of a CSV or Parquet file."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet_lengths(path)
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            prompt, output = _columns(path, reader.fieldnames or ())
            for row in reader:
                yield int(row[prompt]), int(row[output])
    except (OSError, ValueError, TypeError) as error:
        raise RequestFileError(f"{path}: no lengths can be read from it: {error}") from None


def _parquet_lengths(path: Path) -> Iterator[tuple[int, int]]:
    import pyarrow.parquet as pq

    names = _columns(path, pq.read_schema(path).names)
    table = pq.read_table(path, columns=list(names))
    yield from zip(*(table[name].to_pylist() for name in names), strict=True)


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str]:
    found = [
        next((name for name in known if name in names), None)
        for known in (PROMPT_COLUMNS, OUTPUT_COLUMNS)
    ]
    prompt, output = found
    if prompt is None or output is None:
        raise RequestFileError(
            f"{path}: needs a column of prompt tokens ({', '.join(PROMPT_COLUMNS)}) and one of "
            f"output tokens ({', '.join(OUTPUT_COLUMNS)})"
        )
    return prompt, output
