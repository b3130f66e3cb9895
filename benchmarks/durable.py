"""A million requests in and out: what reading, the journal and a whole run cost.

    python -m benchmarks.durable [--requests N]

Reading is told as a ratio to a bare `orjson.loads` of every line of the same file, the journal and
the output files in microseconds a result, all three the best of several turns in a process each;
the run through the simulated engine, once, in microseconds a request. Peaks are of the process that
does it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from uellm_cli.bench.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = REPOSITORY / "sample_data" / "models" / "llama-7b.json"
TOPOLOGY = REPOSITORY / "sample_data" / "topologies" / "2xa100.yaml"
TURNS = 3
# What the project promises of each figure.
LIMITS = {
    "reading, x bare parse": 15.0,
    "reading, peak GB": 1.5,
    "profile, peak GB": 1.5,
    "journal and output, us a result": 25.0,
    "simulated run, peak GB": 2.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        write_requests(path, count)
        figures = measured(path, count)
        line_bytes = path.stat().st_size / count
    print(f"{count:,} plain lines of {line_bytes:.0f} bytes")
    for name, figure in figures.items():
        limit = f"  (at most {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:<38} {figure:9.2f}{limit}")
    document = {"benchmark": "durable", "requests": count, "figures": figures}
    print(json.dumps({**document, "machine": describe_machine()}))


def write_requests(path: Path, count: int) -> None:
    """Plain lines of about 400 bytes, a third of them of a class of their own."""
    text = "Count from 3 to 9, and then say in a few words what you did. " * 5
    with path.open("w") as file:
        for i in range(count):
            line: dict[str, Any] = {"custom_id": f"r{i}", "prompt": f"{text}{i}"}
            line["max_tokens"] = 64 + i % 400
            if i % 3 == 0:
                line["metadata"] = {"tier": "gold"}
            file.write(json.dumps(line) + "\n")


def measured(path: Path, count: int) -> dict[str, float]:
    turns: dict[str, list[tuple[float, float]]] = {"parse": [], "read": []}
    for _ in range(TURNS):  # interleaved, so that a busy moment hits both alike
        turns["parse"].append(in_a_process(parse, path))
        turns["read"].append(in_a_process(read, path))
    parse_s = min(seconds for seconds, _ in turns["parse"])
    read_s = min(seconds for seconds, _ in turns["read"])
    profile_s, profile_gb = in_a_process(profile, path)
    keep_s = min(in_a_process(keep, count)[0] for _ in range(TURNS))
    run_s, run_gb = in_a_process(simulated_run, path)
    return {
        "bare parse, us a line": parse_s / count * 1e6,
        "reading, us a line": read_s / count * 1e6,
        "reading, x bare parse": read_s / parse_s,
        "reading, peak GB": max(gb for _, gb in turns["read"]),
        "profile, us a request": profile_s / count * 1e6,
        "profile, peak GB": profile_gb,
        "journal and output, us a result": keep_s / count * 1e6,
        "simulated run, us a request": run_s / count * 1e6,
        "simulated run, peak GB": run_gb,
    }


def in_a_process(work: Callable[[Any], float], argument: object) -> tuple[float, float]:
    """The seconds that `work` returns and the peak memory, in GB, of a fresh process doing it."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, argument, sender))
    process.start()
    sender.close()
    answer: tuple[float, float] = receiver.recv()
    process.join()
    return answer


def _report(work: Callable[[Any], float], argument: object, sender: Connection) -> None:
    seconds = work(argument)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send((seconds, peak / 1e9))


def parse(path: Path) -> float:
    import orjson

    began = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            orjson.loads(line)
    return time.perf_counter() - began


def read(path: Path) -> float:
    """Reading and validating into the store that a run keeps its requests in."""
    from uellm_cli.requests import read_requests
    from uellm_cli.requests.store import RequestStore
    from uellm_cli.types import Request

    began = time.perf_counter()
    store = RequestStore(path.parent, "benchmark")
    for row in read_requests([str(path)], started=datetime.now(UTC)):
        if isinstance(row, Request):
            store.add(row, row)
    return time.perf_counter() - began


def profile(path: Path) -> float:
    """Everything that planning needs: reading, tokens (estimated), lengths, memory."""
    from uellm_cli import pipeline
    from uellm_cli.requests.store import RequestStore

    began = time.perf_counter()
    store = RequestStore(path.parent, "benchmark")
    profiled = pipeline.profile(settings(path), datetime.now(UTC), store)
    assert not profiled.invalid  # noqa: S101 - a benchmark of refusals would be another one
    return time.perf_counter() - began


