"""Models of which parts wait in host memory and come to the device for each step.

accelerate does the same on a CPU as on a GPU: the weights that wait are nowhere ("meta") to whoever
looks at the model, and there while their module computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accelerate.hooks import attach_align_device_hook

from tests.unit.engine_cases import answers, inflight_engine, model_work, static_engine, texts
from uellm_cli.engines import EngineContext, loading
from uellm_cli.engines.loaded import LoadedModel

CPU = torch.device("cpu")


def offload(loaded: LoadedModel, names: Sequence[str]) -> None:
    """Has accelerate keep the weights of these modules aside, as it does for a placement."""
    for name in names:
        module = loaded.model.get_submodule(name)
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        attach_align_device_hook(module, execution_device=CPU, offload=True, weights_map=weights)


@pytest.mark.parametrize("engine", ["inflight", "static"])
@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.2", "model.layers.3"],
        ["model.embed_tokens", "model.layers.0"],
        ["model.layers.1.mlp", "lm_head"],
    ],
    ids=["last layers", "beginning", "parts"],
)
def test_what_waits_in_host_memory_computes_the_same(
    names: list[str], engine: str, tiny_llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answers(inflight_engine(tiny_llm), model_work(tiny_llm))

    def load(context: EngineContext, *options: str) -> LoadedModel:
        loaded = loading.load(context, *options)
        offload(loaded, names)
        return loaded

    notes: list[str] = []
    if engine == "inflight":
        monkeypatch.setattr("uellm_cli.engines.inflight.start.load", load)
        found = answers(inflight_engine(tiny_llm, note=notes.append), model_work(tiny_llm))
    else:
        monkeypatch.setattr("uellm_cli.engines.static.load", load)
        found = answers(static_engine(tiny_llm, note=notes.append), model_work(tiny_llm))
    assert notes == []
    assert {n: texts(c) for n, c in found.items()} == {n: texts(c) for n, c in whole.items()}
