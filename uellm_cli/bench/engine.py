"""`uellm bench engine`: the same work through every engine, in turns, on one machine in one run.

What is compared is alike: weights, prompts as token ids, greedy answers and their lengths,
threads, the most sequences at a time and memory for their KV cache. Rounds are interleaved and
their order turns, so that a busy moment of the machine hits everybody; each engine is a process
that waits while others are measured. Only tokens that were asked for count, and before all rounds
plain transformers answers the first few requests, for the others' answers to be compared with. Who
fails is in the table with the reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

from uellm_cli.bench import models, workload
from uellm_cli.bench.agreement import Check, Decode, Reference
from uellm_cli.bench.entrants import find_entrants
from uellm_cli.bench.floor import ELEMENT_BYTES, Rates, Sizes, floor_s, measure_rates
from uellm_cli.bench.machine import describe_machine
from uellm_cli.bench.order import arranged, order_for, put_back
from uellm_cli.bench.serve import Job
from uellm_cli.bench.summary import Row, Showing, fault, summarise
from uellm_cli.bench.workers import Entrant, Worker, WorkerError
from uellm_cli.bench.workload import Work
from uellm_cli.errors import EngineError, UsageError
from uellm_cli.models.files import bundled_model
from uellm_cli.models.spec import load_model_spec
from uellm_cli.types import ModelSpec

MODELS = (*models.SHAPES, models.BUNDLED)
DTYPES = tuple(ELEMENT_BYTES)
DEVICES = ("cpu", "cuda")
BUNDLED_MAX_SEQUENCES = 32
PREFILL_TOKENS = {"cpu": 2048, "cuda": 8192}
LEAST_KV_BYTES = 2**30
REFERENCE = Entrant("reference", (sys.executable, "-m", "uellm_cli.bench.reference"))
# Engines cut caches into blocks, and the last one of a sequence is half empty.
KV_ROOM = 1.25

P = ParamSpec("P")
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineBench:
    """What is asked for; None leaves it to the model. `peers` is the folder of peers, if any.

    `check` is how many requests' answers are compared with plain transformers'. `timeout_s` is for
    a round, a load or a conversion, after which an engine is out.
    """

    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    threads: int
    engines: tuple[str, ...] = ()
    peers: Path | None = None
    rounds: int = 5
    check: int = 16
    max_sequences: int | None = None
    requests: int | None = None
    lengths: Path | None = None
    seed: int = 0
    device: str = "cpu"
    cache: Path | None = None
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        for what, given, known in (
            ("model", self.models, MODELS),
            ("dtype", self.dtypes, DTYPES),
            ("device", (self.device,), DEVICES),
        ):
            for name in given:
                if name not in known:
                    raise UsageError(
                        f"no {what} {name!r} to measure with; there are: {', '.join(known)}"
                    )
        if self.lengths is not None and models.BUNDLED in self.models:
            raise UsageError("--lengths is for random models; the bundled one has its own")


@dataclass(frozen=True, slots=True)
class Contest:
    """One model in one dtype: the work, what bounds it, and a row for each engine.

    `check` is None where no answers were to be compared, `floor_s` where no engine got so far as to
    tell how long the answers are.
    """

    model: str
    dtype: str
    parameters: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    forced_lengths: bool
    max_sequences: int
    rates: Rates
    check: Check | None
    floor_s: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The document: everything that the figures depend on, and the figures."""

    benchmark: str
    command: tuple[str, ...]
    machine: dict[str, str | int]
    device: str
    threads: int
    seed: int
    rounds: int
    lengths: str | None
    contests: tuple[Contest, ...]


def bench_engines(asked: EngineBench, command: Sequence[str], say: Say) -> EngineReport:
    """Every model in every dtype through every entrant. UsageError before anything is made."""
    entrants = find_entrants(asked.engines, asked.peers)
    contests = [
        hold(asked, entrants, model, dtype, say) for model in asked.models for dtype in asked.dtypes
    ]
    return EngineReport(
        benchmark="engine",
        command=tuple(command),
        machine=describe_machine(),
        device=asked.device,
        threads=asked.threads,
        seed=asked.seed,
        rounds=asked.rounds,
        lengths=None if asked.lengths is None else str(asked.lengths),
        contests=tuple(contests),
    )