def keep(count: int) -> float:
    """Results into the journal every five seconds, and into the files that a run leaves."""
    from uellm_cli.config import OutputFormat
    from uellm_cli.executor.durability import parse_durability
    from uellm_cli.executor.journal import Journal
    from uellm_cli.executor.outputs import ResultSink, Rows, write_all
    from uellm_cli.requests.store import RequestStore
    from uellm_cli.types import Endpoint, Message, Request

    info, model, profiled, record = _samples()
    names = [f"r{i}" for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        store = RequestStore(directory, "benchmark")
        for name in names:
            asked = Request(name, Endpoint.CHAT, (Message("user", "Count from 3 to 9."),))
            store.add(asked, asked)
        requests = [profiled(name) for name in names]
        spent_s = 0.0
        with Journal.open(directory / "journal") as journal:
            journal.keep(parse_durability("5s"))
            with ResultSink(directory, info, journal) as sink:
                for start in range(0, count, 1000):
                    # Made beforehand, since results are the engine's; not all, to spare memory.
                    records = [
                        record(name, store.key(name)) for name in names[start : start + 1000]
                    ]
                    began = time.perf_counter()
                    for first in range(0, len(records), 10):
                        for made in records[first : first + 10]:
                            sink.add(made)
                        sink.commit()
                    spent_s += time.perf_counter() - began
            began = time.perf_counter()
            rows = Rows(journal, store, requests, (), ("requests.jsonl",), model)
            write_all(directory, rows, info, OutputFormat.JSONL)
        return spent_s + time.perf_counter() - began


def _samples() -> tuple[Any, Any, Callable[[str], Any], Callable[[str, str], Any]]:
    from msgspec.structs import replace

    from uellm_cli.executor.records import Record
    from uellm_cli.models.spec import load_model_spec
    from uellm_cli.types import (
        QUANTILE_LEVELS,
        Answer,
        Blame,
        Endpoint,
        FinishReason,
        LengthEstimate,
        ProfiledRequest,
        RequestTiming,
        Result,
        RunInfo,
    )

    info = RunInfo(
        run_id="0123456789abcdef",
        command=(),
        started=datetime.now(UTC),
        model="model",
        model_fingerprint="0" * 32,
        bundled_model=False,
        engine="static",
        scheduler="fifo",
        seed=0,
        versions={},
        machine={},
        inputs={},
        settings={},
        duration_s=60.0,
    )
    lengths = LengthEstimate((20.0,) * len(QUANTILE_LEVELS), "benchmark")
    result = Result(
        custom_id="",
        slo_class="default",
        batch_id=1,
        prompt_tokens=12,
        predicted_tokens_p50=20.0,
        predicted_tokens_p90=20.0,
        output_tokens=20,
        kv_bytes=1_000_000,
        deadline_s=None,
        arrival_s=0.0,
        blame=Blame.NONE,
        endpoint=Endpoint.CHAT,
        timing=RequestTiming(1.0, 1.1, 2.2, 2.2),
        answers=(Answer("3, 4, 5, 6, 7, 8, 9. I counted upwards.", 20, FinishReason.STOP),),
        finish_reason=FinishReason.STOP,
    )
    return (
        info,
        load_model_spec(str(MODEL)),
        lambda name: ProfiledRequest(name, 12, 64, lengths, 1_000_000),
        lambda name, key: Record(key, replace(result, custom_id=name)),
    )


def simulated_run(path: Path) -> float:
    """The whole command, from the file to the report, in virtual time."""
    from uellm_cli.cli import main as uellm

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--engine simulated --durability 5s --quiet --model {MODEL} --topology {TOPOLOGY}"
        try:
            uellm(["run", str(path), *flags.split(), "-o", f"{folder}/run"])
        except SystemExit as ended:
            if ended.code:
                raise
        with (Path(folder) / "run" / "results.jsonl").open("rb") as file:
            answered = sum(1 for _ in file)
        with path.open("rb") as file:
            asked = sum(1 for _ in file)
        if answered != asked:
            raise RuntimeError(f"{answered} answers to {asked} requests")
    return time.perf_counter() - began


def settings(path: Path) -> Any:
    from uellm_cli.cli import options
    from uellm_cli.config import Choice, Settings

    return Settings(
        predictor=Choice(options.PREDICTOR),
        scheduler=Choice(options.SCHEDULER),
        placement=Choice(options.ALGORITHM),
        engine=Choice("simulated"),
        requests=(str(path),),
        model=str(MODEL),
        topology=str(TOPOLOGY),
    )


if __name__ == "__main__":
    main()
