"""A worker's side of the bench: one JSON line in, one out; the standard library and nothing else.

uellm's own engines run in `bench/worker.py`, which imports this. A peer has an environment of its
own and no uellm in it: there this file is the program, and the peer's script, its only argument,
defines `load`:

    PEER/bin/python -P uellm_cli/bench/serve.py benchmarks/peers/NAME/worker.py

First comes the job, and is answered with {"versions", "load_s"}. Then each {"requests": n} is a
round over the job's first n requests, answered with what the engine's `run` returned, a dict:
"seconds", "output_tokens" (of each request), "ttft_s" (of each request, or null where an engine
does not tell), and "tokens" (ids of each answer) or "texts". {"bye": true} or the end of input ends
it. An error ends the worker; its traceback is on standard error, as is all else that is printed.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Job:
    """What every engine is given, the same for all.

    `model` is a folder. A request's answer is greedy and has exactly `output_tokens` tokens, or,
    where there are `eos_token_ids`, at most so many. No engine takes more than `max_sequences`
    at a time, `prefill_tokens` prompt tokens a step (a single prompt may be longer) and `kv_bytes`
    of KV cache. `context_tokens` is the longest that any sequence gets. `cache` is a folder for
    what an engine makes of the model once and for all.
    """

    model: str
    dtype: str
    device: str
    threads: int
    max_sequences: int
    prefill_tokens: int
    context_tokens: int
    kv_bytes: int
    eos_token_ids: list[int]
    prompts: list[list[int]]
    output_tokens: list[int]
    cache: str


Run = Callable[[int], dict[str, Any]]
Load = Callable[[Job], tuple[Run, dict[str, str]]]


def serve(load: Load) -> None:
    """Answers lines until there are no more."""
    answers = _own_stdout()
    job = Job(**json.loads(sys.stdin.readline()))
    began = time.perf_counter()
    run, versions = load(job)
    _send(answers, {"versions": versions, "load_s": time.perf_counter() - began})
    for line in sys.stdin:
        message = json.loads(line)
        if "bye" in message:
            return
        _send(answers, run(message["requests"]))


def _own_stdout() -> TextIO:
    """Standard output for answers alone: whatever else writes there, C code too, gets stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve(runpy.run_path(sys.argv[1])["load"])