def hold(
    asked: EngineBench, entrants: Sequence[Entrant], model: str, dtype: str, say: Say
) -> Contest:
    """One contest, from the model's making to the rows."""
    cache = asked.cache or models.default_cache()
    folder = model_folder(model, asked.seed, cache)
    spec = load_model_spec(folder)
    works = works_for(asked, model, folder, spec)
    job = job_for(asked, model, dtype, folder, spec, works)

    say(f"{model} {dtype}: {len(works)} requests; measuring the machine")
    sizes = Sizes.of(spec)
    rates = in_a_process(
        measure_rates, asked.device, dtype, asked.threads, sizes, job.max_sequences
    )

    reference = answered_plainly(job, asked, say)
    showings = [Showing(entrant) for entrant in entrants]
    with running(showings, job, asked.timeout_s, say) as workers:
        run_rounds(showings, workers, job, asked, say)

    lengths = output_lengths(showings, job)
    prompt_tokens = [len(work.prompt_token_ids) for work in works]
    floor = lengths and floor_s(
        zip(prompt_tokens, lengths, strict=True),
        sizes,
        rates,
        element_bytes=ELEMENT_BYTES[dtype],
        max_sequences=job.max_sequences,
    )
    return Contest(
        model=model,
        dtype=dtype,
        parameters=round(spec.weight_bytes / spec.dtype_bytes),
        requests=len(works),
        prompt_tokens=sum(prompt_tokens),
        output_tokens=sum(lengths or ()),
        forced_lengths=not job.eos_token_ids,
        max_sequences=job.max_sequences,
        rates=rates,
        check=reference.check if asked.check else None,
        floor_s=floor or None,
        rows=tuple(summarise(showings, floor or None, reference, decoder(folder))),
    )


# --- What is to be done ---------------------------------------------------------------------------


def model_folder(model: str, seed: int, cache: Path) -> Path:
    if model == models.BUNDLED:
        return bundled_model()
    return in_a_process(models.make_model, model, seed, cache)


def works_for(asked: EngineBench, model: str, folder: Path, spec: ModelSpec) -> list[Work]:
    """Forced lengths for a random model; for the bundled one, its own on the sample requests."""
    if model == models.BUNDLED:
        requests = folder.parent / "requests.jsonl"
        return workload.from_requests(requests, folder, spec.context_tokens, asked.requests)
    count = asked.requests or models.SHAPES[model].requests
    if asked.lengths is None:
        return workload.heavy_tailed(count, spec.vocab_size, asked.seed)
    return workload.from_trace(
        asked.lengths, count, spec.vocab_size, spec.context_tokens, asked.seed
    )


def job_for(
    asked: EngineBench, model: str, dtype: str, folder: Path, spec: ModelSpec, works: list[Work]
) -> Job:
    bundled = model == models.BUNDLED
    most = BUNDLED_MAX_SEQUENCES if bundled else models.SHAPES[model].max_sequences
    max_sequences = asked.max_sequences or most
    longest = sorted((work.tokens for work in works), reverse=True)[:max_sequences]
    kv_bytes = sum(map(spec.kv_bytes, longest)) * ELEMENT_BYTES[dtype] / spec.dtype_bytes
    return Job(
        model=str(folder),
        dtype=dtype,
        device=asked.device,
        threads=asked.threads,
        max_sequences=max_sequences,
        prefill_tokens=PREFILL_TOKENS[asked.device],
        context_tokens=longest[0],
        kv_bytes=max(LEAST_KV_BYTES, round(KV_ROOM * kv_bytes)),
        eos_token_ids=_eos_token_ids(folder) if bundled else [],
        prompts=[list(work.prompt_token_ids) for work in works],
        output_tokens=[work.output_tokens for work in works],
        cache=str(asked.cache or models.default_cache()),
    )


def _eos_token_ids(folder: Path) -> list[int]:
    import msgspec

    config = msgspec.json.decode((folder / "generation_config.json").read_bytes())
    own = config["eos_token_id"]
    return own if isinstance(own, list) else [own]


# --- Doing it -------------------------------------------------------------------------------------


