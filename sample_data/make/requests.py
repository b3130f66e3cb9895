"""The sample requests: 200 prompts that the tiny model was not trained on, in mixed forms.

    python -m sample_data.make.requests

Three classes of promises: short questions that somebody waits for, ordinary ones, and nightly ones
that may be long. Their order is shuffled, as requests come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sample_data.make.tasks import TASKS, Example, completion_prompt, is_held_out, sample_task

FOLDER = Path(__file__).resolve().parent.parent
SEED = 20
INTERACTIVE, STANDARD, NIGHTLY = 60, 100, 40
INTERACTIVE_TASKS = frozenset({"parity", "compare", "letter_of", "spell", "reverse"})
NIGHTLY_TASKS = frozenset({"count_up", "boats", "repeat", "days", "multiples"})
# Caps are round numbers with room to spare: every answer ends by itself.
CAPS = (16, 32, 64, 128, 256, 512)


def build() -> list[dict[str, Any]]:
    """The lines of `requests.jsonl`."""
    rng = Random(SEED)
    seen: set[str] = set()
    everyday = [t.name for t in TASKS if t.name not in NIGHTLY_TASKS]
    drawn = [
        *_draw(rng, INTERACTIVE, sorted(INTERACTIVE_TASKS), seen),
        *_draw(rng, STANDARD, everyday, seen),
        *_draw(rng, NIGHTLY, sorted(NIGHTLY_TASKS), seen),
    ]
    lines = [_line(i, example) for i, example in enumerate(drawn)]
    rng.shuffle(lines)
    return lines


def _draw(rng: Random, count: int, names: list[str], seen: set[str]) -> Iterator[Example]:
    """`count` examples of the named tasks, none twice and none that training saw."""
    by_name = {task.name: task for task in TASKS}
    while count:
        example = sample_task(rng, by_name[rng.choice(names)])
        if is_held_out(example.prompt) and example.prompt not in seen:
            seen.add(example.prompt)
            count -= 1
            yield example


def _line(number: int, example: Example) -> dict[str, Any]:
    """One request, in each of the four forms in turn."""
    # A token is a letter at worst, so that twice the letters is a generous cap.
    cap = next((cap for cap in CAPS if cap >= 2 * len(example.answer)), CAPS[-1])
    messages = [{"role": "user", "content": example.prompt}]
    common: dict[str, Any] = {"max_tokens": cap}
    if number >= INTERACTIVE + STANDARD:
        custom_id, metadata = f"night-{number:03d}", None
    elif number >= INTERACTIVE:
        custom_id, metadata = f"request-{number:03d}", None
    else:
        custom_id, metadata = f"chat-{number:03d}", {"tier": "gold"}
    if metadata:
        common["metadata"] = metadata
    form = number % 4
    if form == 0:
        body = {"model": "tiny-llm", "messages": messages, **common}
        return _batch_line(custom_id, "/v1/chat/completions", body)
    if form == 1:
        return {"custom_id": custom_id, "prompt": example.prompt, **common}
    if form == 2:
        return {"id": custom_id, "messages": messages, **common}
    body = {"model": "tiny-llm", "prompt": completion_prompt(example.prompt), **common}
    return _batch_line(custom_id, "/v1/completions", body)


def _batch_line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def _table(lines: list[dict[str, Any]]) -> pa.Table:
    """The same requests as columns; what a line does not have is null."""
    rows = [
        {
            "custom_id": line.get("custom_id", line.get("id")),
            "method": line.get("method"),
            "url": line.get("url"),
            "body": json.dumps(line["body"]) if "body" in line else None,
            "prompt": line.get("prompt"),
            "messages": line.get("messages"),
            "max_tokens": line.get("max_tokens"),
            "metadata": line.get("metadata"),
        }
        for line in lines
    ]
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("custom_id", pa.string()),
            ("method", pa.string()),
            ("url", pa.string()),
            ("body", pa.string()),
            ("prompt", pa.string()),
            ("messages", pa.list_(message)),
            ("max_tokens", pa.int32()),
            ("metadata", pa.struct([("tier", pa.string())])),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def main() -> None:
    lines = build()
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (FOLDER / "requests.jsonl").write_text(text, encoding="utf-8")
    pq.write_table(_table(lines), FOLDER / "requests.parquet")


if __name__ == "__main__":
    main()
