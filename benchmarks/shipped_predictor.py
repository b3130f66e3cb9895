"""Trains the `ngram` predictor that ships with uellm, from public answers and the bundled tasks.

    python -m benchmarks.shipped_predictor --data FOLDER

FOLDER (or UELLM_BENCH_DATA) holds `lengths/*.jsonl` with prompts and the tokens of their answers;
docs/predictors.md names their sources and licences. The bundled model's tasks are made up here,
with the answers that it was trained to give; none of them is a sample request.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tokenizers

from sample_data.make.tasks import sample_for_training
from uellm_cli.executor.run_info import installed_versions
from uellm_cli.models.files import bundled_model
from uellm_cli.models.tokens import EstimatedTokenizer
from uellm_cli.profiler.learning.ngram import NGramTrainer
from uellm_cli.profiler.learning.saved import Description, write_predictor
from uellm_cli.profiler.lengths.ngram import SHIPPED
from uellm_cli.types import Endpoint, Example, Message, Request

ONE_MODEL = "one_model_qwen2_7b"
SETS = ("mixed_responders", ONE_MODEL)
# Its answers were cut at 4,096 tokens, and are not said to be.
CUT_FROM = 4000
TASKS = 600
SEED = 0


def public_answers(folder: Path) -> Iterator[Example]:
    for name in SETS:
        with (folder / "lengths" / f"{name}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                tokens = row["response_tokens_qwen2"]
                if tokens:
                    is_at_cap = name == ONE_MODEL and tokens >= CUT_FROM
                    cut = row.get("censored", False) or is_at_cap
                    yield example(row["id"], row["prompt"], tokens, cut)


def bundled_tasks() -> Iterator[Example]:
    tokenizer = tokenizers.Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))
    drawn = random.Random(SEED)  # noqa: S311 - no secret
    for number in range(TASKS):
        task = sample_for_training(drawn)
        # And the token that ends it.
        tokens = len(tokenizer.encode(task.answer, add_special_tokens=False).ids) + 1
        yield example(f"task-{number}", task.prompt, tokens, cut=False)


def example(custom_id: str, prompt: str, tokens: int, cut: bool) -> Example:
    request = Request(custom_id, Endpoint.CHAT, messages=(Message("user", prompt),))
    return Example(request, EstimatedTokenizer().count([request])[0], tokens, cut)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("UELLM_BENCH_DATA"))
    folder: Path | None = parser.parse_args().data
    if folder is None or not (Path(folder) / "lengths").is_dir():
        print("shipped_predictor: skipped, no --data with lengths/")
        return
    examples = [*public_answers(Path(folder)), *bundled_tasks()]
    model = NGramTrainer().train(examples, SEED, print)
    description = Description(
        kind="ngram",
        rows=len(examples),
        censored=sum(row.censored for row in examples),
        seed=SEED,
        data=(*SETS, "bundled model's tasks"),
        trained=datetime.now(UTC),
        versions=installed_versions(),
    )
    write_predictor(SHIPPED, model, description)
    size = sum(path.stat().st_size for path in SHIPPED.iterdir())
    shifts = np.round(model.calibration.log_shifts, 3).tolist()
    print(f"{SHIPPED.name}: {size:,} bytes, calibrated by {shifts} in log tokens")


if __name__ == "__main__":
    main()
