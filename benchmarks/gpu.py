"""Speed on one GPU, part by part, each in a process of its own; `gpu.sh` runs them all.

    python -m benchmarks.gpu speed --model 1b --engine uellm --requests 512 128 --out DIR
    python -m benchmarks.gpu profile --model 1b --out DIR
    python -m benchmarks.gpu table --out DIR

Models are Llama-shaped with random weights that are drawn on the device: nothing is saved. Requests
have the lengths of `--lengths`, a trace with a column for prompts and one for answers, and answers
of exactly that length. Before anything is measured all that will be is done once, so that each
number of rows has its graph. Then it is done again and again, as often as `--seconds` from the
process's start have room for, and once at least. uellm remembers no prompts from one to the next,
as nobody does. `--tiny` is for machines without a GPU: it shows that the script works, and
its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from uellm_cli.bench import models
from uellm_cli.bench.floor import ELEMENT_BYTES, Rates, Sizes, floor_s, measure_rates
from uellm_cli.bench.models import SHAPES, Shape, model_config
from uellm_cli.bench.workload import Work, from_trace, heavy_tailed

PEERS = Path(__file__).resolve().parent / "peers"
TINY = Shape(128, 2, 4, 2, 256, 512, requests=12, max_sequences=8)
# uellm's engine with parts of it left out, to see what each is worth.
UELLM: Mapping[str, Mapping[str, bool | str]] = {
    "uellm": {},
    "uellm-no-graphs": {"graphs": False},
    "uellm-no-lookahead": {"lookahead": False},
    "uellm-neither": {"graphs": False, "lookahead": False},
    "uellm-torch": {"kernels": "torch"},
}
# Rounds repeat their prompts, and no peer is allowed to remember them either.
FORGETFUL: Mapping[str, bool | str] = {"share_prefixes": False}
BASELINES = ("transformers_cb", "transformers_static")
# For what a step computes, and what the GPU's memory is needed for beside it.
KV_SHARE = 0.8
PREFILL_TOKENS = 8192
# Requests that are drawn from a trace; rounds of fewer take the first of them.
SAMPLED = 512
MOST_ROUNDS = 5
SAMPLE_S = 0.02
PROFILED_STEPS = 20
BEFORE_PROFILE = 30

Run = Callable[[Sequence[Work]], float]


def main() -> None:
    asked = _arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    {"speed": speed, "profile": profile, "table": table}[asked.part](asked)
    sys.stdout.flush()
    os._exit(0)  # some engines' threads never end


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["speed", "profile", "table"])
    parser.add_argument("--model", default="1b", choices=sorted(SHAPES))
    parser.add_argument("--engine", default="uellm", choices=[*UELLM, *BASELINES])
    parser.add_argument("--requests", type=int, nargs="+", default=[SAMPLED])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(ELEMENT_BYTES))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


# --- Speed ---------------------------------------------------------------------------------------


def speed(asked: argparse.Namespace) -> None:
    """Adds a line to `results.jsonl` for each round of each number of requests, as it ends."""
    until = time.perf_counter() + asked.seconds
    shape, device = _shape(asked), _device()
    works = _works(asked, shape)
    sizes = _sizes(shape)
    rates = _rates(asked, sizes, device)
    began = time.perf_counter()
    with _random_model(shape, asked.dtype, device) as (model, folder):
        run = (_uellm if asked.engine in UELLM else _baseline)(asked, model, folder, works)
        load_s = time.perf_counter() - began
        for count in asked.requests:
            run(works[:count])
        for number, count in _rounds(asked.requests, until, time.perf_counter):
            result = {
                "model": asked.model,
                "engine": asked.engine,
                "rows": asked.rows,
                "round": number,
                "load_s": load_s,
                **_round(run, works[:count], device),
                "floor_s": _floor_s(asked, sizes, rates, works[:count]),
                "rates": asdict(rates),
            }
            with (asked.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def _rounds(
    counts: Sequence[int], until: float, now: Callable[[], float]
) -> Iterator[tuple[int, int]]:
    """Numbers of a round and of requests, until no further round would end in time."""
    longest_s = 0.0
    for number in range(1, MOST_ROUNDS + 1):
        began = now()
        if number > 1 and began + longest_s > until:
            return
        for count in counts:
            yield number, count
        longest_s = max(longest_s, now() - began)


def _round(run: Run, works: Sequence[Work], device: str) -> dict[str, object]:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with _utilisation(device) as samples:
        seconds = run(works)
    return {
        "requests": len(works),
        "prompt_tokens": sum(len(work.prompt_token_ids) for work in works),
        "output_tokens": sum(work.output_tokens for work in works),
        "seconds": seconds,
        "busy": statistics.fmean(samples) if samples else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def _shape(asked: argparse.Namespace) -> Shape:
    return TINY if asked.tiny else SHAPES[asked.model]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _works(asked: argparse.Namespace, shape: Shape) -> list[Work]:
    if asked.tiny:
        few = heavy_tailed(shape.requests, shape.vocab_size, asked.seed)
        return [Work(work.prompt_token_ids[:20], min(9, work.output_tokens)) for work in few]
    count = max(SAMPLED, *asked.requests)
    if asked.lengths is None:
        return heavy_tailed(count, shape.vocab_size, asked.seed)
    return from_trace(asked.lengths, count, shape.vocab_size, shape.context_tokens, asked.seed)


@contextmanager
def _random_model(shape: Shape, dtype: str, device: str) -> Iterator[tuple[Any, Path]]:
    """The model, and a folder with its tokenizer and no weights."""
    import torch
    from transformers import LlamaForCausalLM

    # No wider: deep random models make much of every rounding, and an engine is tried before it is
    # believed.
    config = model_config(shape, spread=0.02, dtype=dtype)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        models._write_tokenizer(shape, Path(folder))
        yield model.eval(), Path(folder)


def _uellm(asked: argparse.Namespace, model: Any, folder: Path, _: Sequence[Work]) -> Run:
    engine = _engine(asked, model, folder)

    def run(some: Sequence[Work]) -> float:
        began = time.perf_counter()
        answered = list(engine.run(_batches(some, asked.rows)))
        seconds = time.perf_counter() - began
        failures = [done.failure for done in answered if done.failure is not None]
        made = sum(done.output_tokens for done in answered)
        if failures or made != sum(work.output_tokens for work in some):
            raise RuntimeError(f"{made} tokens; {len(failures)} failed: {failures[:1]}")
        return seconds

    return run


def _engine(asked: argparse.Namespace, model: Any, folder: Path) -> Any:
    """uellm's own, started as a run does, but for where its model comes from."""
    from transformers import AutoTokenizer, GenerationConfig

    from uellm_cli.bench.worker import NO_STEP_TIMES
    from uellm_cli.clock import SystemClock
    from uellm_cli.engines import ENGINES, EngineContext
    from uellm_cli.engines.inflight import start
    from uellm_cli.engines.inflight.engine import InflightEngine
    from uellm_cli.engines.loaded import LoadedModel
    from uellm_cli.types import Budget

    model.generation_config = GenerationConfig()
    loaded = LoadedModel(model, AutoTokenizer.from_pretrained(folder), GenerationConfig())
    clock = SystemClock()
    context = EngineContext(
        model=str(folder),
        device_map={"": 0 if _device() == "cuda" else "cpu"},
        visible_devices=None,
        budget=Budget(_kv_bytes(), asked.rows, PREFILL_TOKENS),
        clock=clock,
        started_s=clock.now_s(),
        step_times=NO_STEP_TIMES,
        loading_s=0.0,
        seed=0,
        note=lambda text: print(f"note: {text}", file=sys.stderr, flush=True),
    )
    with mock.patch.object(start, "load", return_value=loaded):
        engine = ENGINES.build("inflight", {**FORGETFUL, **UELLM[asked.engine]}).start(context)
    if not isinstance(engine, InflightEngine):
        raise RuntimeError("the model does not run in flight")
    return engine


