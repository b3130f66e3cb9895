"""Engines: what turns batches of token ids into answers. One file and one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from uellm_cli.clock import Clock
from uellm_cli.registry import Registry
from uellm_cli.types import Batching, Budget, DeviceKind, Engine, StepSample, StepTimes


def never() -> bool:
    """A run that nothing stops."""
    return False


def silent(_: str) -> None:
    """Nobody to tell."""


def unwatched(_: StepSample) -> None:
    """Nobody who wants to know."""


@dataclass(frozen=True, slots=True)
class EngineContext:
    """What an engine is started with.

    `started_s` is the run's start on `clock`; an engine's timings count from it. `step_times` and
    `loading_s` are what simulated engines take for steps and for loading. `device_map` is
    an explicit one, a device for each module name; its GPUs are numbered as `visible_devices`
    (for CUDA_VISIBLE_DEVICES; None without GPUs) lists them. `budget` is what the plan found room
    for: no engine goes beyond it. `stop` becomes true when the run is to end after the step in
    flight; an engine asks it between steps. `note` takes remarks for the user, `step_seen` what
    each step came to.
    """

    model: str
    device_map: Mapping[str, str | int]
    visible_devices: str | None
    budget: Budget
    clock: Clock
    started_s: float
    step_times: StepTimes
    loading_s: float
    seed: int
    stop: Callable[[], bool] = never
    note: Callable[[str], None] = silent
    step_seen: Callable[[StepSample], None] = unwatched
    trust_remote_code: bool = False


class EngineFactory(Protocol):
    """A variant's options, from which a loaded engine is made.

    `in_virtual_time` engines move a `VirtualClock` instead of letting time pass.
    """

    in_virtual_time: ClassVar[bool]

    def start(self, context: EngineContext) -> Engine:
        """Loads what it needs; EngineError (or ModelError) when that cannot be done."""
        ...


ENGINES: Registry[EngineFactory] = Registry(
    "engine",
    {
        "inflight": "uellm_cli.engines.inflight:Inflight",
        "simulated": "uellm_cli.engines.simulated:Simulated",
        "static": "uellm_cli.engines.static:Static",
    },
)
DEFAULT_ENGINE = "inflight"

# Rows at a time, where nobody says how many: the paper's ten; and what keeps a CPU's matrix
# products busy, at which a GPU's steps still take little longer than for one row.
STATIC_ROWS = 10
INFLIGHT_ROWS = 64
# Tokens that one step in flight computes at most: enough for a CPU's matrix products to be at their
# best, and few enough that a step is soon over.
CPU_STEP_TOKENS = 512
GPU_STEP_TOKENS = 8192


def batching_of(engine: str) -> Batching:
    """How an engine batches, for planning without loading it."""
    return Batching.IN_FLIGHT if engine == "inflight" else Batching.STATIC


def default_rows(engine: str) -> int:
    """How many rows an engine is to run at a time, for planning without loading it."""
    return INFLIGHT_ROWS if batching_of(engine) is Batching.IN_FLIGHT else STATIC_ROWS


def default_step_tokens(kind: DeviceKind) -> int:
    """The most tokens that a step in flight computes, where nobody says how many."""
    return CPU_STEP_TOKENS if kind is DeviceKind.CPU else GPU_STEP_TOKENS
