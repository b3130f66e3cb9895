"""What a model's own generation config asks for: looked at before requests rely on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

from transformers import GenerationConfig

from uellm_cli.errors import ModelError
from uellm_cli.models.files import find_model_file

FILE = "generation_config.json"

# What requests take from it, where they do not say themselves, with the values that make sense.
_HONOURED: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("at least 0", lambda value: 0 <= value < math.inf),
    "top_p": ("between 0 and 1", lambda value: 0 <= value <= 1),
    "top_k": ("at least 0", lambda value: 0 <= value < math.inf),
    "min_p": ("between 0 and 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("above 0", lambda value: 0 < value < math.inf),
}
# What would change answers in transformers' `generate`, and changes none here; with what is no
# change.
_IGNORED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
}


def check_defaults(model: str, defaults: GenerationConfig, note: Callable[[str], None]) -> None:
    """Raises ModelError for a config that cannot be read or meant; notes what is not followed.

    transformers passes over a file that it cannot read, as if the model had none.
    """
    path = find_model_file(model, FILE)
    if path is not None:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from None
    for name, (range_, allows) in _HONOURED.items():
        value = getattr(defaults, name, None)
        if value is not None and not (isinstance(value, int | float) and allows(value)):
            raise ModelError(f"model {model!r}: its {FILE} has {name} {value!r}, not {range_}")
    ignored = [
        name
        for name, harmless in _IGNORED.items()
        if getattr(defaults, name, None) not in (None, *harmless)
    ]
    if ignored:
        note(f"{model}: its {FILE} has {', '.join(ignored)}, which uellm does not follow")