def _kv_bytes() -> int:
    import torch

    return int(KV_SHARE * torch.cuda.mem_get_info()[0]) if _device() == "cuda" else 2**28


def _batches(works: Sequence[Work], size: int) -> Iterator[Any]:
    from uellm_cli.types import EngineBatch, EngineRequest, SamplingParams

    requests = [
        EngineRequest(
            str(i),
            work.prompt_token_ids,
            work.output_tokens,
            SamplingParams(max_tokens=work.output_tokens, ignore_eos=True, temperature=0.0),
        )
        for i, work in enumerate(works)
    ]
    for start in range(0, len(requests), size):
        yield EngineBatch(start // size, tuple(requests[start : start + size]))


def _baseline(asked: argparse.Namespace, model: Any, folder: Path, works: Sequence[Work]) -> Run:
    """A worker of `peers`, given the model that is there instead of one from a folder."""
    from transformers import AutoModelForCausalLM

    from uellm_cli.bench.serve import Job

    job = Job(
        model=str(folder),
        dtype=asked.dtype,
        device=_device(),
        threads=2,
        max_sequences=asked.rows,
        prefill_tokens=PREFILL_TOKENS,
        context_tokens=max(work.tokens for work in works),
        kv_bytes=_kv_bytes(),
        eos_token_ids=[],
        prompts=[list(work.prompt_token_ids) for work in works],
        output_tokens=[work.output_tokens for work in works],
        cache=str(folder),
    )
    load = runpy.run_path(str(PEERS / asked.engine / "worker.py"))["load"]
    with mock.patch.object(AutoModelForCausalLM, "from_pretrained", return_value=model):
        run, _ = load(job)
    return lambda some: float(run(len(some))["seconds"])


def _sizes(shape: Shape) -> Sizes:
    size = shape.hidden_size // shape.num_attention_heads
    kv_values = 2 * shape.num_key_value_heads * size
    per_layer = shape.hidden_size * (
        2 * shape.hidden_size + kv_values + 3 * shape.intermediate_size
    )
    return Sizes(
        layer_parameters=shape.num_hidden_layers * per_layer,
        head_parameters=shape.vocab_size * shape.hidden_size,
        kv_values_per_token=shape.num_hidden_layers * kv_values,
        hidden_size=shape.hidden_size,
    )


def _rates(asked: argparse.Namespace, sizes: Sizes, device: str) -> Rates:
    """Measured once for all engines of a model, before the first one is loaded."""
    import torch

    known = asked.out / f"rates-{asked.model}-{asked.dtype}.json"
    if known.exists():
        return Rates(**json.loads(known.read_text()))
    rates = measure_rates(device, asked.dtype, 2, sizes, asked.rows)
    if device == "cuda":
        torch.cuda.empty_cache()
    known.write_text(json.dumps(asdict(rates)))
    return rates


def _floor_s(asked: argparse.Namespace, sizes: Sizes, rates: Rates, works: Sequence[Work]) -> float:
    """The seconds that no engine can be below."""
    return floor_s(
        [(len(work.prompt_token_ids), work.output_tokens) for work in works],
        sizes,
        rates,
        element_bytes=ELEMENT_BYTES[asked.dtype],
        max_sequences=asked.rows,
    )


@contextmanager
def _utilisation(device: str) -> Iterator[list[int]]:
    """Shares of time, in percent, in which any kernel ran, as NVML has them; none without it."""
    samples: list[int] = []
    over = threading.Event()

    def sample() -> None:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not over.wait(SAMPLE_S):
            samples.append(int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))

    thread = threading.Thread(target=sample, daemon=True)
    if device == "cuda":
        thread.start()
    try:
        yield samples
    finally:
        over.set()
        if device == "cuda":
            thread.join(2)


