"""Output-length predictors: one file and one line each."""

from uellm_cli.registry import Registry
from uellm_cli.types import LengthPredictor

LENGTH_PREDICTORS: Registry[LengthPredictor] = Registry(
    "length predictor",
    {
        "constant": "uellm_cli.profiler.lengths.constant:Constant",
        "prompt-length": "uellm_cli.profiler.lengths.prompt_length:PromptLength",
    },
)
DEFAULT_PREDICTOR = "prompt-length"
