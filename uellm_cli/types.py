"""The nouns that every part of uellm shares. Imports nothing of the project.

All are frozen: a stage makes new values of what it is given. Those of which a run makes one a
request are msgspec structs, the others dataclasses (docs/adr/0005). Units are in the names: `_s`
seconds, `_bytes` bytes, `_tokens` tokens. A "request's start" is the run's start (or its
`arrival_s`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# --- Requests ------------------------------------------------------------------------------------


class Endpoint(StrEnum):
    """How a request's text becomes tokens: through the chat template, or as it is."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"


class Message(msgspec.Struct, frozen=True, gc=False):
    role: str
    content: str


class SamplingParams(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How an answer is drawn. None means: as the model's own generation config says.

    `n` answers are drawn. `logprobs` is how many alternatives are told beside each token's own log
    probability (None: nothing is told). `logit_bias` is added to the scores of token ids.
    `json_schema` is a JSON Schema, as text, that the answer has to follow. `min_p` rules out tokens
    less likely than that share of the likeliest one. `repetition_penalty` is transformers', over
    prompt and answer; `presence_penalty` and `frequency_penalty` are OpenAI's, over the answer.
    An answer ends with any of `stop_token_ids`; with `ignore_eos` the model's own end tokens do not
    end it, and before `min_tokens` neither do.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    json_schema: str | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    @property
    def is_length_free(self) -> bool:
        """Whether the model decides how long its answer is, up to a cap."""
        return not self.ignore_eos and not self.min_tokens


class Anchor(StrEnum):
    """What a deadline counts from."""

    REQUEST = "request"
    RUN = "run"


class SLO(msgspec.Struct, frozen=True, gc=False):
    """A promise: the answer within `deadline_s`, its first token within `ttft_s`, and so on."""

    name: str = "default"
    deadline_s: float | None = None
    anchor: Anchor = Anchor.REQUEST
    ttft_s: float | None = None
    tpot_s: float | None = None
    weight: float = 1.0

    def latest_finish_s(self, arrival_s: float) -> float | None:
        """Seconds from the run's start by which the answer is due; None without a deadline."""
        if self.deadline_s is None:
            return None
        return self.deadline_s + (arrival_s if self.anchor is Anchor.REQUEST else 0.0)


class SourceLine(msgspec.Struct, frozen=True, gc=False):
    """Where a request was read: a file's name as given, and its line or row, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Request(msgspec.Struct, frozen=True, gc=False):
    """One valid request; either `messages` or `prompt` holds its text.

    `slo` is what the request's own line promises; None leaves it to the SLO file's rules.
    """

    custom_id: str
    endpoint: Endpoint
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: SamplingParams = SamplingParams()
    slo: SLO | None = None
    arrival_s: float = 0.0
    metadata: Mapping[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)
    source: SourceLine = SourceLine("", 0)


class InvalidRequest(msgspec.Struct, frozen=True, gc=False):
    """A line that is no request, and why; it becomes a row of `errors.jsonl`.

    `code` is OpenAI's where it has one.
    """

    source: SourceLine
    field: str
    reason: str
    custom_id: str | None = None
    code: str = "invalid_request"


# --- Profile -------------------------------------------------------------------------------------

QUANTILE_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


class LengthEstimate(msgspec.Struct, frozen=True, gc=False):
    """A distribution of output lengths: one value in tokens for each of `QUANTILE_LEVELS`."""

    tokens: tuple[float, ...]
    source: str

    def at(self, level: float) -> float:
        """The quantile at `level`, linear between the stored ones and flat beyond them."""
        if level <= QUANTILE_LEVELS[0]:
            return self.tokens[0]
        for i in range(1, len(QUANTILE_LEVELS)):
            low, high = QUANTILE_LEVELS[i - 1], QUANTILE_LEVELS[i]
            if level <= high:
                share = (level - low) / (high - low)
                return self.tokens[i - 1] + share * (self.tokens[i] - self.tokens[i - 1])
        return self.tokens[-1]

    @property
    def p50(self) -> float:
        return self.at(0.5)

    @property
    def p90(self) -> float:
        return self.at(0.9)


class ProfiledRequest(msgspec.Struct, frozen=True, gc=False):
    """All that planning knows of a request; its text is not needed any more.

    `max_tokens` is the cap that will be enforced: the user's, or what the context leaves.
    `finish_by_s` counts from the run's start and is None without a deadline. `output` is the length
    of one answer, of which `rounds` are made one after the other; each is handed back `copies`
    times, since a greedy answer is the same however often it is made. `kv_bytes` is the KV cache at
    the 0.9 quantile of its length.
    """

    custom_id: str
    prompt_tokens: int
    max_tokens: int
    output: LengthEstimate
    kv_bytes: int
    slo: SLO = SLO()
    arrival_s: float = 0.0
    rounds: int = 1
    copies: int = 1

    @property
    def finish_by_s(self) -> float | None:
        return self.slo.latest_finish_s(self.arrival_s)

    @property
    def is_promised(self) -> bool:
        slo = self.slo
        return any(promise is not None for promise in (slo.deadline_s, slo.ttft_s, slo.tpot_s))


class LengthPredictor(Protocol):
    """Says how long answers will be, before any is made."""

    @property
    def source(self) -> str:
        """What stands beside its figures: the predictor's name, and what it was adapted with."""
        ...

    def quantiles(
        self, requests: Sequence[Request], prompt_tokens: Sequence[int]
    ) -> NDArray[np.float64]:
        """[requests, QUANTILE_LEVELS] in tokens, ascending along a row, whatever the caps."""
        ...


class Example(msgspec.Struct, frozen=True, gc=False):
    """A request and how long its answer was: what predictors learn from.

    A `censored` answer was cut at `output_tokens`, and would have been longer. `task` is the set or
    kind that the request belongs to, where that is known.
    """

    request: Request
    prompt_tokens: int
    output_tokens: int
    censored: bool = False
    task: str = ""


class Trained(LengthPredictor, Protocol):
    """A predictor that was learnt, and can be kept."""

    def write(self, folder: Path) -> None:
        """Writes what it needs to be read again into a folder that there is."""
        ...


class PredictorTrainer(Protocol):
    """Learns a predictor of one kind from examples. The same `seed`, the same predictor."""

    def train(self, examples: Sequence[Example], seed: int, note: Callable[[str], None]) -> Trained:
        """Raises PredictorError where there are too few examples; `note` is told how it goes on."""
        ...


# --- Models --------------------------------------------------------------------------------------


class Source(StrEnum):
    """How a number came to be known, from the most to the least believable."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    SPECIFIED = "specified"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One transformer layer.

    `active_bytes` are the weights that one token reads (a mixture of experts reads only some).
    The KV cache grows by `kv_bytes_per_token` up to `kv_window_tokens` (None: without end), on top
    of `state_bytes` that every sequence takes whatever its length.
    """

    weight_bytes: int
    active_bytes: int
    kv_bytes_per_token: int
    kv_window_tokens: int | None = None
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model is without its weights; `dtype_bytes` is what a layer's weight takes, stored."""

    name: str
    architecture: str
    dtype_bytes: float
    hidden_size: int
    vocab_size: int
    context_tokens: int
    layers: tuple[LayerSpec, ...]
    embedding_bytes: int
    head_bytes: int
    norm_bytes: int
    weight_source: Source
    num_kv_heads: int
    is_moe: bool = False

    @property
    def weight_bytes(self) -> int:
        """All weights; a head tied to the embedding is counted once (`head_bytes` is 0 then)."""
        layers = sum(layer.weight_bytes for layer in self.layers)
        return layers + self.embedding_bytes + self.head_bytes + self.norm_bytes

    def kv_bytes(self, tokens: int) -> int:
        """KV cache of one sequence of `tokens` tokens, over all layers."""
        return sum(layer_kv_bytes(layer, tokens) for layer in self.layers)


def layer_kv_bytes(layer: LayerSpec, tokens: int) -> int:
    """KV cache that one sequence of `tokens` tokens takes in `layer`."""
    window = layer.kv_window_tokens
    kept = tokens if window is None else min(tokens, window)
    return layer.state_bytes + layer.kv_bytes_per_token * kept


# --- Hardware ------------------------------------------------------------------------------------


class DeviceKind(StrEnum):
    CUDA = "cuda"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Device:
    """One place that can hold layers. Rates are peaks; `bandwidth` is of its own memory."""

    id: str
    name: str
    kind: DeviceKind
    memory_bytes: int
    free_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float
    rate_source: Source
    compute_capability: str | None = None
    numa_node: int | None = None
    pci_id: str | None = None
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """The path between two devices; `bytes_per_s` is one way."""

    a: str
    b: str
    type: str
    bytes_per_s: float
    latency_s: float
    source: Source


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine's devices and the links between them; `notes` say what was assumed."""

    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    origin: str
    notes: tuple[str, ...] = ()

    def link(self, a: str, b: str) -> Link | None:
        """The link between two devices in either direction, None if none is known."""
        for link in self.links:
            if {link.a, link.b} == {a, b}:
                return link
        return None


# --- Time ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one engine step (DESIGN.md, decision 2).

    fixed_s + per_prefill_token_s·(prompt tokens computed) + per_sequence_s·(rows)
    + per_cached_token_s·(tokens of KV read)
    """

    fixed_s: float
    per_prefill_token_s: float
    per_sequence_s: float
    per_cached_token_s: float
    source: Source

    def step_s(self, prefill_tokens: int, sequences: int, cached_tokens: int) -> float:
        """A step of any kind, by what it computes and reads."""
        return (
            self.fixed_s
            + self.per_prefill_token_s * prefill_tokens
            + self.per_sequence_s * sequences
            + self.per_cached_token_s * cached_tokens
        )

    def prefill_s(self, rows: int, prompt_tokens: int) -> float:
        """A step that computes `rows` prompts, padded to `prompt_tokens` each."""
        return self.step_s(rows * prompt_tokens, rows, 0)

    def decode_s(self, rows: int, prompt_tokens: int, steps: int) -> float:
        """`steps` decode steps of `rows` sequences that start at `prompt_tokens` cached each."""
        if steps <= 0:
            return 0.0
        cached = rows * (steps * prompt_tokens + steps * (steps + 1) / 2)
        return (
            steps * (self.fixed_s + self.per_sequence_s * rows) + self.per_cached_token_s * cached
        )


class StepSample(msgspec.Struct, frozen=True, gc=False):
    """A step as it was: what it computed and read, and what that took.

    `sequences` rows took part, `prefill_tokens` of their prompts were computed, and `cached_tokens`
    tokens' keys and values were read.
    """

    prefill_tokens: int
    sequences: int
    cached_tokens: int
    seconds: float


# --- Plans ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """What a schedule may take: KV cache bytes over all devices, rows at a time, prompt tokens.

    `prefill_tokens` is the most that one forward pass has activations for, padding included. An
    engine that cannot compute a prompt in parts computes a single one whole, however long it is.
    """

    kv_bytes: int
    max_sequences: int
    prefill_tokens: int


class Batch(msgspec.Struct, frozen=True, gc=False):
    batch_id: int
    custom_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Batches in the order in which they run; `oversized` can never fit the budget."""

    algorithm: str
    batches: tuple[Batch, ...]
    oversized: tuple[str, ...] = ()


class Batching(StrEnum):
    """When a request that has ended makes room: with its whole batch, or at once."""

    STATIC = "static"
    IN_FLIGHT = "inflight"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a schedule runs under, of which its outcome follows.

    Nothing begins before `start_s`, in seconds from the run's start: the model is loaded by then.
    Each of the `replicas` has the whole `budget` and takes from one queue. In flight a step
    computes up to `step_tokens` tokens, as far as the budget has room for. `length_correlation`
    says how much predicted lengths are off in the same direction (`timing/scenarios.py`). Once the
    engine `is_running`, its budget is what it is.
    """

    budget: Budget
    step: StepTimes
    batching: Batching
    start_s: float = 0.0
    replicas: int = 1
    step_tokens: int = 2**30
    length_correlation: float = 0.0
    is_running: bool = False

    @property
    def most_step_tokens(self) -> int:
        return max(1, min(self.step_tokens, self.budget.prefill_tokens))


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers [first_layer, last_layer) on one device."""

    device_id: str
    first_layer: int
    last_layer: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Replica:
    """One full copy of the model."""

    stages: tuple[Stage, ...]
    tensor_parallel_degree: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the model's layers go, and what a decode step over `rows` sequences would take.

    `step_s` is the time-model's figure for one decode step through all stages.
    """

    algorithm: str
    model: str
    replicas: tuple[Replica, ...]
    rows: int
    step_s: float
    step_source: Source
    notes: tuple[str, ...] = ()

    @property
    def device_ids(self) -> tuple[str, ...]:
        return tuple(stage.device_id for replica in self.replicas for stage in replica.stages)


@dataclass(frozen=True, slots=True)
class Workload:
    """What placement has to make room for: the requests' size, and rows at a time."""

    sequences: int
    tokens_per_sequence: int
    longest_tokens: int


class PlacementAlgorithm(Protocol):
    """Puts a model's layers on devices. A pure function of its arguments."""

    def place(self, model: ModelSpec, topology: Topology, workload: Workload) -> Placement:
        """A placement that holds weights and the workload's KV cache.

        Raises PlacementError, naming what is missing, when there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over scenarios: its mean, and what it is below in one of ten and in nine of ten."""

    mean: float
    low: float
    high: float

    @property
    def is_nobody(self) -> bool:
        """Of requests: whether it rounds to none, in nine of ten scenarios too."""
        return round(self.mean) == 0 and self.high < 1


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """What is predicted for one SLO class: requests, those that are promised something, and late.

    Late is a request that breaks any of its promises. `end_s` is when the class is done with.
    """

    name: str
    requests: int
    promised: int
    late: Spread
    begin_s: float
    end_s: float


class Cause(StrEnum):
    """Why a request is predicted to break a promise, the least avoidable first."""

    NO_ROOM = "no room"
    ALONE = "alone"
    BEGIN = "begin"
    PACE = "pace"
    QUEUED = "queued"


@dataclass(frozen=True, slots=True)
class LateRequest:
    """A request that is late in `share` of the scenarios; seconds from the run's start.

    `begin_s` and `end_s` are means, None for one that never runs; `alone_s` is when it would end
    with the engine to itself.
    """

    custom_id: str
    slo_class: str
    cause: Cause
    share: float
    due_s: float | None
    begin_s: float | None
    end_s: float | None
    alone_s: float


class RemedyKind(StrEnum):
    """What can be changed so that promises are kept."""

    TIME = "time"
    DEVICES = "devices"
    CAP = "cap"
    CLASS = "class"


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change after which nobody is predicted to be late.

    `amount` is seconds more for every deadline, copies of the model, a cap on output tokens, or how
    many requests of class `slo_class` are done at another time.
    """

    kind: RemedyKind
    amount: float
    slo_class: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a schedule is predicted to lead to, before anything runs.

    Over `scenarios`, in each of which every answer has a length drawn from its prediction. Seconds
    count from the run's start. `first_late` is the one due first of those that are more often late
    than not. `remedies` are looked for where that was asked for.
    """

    makespan_s: Spread
    late: Spread
    classes: tuple[ClassVerdict, ...]
    step_source: Source
    scenarios: int
    first_late: LateRequest | None = None
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made for: the hash of each file by its name, the model's, and `settings`.

    These are flags that decide what is run, by their names, as they were given.
    """

    inputs: Mapping[str, str]
    model_fingerprint: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions of a run, made before the model is loaded.

    `origin` is told where a plan is kept to be run later.
    """

    model: ModelSpec
    topology: Topology
    budget: Budget
    placement: Placement
    schedule: Schedule
    step_times: StepTimes
    verdict: Verdict
    origin: Origin | None = None


# --- Execution -----------------------------------------------------------------------------------


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


class Blame(StrEnum):
    """Why a promise was broken."""

    NONE = "none"
    INFEASIBLE = "infeasible"
    QUEUED = "queued"
    MISPREDICTED = "mispredicted"
    STRAGGLER = "straggler"
    PREEMPTED = "preempted"
    OUT_OF_MEMORY = "out_of_memory"
    ERROR = "error"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"


class RequestTiming(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Moments of one request, in seconds from the run's start.

    `answered_s` is when its own last token was made; `finished_s` is when it was handed back,
    which in a static batch is when the batch's longest member ended. Of several answers the first
    two are of the one that began first, and the others of the one that ended last. `gaps_s` are the
    seconds between each token and the next of the same answer, where the engine tells them.
    `preemptions` is how often it lost its memory to others, and was computed again.
    """

    prefill_s: float
    first_token_s: float
    answered_s: float
    finished_s: float
    gaps_s: tuple[float, ...] = ()
    preemptions: int = 0


class EngineRequest(msgspec.Struct, frozen=True, gc=False):
    """A request as an engine takes it. `output` is None where nothing was predicted."""

    custom_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    output: LengthEstimate | None = None


class EngineBatch(msgspec.Struct, frozen=True, gc=False):
    batch_id: int
    requests: tuple[EngineRequest, ...]


# OpenAI's error code of a request that was not run because its deadline had passed.
EXPIRED = "batch_expired"


class Failure(msgspec.Struct, frozen=True, gc=False):
    """Why a request has no answer: a short code, a sentence, and the field it is about, if any."""

    code: str
    message: str
    field: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """A token of an answer, its natural log probability, and the likeliest others in its place.

    `token` is its text and `raw` its bytes; of a part of a character the text is its escaped bytes.
    A special token is no text: it has a name and no bytes.
    """

    token: str
    logprob: float
    raw: bytes
    top: tuple[TokenLogprob, ...] = ()


class Answer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One text for a request; OpenAI calls it a choice. `logprobs` is None unless asked for."""

    text: str
    output_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None


class Completion(msgspec.Struct, frozen=True, gc=False):
    """What an engine hands back for one request: its `n` answers, or a failure."""

    custom_id: str
    batch_id: int | None
    timing: RequestTiming | None = None
    answers: tuple[Answer, ...] = ()
    failure: Failure | None = None

    @property
    def output_tokens(self) -> int:
        return sum(answer.output_tokens for answer in self.answers)

    @property
    def finish_reason(self) -> FinishReason | None:
        """ "length" as soon as one of the answers was cut; None without any."""
        reasons = {answer.finish_reason for answer in self.answers}
        return FinishReason.LENGTH if FinishReason.LENGTH in reasons else next(iter(reasons), None)


class Engine(Protocol):
    """A loaded model that answers batches."""

    def run(self, batches: Iterator[EngineBatch]) -> Iterator[Completion]:
        """Pulls work when there is room for it, and yields each request once, when it is done.

        A failure that belongs to single requests is a Completion with `failure`; EngineError ends
        the run. Once it is told to stop it ends the step that it is in, yields what is complete,
        and returns; what it does not yield is asked again by a later session.
        """
        ...


class Result(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One request's row in the run's files: the truth that everything else is derived from.

    Predicted and output tokens are over all its answers, of which there are `copies` of each that
    was made.
    """

    custom_id: str
    slo_class: str
    batch_id: int | None
    prompt_tokens: int
    predicted_tokens_p50: float | None
    predicted_tokens_p90: float | None
    output_tokens: int
    kv_bytes: int
    deadline_s: float | None
    arrival_s: float
    blame: Blame
    endpoint: Endpoint | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    timing: RequestTiming | None = None
    answers: tuple[Answer, ...] = ()
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    source: SourceLine | None = None
    copies: int = 1

    @property
    def made_tokens(self) -> int:
        """Output tokens that took time to make: copies do not."""
        return self.output_tokens // self.copies


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a run came about; `run.json`.

    `duration_s` is None while it runs, or after it was killed; `interrupted` says that it was
    stopped on purpose before all was answered. `simulated` times and answers are made up.
    """

    run_id: str
    command: tuple[str, ...]
    started: datetime
    model: str
    model_fingerprint: str
    bundled_model: bool
    engine: str
    scheduler: str
    seed: int
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    simulated: bool = False
    duration_s: float | None = None
    interrupted: bool = False
