"""Output-length predictors: one file and one line each."""

from uellm_cli.registry import Registry
from uellm_cli.types import LengthPredictor

LENGTH_PREDICTORS: Registry[LengthPredictor] = Registry(
    "length predictor",
    {
        "adapted": "uellm_cli.profiler.lengths.adapted:Adapted",
        "constant": "uellm_cli.profiler.lengths.constant:Constant",
        "encoder": "uellm_cli.profiler.lengths.encoder:Encoder",
        "history": "uellm_cli.profiler.lengths.history:History",
        "ngram": "uellm_cli.profiler.lengths.ngram:NGram",
        "oracle": "uellm_cli.profiler.lengths.oracle:Oracle",
        "prompt-length": "uellm_cli.profiler.lengths.prompt_length:PromptLength",
    },
)
DEFAULT_PREDICTOR = "ngram"
