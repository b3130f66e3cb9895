"""Predictors of output lengths on answers of one model and of several, and from each to the other.

    python -m benchmarks.predictors --data FOLDER [--kind ngram] [--base FOLDER]

FOLDER (or UELLM_BENCH_DATA) holds `lengths/one_model_qwen2_7b.jsonl` and
`lengths/mixed_responders.jsonl`. Answers of 4,000 tokens and more of the first were cut; the second
says so itself. Prompts are counted as the bundled model does.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.predictor_speed import installed_minilm
from uellm_cli.bench.machine import describe_machine
from uellm_cli.cli.predictor import PILOTS, SEEDS, TRANSFER_SEEDS, remarks, table_of
from uellm_cli.config import Choice
from uellm_cli.profiler.learning.answered import Fields
from uellm_cli.training import Data, Judgement, judge, judge_transfer

FIELDS = Fields(tokens="response_tokens_qwen2", task="source", censored="censored")
ONE_MODEL, MIXED = "one_model_qwen2_7b", "mixed_responders"
CUT_FROM = {ONE_MODEL: 4000, MIXED: None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("UELLM_BENCH_DATA"))
    parser.add_argument("--kind", action="append", help="all if left out, and there is a --base")
    parser.add_argument("--base", default=installed_minilm(), help="the encoder's, MiniLM if there")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--transfer-seeds", type=int, default=TRANSFER_SEEDS, help="0: no transfer")
    asked = parser.parse_args()
    folder = Path(asked.data) / "lengths" if asked.data else None
    if folder is None or not all((folder / f"{name}.jsonl").is_file() for name in CUT_FROM):
        print("predictors: skipped, no --data with lengths/*.jsonl")
        return
    sets = {
        name: Data(
            (str(folder / f"{name}.jsonl"),),
            fields=Fields(FIELDS.answer, FIELDS.tokens, FIELDS.censored, FIELDS.task, cut_from),
        )
        for name, cut_from in CUT_FROM.items()
    }
    every = ["history", "ngram", *(["encoder"] if asked.base else [])]
    kinds = _kinds(asked.kind or every, asked.base and str(asked.base))
    told = [kind for kind in kinds if kind.name == "ngram"]
    found: dict[str, Judgement] = {}
    seconds: dict[str, float] = {}
    for name, data in sets.items():
        began = time.perf_counter()
        found[name] = judge(data, kinds, (), range(asked.seeds), _silent, told)
        seconds[name] = time.perf_counter() - began
        _show(name, found[name], is_transfer=False)
    for source, target in ((ONE_MODEL, MIXED), (MIXED, ONE_MODEL)):
        if not asked.transfer_seeds:
            continue
        name = f"{source} to {target}"
        drawn = range(asked.transfer_seeds)
        began = time.perf_counter()
        found[name] = judge_transfer(sets[source], sets[target], kinds, (), PILOTS, drawn, _silent)
        seconds[name] = time.perf_counter() - began
        _show(name, found[name], is_transfer=True)
    document = {
        "benchmark": "predictors",
        "sets": {name: asdict(judged.evaluation) for name, judged in found.items()},
        "seconds": seconds,
        "machine": describe_machine(),
    }
    print(msgspec.json.encode(document).decode())


def _kinds(names: Sequence[str], base: str | None) -> list[Choice]:
    return [
        Choice(name, {"base": base} if base is not None and name == "encoder" else {})
        for name in names
    ]


def _show(name: str, judged: Judgement, is_transfer: bool) -> None:
    console = Console(width=100, highlight=False)
    console.print(f"\n{name}", table_of(judged.evaluation), sep="\n", markup=False)
    console.print(*remarks(judged.evaluation, is_transfer), sep="\n", markup=False)


def _silent(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
