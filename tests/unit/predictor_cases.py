"""Every predictor of the registry, ready to predict: those that learn have learnt a little."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.builders import chat, unheard
from tests.unit.test_encoder import quick, save_bert
from uellm_cli.profiler.learning.adapt import adapt
from uellm_cli.profiler.learning.history import HistoryTrainer
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.profiler.lengths.adapted import Base
from uellm_cli.types import Example, LengthPredictor, Request, Trained

EXAMPLES = [Example(chat(str(i), f"say {i}"), 3, 5 + i % 40) for i in range(120)]


def asking(custom_id: str, text: str) -> Request:
    """A request that any predictor can say something of, the one that is told lengths too."""
    return replace(chat(custom_id, text), metadata={"output_tokens": 7})


def options_for(name: str, folder: Path) -> Mapping[str, Any]:
    """Options of a predictor that is ready."""
    trained: Trained
    if name == "adapted":
        constant = LENGTH_PREDICTORS.build("constant")
        trained = adapt(Base("constant"), constant, EXAMPLES, 0)
    elif name == "encoder":
        trained = quick(save_bert(folder / "base")).train(EXAMPLES, 0, unheard)
    elif name == "history":
        trained = HistoryTrainer().train(EXAMPLES, 0, unheard)
    else:
        return {}
    kept = folder / name
    kept.mkdir(exist_ok=True)
    trained.write(kept)
    return {"folder": str(kept)}


def ready_predictors(folder: Path) -> dict[str, LengthPredictor]:
    return {
        name: LENGTH_PREDICTORS.build(name, options_for(name, folder))
        for name in LENGTH_PREDICTORS.names()
    }