def answered_plainly(job: Job, asked: EngineBench, say: Say) -> Reference:
    """The first requests' answers by plain transformers, which is gone when engines start."""
    count = min(asked.check, len(job.prompts))
    first = replace(
        job,
        max_sequences=1,
        prompts=job.prompts[:count],
        output_tokens=job.output_tokens[:count],
    )
    check = Check(count, 0, {})
    if not count:
        return Reference(check)
    say(f"transformers answers {count} requests one by one, for comparison")
    try:
        with Worker(
            REFERENCE.command, log_of(REFERENCE, job), environment(job, REFERENCE)
        ) as worker:
            versions = worker.begin(first, asked.timeout_s).versions
            told = worker.round(count, asked.timeout_s)
            wrong = fault(told, first.output_tokens, forced=not job.eos_token_ids)
            if wrong is not None:
                raise WorkerError(wrong)
    except WorkerError as error:
        say(f"answers are not compared: {error} (its output: {worker.log})")
        return Reference(replace(check, failure=str(error)))
    return Reference(
        replace(check, output_tokens=sum(told.output_tokens), versions=versions),
        tuple(map(tuple, told.tokens or ())),
    )


@contextmanager
def running(
    showings: Sequence[Showing], job: Job, timeout_s: float, say: Say
) -> Iterator[dict[str, Worker]]:
    """Workers by name that have loaded, one after the other, and are warm.

    Each has the job's requests in its entrant's order.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for showing in showings:
            entrant = showing.entrant
            worker = Worker(entrant.command, log_of(entrant, job), environment(job, entrant))
            stack.enter_context(worker)
            try:
                ready = worker.begin(arranged(job, order_for(entrant, job)), timeout_s)
                # Once as many as run together: what is made at the first steps is made by then.
                worker.round(min(job.max_sequences, len(job.prompts)), timeout_s)
            except WorkerError as error:
                _drop(showing, worker, error, say)
                continue
            showing.versions, showing.load_s = ready.versions, ready.load_s
            workers[entrant.name] = worker
            say(f"{entrant.name}: ready, loaded in {ready.load_s:.1f} s")
        yield workers


def run_rounds(
    showings: Sequence[Showing],
    workers: dict[str, Worker],
    job: Job,
    asked: EngineBench,
    say: Say,
) -> None:
    """Rounds in turns; who begins a round moves on by one each time. Who fails is dropped."""
    for number in range(asked.rounds):
        left = [showing for showing in showings if showing.entrant.name in workers]
        turn = number % max(1, len(left))
        for showing in (*left[turn:], *left[:turn]):
            name = showing.entrant.name
            order = order_for(showing.entrant, job)
            before = {other: worker.cpu_s() for other, worker in workers.items()}
            try:
                told = workers[name].round(len(job.prompts), asked.timeout_s)
                expected = [job.output_tokens[i] for i in order]
                wrong = fault(told, expected, forced=not job.eos_token_ids)
                if wrong is not None:
                    raise WorkerError(wrong)
            except WorkerError as error:
                _drop(showing, workers.pop(name), error, say)
                continue
            showing.rounds.append(put_back(told, order))
            for other in showings:
                if other is not showing and other.entrant.name in workers:
                    idle = workers[other.entrant.name].cpu_s() - before[other.entrant.name]
                    other.idle_cpu_s += idle
                    other.idle_s += told.seconds
            say(f"round {number + 1} of {asked.rounds}: {name} {told.seconds:.2f} s")


def _drop(showing: Showing, worker: Worker, error: WorkerError, say: Say) -> None:
    showing.failure = str(error)
    worker.kill()
    say(f"{showing.entrant.name} is out: {error} (its output: {worker.log})")


def log_of(entrant: Entrant, job: Job) -> Path:
    """Where what a worker prints is kept."""
    logs = Path(job.cache) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{entrant.name.replace(':', '-')}.log"


def environment(job: Job, entrant: Entrant) -> dict[str, str]:
    """The same threads for all; no Hub, and none of uellm's own modules for a peer.

    A worker has it from its start, before anything reads it.
    """
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    threads = str(job.threads)
    return (own if entrant.is_peer else dict(os.environ)) | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # What `uellm run` sets for itself (docs/LOG.md): nothing is lost on an idle machine.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


# --- What came of it ------------------------------------------------------------------------------


def output_lengths(showings: Sequence[Showing], job: Job) -> list[int] | None:
    """Tokens of each answer: those forced, or those that the first engine to tell came to."""
    if not job.eos_token_ids:
        return job.output_tokens
    return next((showing.rounds[-1].output_tokens for showing in showings if showing.rounds), None)


def decoder(folder: Path) -> Decode:
    """Token ids to text, as uellm's engines hand it back."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return partial(tokenizer.decode, skip_special_tokens=True)


def in_a_process(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, made in a fresh process: what it loads is gone before engines start."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work, *args, **kwargs).result()
        except BrokenProcessPool:
            raise EngineError(
                f"{work.__name__} was ended from outside, most likely for want of memory"
            ) from None