# --- What a step is made of ----------------------------------------------------------------------


def profile(asked: argparse.Namespace) -> None:
    """Writes `profile-MODEL.txt`: the kernels of some steps that only decode."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    shape, device = _shape(asked), _device()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    tokens = BEFORE_PROFILE + PROFILED_STEPS + 10
    works = [
        Work(tuple(range(10 + i, 110 + i)), tokens)
        for i in range(4 if asked.tiny else min(64, asked.rows))
    ]
    with _random_model(shape, asked.dtype, device) as (model, folder):
        engine = _engine(asked, model, folder)
        list(engine.run(_batches(works, len(works))))
        watched = profiler(activities=kinds)
        engine.packed = _Profiled(engine.packed, watched)
        list(engine.run(_batches(works, len(works))))
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    text = watched.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=70)
    took = engine.packed.seconds
    head = f"{asked.model}, {PROFILED_STEPS} steps of {len(works)} rows, {took:.4f} s in all\n"
    (asked.out / f"profile-{asked.model}.txt").write_text(head + text)
    print(head, flush=True)


class _Profiled:
    """An engine's model that is watched from one step to another."""

    def __init__(self, packed: Any, watched: Any) -> None:
        self._packed, self._watched = packed, watched
        self._steps = 0
        self._began = self.seconds = 0.0

    @property
    def cache(self) -> Any:
        return self._packed.cache

    def logits(self, step: Any) -> Any:
        self._steps += 1
        if self._steps == BEFORE_PROFILE:
            self._watched.start()
            self._began = time.perf_counter()
        if self._steps == BEFORE_PROFILE + PROFILED_STEPS:
            self.seconds = time.perf_counter() - self._began
            self._watched.stop()
        return self._packed.logits(step)


