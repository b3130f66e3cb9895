"""Learning how long answers are: trainers by kind, one file and one line each."""

from uellm_cli.registry import Registry
from uellm_cli.types import PredictorTrainer

TRAINERS: Registry[PredictorTrainer] = Registry(
    "trainable predictor",
    {
        "encoder": "uellm_cli.profiler.learning.encoder:EncoderTrainer",
        "history": "uellm_cli.profiler.learning.history:HistoryTrainer",
        "ngram": "uellm_cli.profiler.learning.ngram:NGramTrainer",
    },
)
DEFAULT_TRAINER = "ngram"
