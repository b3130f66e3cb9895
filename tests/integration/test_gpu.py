"""The main job on a CUDA device; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.unit.architectures import model_maker, reference
from tests.unit.engine_cases import answers, context, model_work, texts
from tests.unit.test_inflight_architectures import PROMPTS, texts_of
from uellm_cli.clock import SystemClock
from uellm_cli.engines import ENGINES
from uellm_cli.engines.inflight.cuda_attention import CudaAttention
from uellm_cli.engines.inflight.cuda_graphs import GraphedModel
from uellm_cli.engines.inflight.engine import InflightEngine
from uellm_cli.engines.inflight.packed import PackedModel
from uellm_cli.engines.inflight.step import Step
from uellm_cli.types import Budget, EngineRequest, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
REQUESTS = REPOSITORY / "sample_data" / "requests.jsonl"
CPU = REPOSITORY / "sample_data" / "topologies" / "cpu.yaml"
# What the kernels have to know of layers: groups of heads, windows, caps, sinks, and none of them.
ARCHITECTURES = ("llama", "gemma2", "gpt-oss", "gpt2", "mistral", "qwen3-moe", "deepseek-v3")
TOKENS = 24


def test_answers_on_the_gpu_equal_those_on_the_cpu(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    assert uellm("run", REQUESTS, "-o", tmp_path / "gpu", "--quiet") == 0
    assert uellm("run", REQUESTS, "-o", tmp_path / "cpu", "--quiet", "--topology", CPU) == 0

    def answers(name: str) -> dict[str, object]:
        rows = map(json.loads, (tmp_path / name / "results.jsonl").read_text().splitlines())
        return {row["custom_id"]: row["response"]["body"]["choices"] for row in rows}

    plan = json.loads((tmp_path / "gpu" / "plan.json").read_text())
    assert plan["topology"]["devices"][0]["kind"] == "cuda"
    # fp32, but other kernels: a near-tie may fall the other way now and then.
    on_gpu, on_cpu = answers("gpu"), answers("cpu")
    assert sum(on_gpu[name] == on_cpu[name] for name in on_cpu) >= 198


# --- In flight -----------------------------------------------------------------------------------


def engine_on(model: str, device: str | int = 0, **options: Any) -> tuple[Any, list[str]]:
    notes: list[str] = []
    here = context(
        model,
        SystemClock(),
        device_map={"": device},
        budget=Budget(kv_bytes=2**26, max_sequences=6, prefill_tokens=64),
        note=notes.append,
    )
    return ENGINES.build("inflight", {"dtype": "float32", **options}).start(here), notes


@pytest.mark.parametrize(("graphs", "lookahead"), [*product([False, True], [False, True])])
def test_the_bundled_model_answers_the_same_on_every_path(
    graphs: bool, lookahead: bool, tiny_llm: str
) -> None:
    work = model_work(tiny_llm)
    wanted = answers(engine_on(tiny_llm, "cpu")[0], work)
    engine, notes = engine_on(tiny_llm, graphs=graphs, lookahead=lookahead)
    assert not notes
    assert isinstance(engine, InflightEngine)
    made = answers(engine, work)
    assert not notes  # nor was anything given up on the way
    if isinstance(engine.packed, GraphedModel):
        assert graphs
        assert engine.packed._replays
    else:
        assert not graphs
    assert {name: texts(done) for name, done in made.items()} == {
        name: texts(done) for name, done in wanted.items()
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("is_fast", [False, True])
def test_an_architecture_s_answers_are_generate_s(
    name: str, is_fast: bool, tiny_llm: str, tmp_path: Path
) -> None:
    folder = model_maker(Path(tiny_llm), tmp_path)(name)
    engine, notes = engine_on(str(folder), page_tokens=16, graphs=is_fast, lookahead=is_fast)
    assert isinstance(engine, InflightEngine), notes
    asked = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0)
    work = [EngineRequest(str(i), one, TOKENS, asked) for i, one in enumerate(PROMPTS)]
    made = answers(engine, work)
    print(name, notes)  # noqa: T201  # whether its steps could be recorded
    known, compared = texts_of(folder), 0
    for i, prompt in enumerate(PROMPTS):
        expected = reference(folder, prompt).first(TOKENS)
        if expected.sure < TOKENS:
            continue
        compared += 1
        wanted = "".join(known.text_and_bytes(token)[0] for token in expected.tokens)
        (text,) = texts(made[str(i)])
        assert text.strip() == wanted.strip() or text == engine.loaded.decode(expected.tokens)
    assert compared


def test_attention_is_uellm_s_own(tiny_llm: str) -> None:
    engine, _ = engine_on(tiny_llm, graphs=False)
    assert isinstance(engine.packed, PackedModel)
    assert isinstance(engine.packed.attention.backend, CudaAttention)


def test_memory_that_runs_out_makes_steps_smaller_and_costs_nobody_a_token(tiny_llm: str) -> None:
    work = model_work(tiny_llm)
    engine, _ = engine_on(tiny_llm)
    wanted = {name: texts(done) for name, done in answers(engine, work).items()}
    packed, computed = engine.packed, []

    class Hungry:
        cache = packed.cache

        def logits(self, step: Step) -> torch.Tensor:
            computed.append(step.rows)
            if len(computed) == 4:
                torch.empty(2**45, dtype=torch.uint8, device="cuda")
            logits: torch.Tensor = packed.logits(step)
            return logits

    engine.packed = Hungry()
    made = {name: texts(done) for name, done in answers(engine, work).items()}
    assert made == wanted
    assert engine.flights.limits.rows < 6


def test_a_budget_beyond_the_gpu_s_memory_is_cut(
    tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if all but 2 MiB more than what is spared were somebody else's.
    from uellm_cli.engines.inflight import cuda_memory, start

    def little(_: torch.device) -> tuple[int, int]:
        return cuda_memory.LEAST_SPARE_BYTES + 2**21, 2**30

    with_little = partial(cuda_memory.share_with_room, free=little)
    monkeypatch.setattr(start, "share_with_room", with_little)
    engine, notes = engine_on(tiny_llm)
    assert engine.packed.cache.total_bytes <= 2**21
    assert any("planned KV cache" in note for note in notes)
    assert len(answers(engine, model_work(tiny_llm))) == 4