# --- The table -----------------------------------------------------------------------------------


def table(asked: argparse.Namespace) -> None:
    """Prints what `results.jsonl` has: of each part's rounds the median, the least and the most."""
    path = asked.out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    parts: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in map(json.loads, lines):
        parts.setdefault((row["model"], row["engine"], row["requests"]), []).append(row)
    for model in dict.fromkeys(name for name, _, _ in parts):
        row = next(rounds[0] for (name, _, _), rounds in parts.items() if name == model)
        rates = Rates(**row["rates"])
        print(
            f"{row['device']}, torch {row['torch']}, {model}: "
            f"{rates.bandwidth_bytes_per_s / 1e12:.2f} TB/s, "
            f"{rates.flops_per_s / 1e12:.0f} TFLOP/s measured"
        )
    heads = ("rounds", "median s", "min-max", "x floor", "out tok/s", "all tok/s", "busy", "GiB")
    print(
        ("{:<6} {:<20} {:>8}" + " {:>6} {:>9} {:>13}" + " {:>9}" * 5).format(
            "model", "engine", "requests", *heads
        )
    )
    for (model, engine, requests), rounds in parts.items():
        print(f"{model:<6} {engine:<20} {requests:>8} {_table_figures(rounds)}")


def _table_figures(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Of the rounds of one part; tokens a second are those of the median round."""
    seconds = [row["seconds"] for row in rounds]
    median_s = statistics.median(seconds)
    made = rounds[0]["output_tokens"]
    every = rounds[0]["prompt_tokens"] + made
    busy = [row["busy"] for row in rounds if row["busy"] is not None]
    spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
    return (
        f"{len(rounds):>6} {median_s:>9.2f} {spread:>13} {median_s / rounds[0]['floor_s']:>9.2f} "
        f"{made / median_s:>9.0f} {every / median_s:>9.0f} "
        f"{_or_dash(statistics.median(busy) if busy else None, 1, '%'):>9} "
        f"{_or_dash(rounds[0]['peak_bytes'], 2**30, ''):>9}"
    )


def _or_dash(number: float | None, unit: int, after: str) -> str:
    return "-" if number is None else f"{number / unit:.0f}{after}"


if __name__ == "__main__":
    main()
