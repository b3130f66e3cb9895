"""Models to measure with: Llama-shaped, of seeded random weights, made once and kept in a folder.

How fast an engine is does not depend on what the weights say. The tokenizer is one in name only:
token 17 is the word " 17", so that a text tells exactly which tokens it was made of. There is no
end token, and therefore nothing that an engine has to suppress to give an answer its length.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uellm_cli.atomic import cache_folder
from uellm_cli.errors import OutputError

BUNDLED = "bundled"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes, and how much work there is for it by default.

    `stored` is the dtype of its file. Weights are normal with a standard deviation of 0.04: wide
    enough that the likeliest token is seldom a near-tie.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    requests: int
    max_sequences: int
    context_tokens: int = 2048
    tie_word_embeddings: bool = True
    stored: str = "float32"


SHAPES: Mapping[str, Shape] = {
    "small": Shape(384, 6, 6, 6, 1024, 8192, requests=256, max_sequences=64),
    "medium": Shape(1024, 12, 16, 8, 2816, 32_000, requests=64, max_sequences=32),
    "large": Shape(896, 24, 14, 2, 4864, 151_936, requests=32, max_sequences=32),
    "1b": Shape(
        2048, 16, 32, 8, 8192, 128_256, requests=512, max_sequences=256, context_tokens=8192,
        stored="bfloat16",
    ),
    "8b": Shape(
        4096, 32, 32, 8, 14_336, 128_256, requests=512, max_sequences=256, context_tokens=8192,
        tie_word_embeddings=False, stored="bfloat16",
    ),
}  # fmt: skip


def default_cache() -> Path:
    """Where made models are kept: the user's cache folder."""
    return cache_folder("bench", os.environ)


def make_model(name: str, seed: int, cache: Path) -> Path:
    """The folder of the model `name` of `SHAPES`, made if it is not there yet."""
    shape = SHAPES[name]
    identity = hashlib.sha256(json.dumps([asdict(shape), seed]).encode()).hexdigest()[:8]
    folder = cache / f"{name}-{identity}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
        try:
            _write_model(shape, seed, unfinished)
            _write_tokenizer(shape, unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder}: the model cannot be written: {error}") from error
    return folder


def model_config(shape: Shape, spread: float, dtype: str) -> Any:
    """transformers' config of a Llama of this shape, its weights drawn with that deviation."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
        max_position_embeddings=shape.context_tokens,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=None,
        dtype=dtype,
    )


def _write_model(shape: Shape, seed: int, folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config = model_config(shape, spread=0.04, dtype=shape.stored)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, shape.stored))
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    space = "\u0120"  # how byte-level vocabularies write it
    tokenizer = Tokenizer(models.BPE({f"{space}{i}": i for i in range(shape.vocab_size)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
