"""A model's `config.json`, whatever its family calls the fields, as one `ModelConfig`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uellm_cli.errors import ModelError
from uellm_cli.models.families import FAMILIES, UNKNOWN, Family

# What one field is called in the configs of different families; the first that is there counts.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "multi_query_group_num", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim", "kv_channels"),
    # Llama 4 keeps its dense layers' size apart; `intermediate_size` is an expert's there.
    "intermediate": (
        "intermediate_size_mlp",
        "intermediate_size",
        "ffn_hidden_size",
        "ffn_dim",
        "n_inner",
    ),
    "expert_intermediate": ("moe_intermediate_size", "intermediate_size"),
    "vocab": ("padded_vocab_size", "vocab_size"),
    "context": (
        "max_position_embeddings",
        "seq_length",
        "n_positions",
        "max_sequence_length",
        "max_seq_len",
        "n_ctx",
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token", "num_experts_per_token"),
    "shared_experts": ("n_shared_experts", "num_shared_experts"),
}

DTYPE_BYTES: Mapping[str, float] = {
    "float64": 8,
    "float32": 4,
    "float": 4,
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
DEFAULT_DTYPE = "bfloat16"

# Real configs take a few kilobytes and have some hundred layers; beyond this it is no such file.
MAX_CONFIG_BYTES = 16 * 2**20
MAX_LAYERS = 1_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A config with the fields that every decoder has; `raw` is the text model's own mapping."""

    file: Path
    raw: Mapping[str, Any]
    outer: Mapping[str, Any]
    model_type: str
    architecture: str
    family: Family
    is_known_family: bool
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    dtype_bytes: float
    is_tied: bool

    def optional(self, name: str) -> int | None:
        """The positive whole number called `name` in `ALIASES` or in the file; None if unset."""
        return _number(self.raw, name, self.family, self.file)

    def flag(self, name: str) -> bool:
        return self.raw.get(name) is True

    @property
    def has_vision(self) -> bool:
        return "vision_config" in self.outer


def read_config(file: Path) -> ModelConfig:
    """The config at `file`.

    Raises ModelError, naming the file and field, when it is not JSON or a needed field is missing.
    """
    outer = _read_json(file)
    nested = outer.get("text_config")
    raw = nested if isinstance(nested, dict) else outer
    model_type = str(raw.get("model_type", outer.get("model_type", "")))
    family = FAMILIES.get(model_type, UNKNOWN)

    def need(name: str) -> int:
        value = _number(raw, name, family, file)
        if value is None:
            raise ModelError(
                f"{file}: the model config has no {ALIASES[name][0]!r} (nor another name for it), "
                "so the model's size cannot be computed"
            )
        return value

    hidden, heads, layers = need("hidden"), need("heads"), need("layers")
    if layers > MAX_LAYERS:
        raise ModelError(f"{file}: {layers} layers are more than any model has ({MAX_LAYERS})")
    architectures = outer.get("architectures") or [model_type or "unknown"]
    return ModelConfig(
        file=file,
        raw=raw,
        outer=outer,
        model_type=model_type,
        architecture=str(architectures[0]) if isinstance(architectures, list) else model_type,
        family=family,
        is_known_family=model_type in FAMILIES,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(raw, heads, family, file),
        head_dim=_number(raw, "head_dim", family, file) or max(1, hidden // heads),
        intermediate=_intermediate(raw, hidden, family, file) or need("intermediate"),
        vocab=need("vocab"),
        context=need("context"),
        dtype_bytes=_dtype_bytes(raw, outer, file),
        is_tied=_is_tied(raw, outer, family),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{file}: too large to be a model config")
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: the model config cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: the model config is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: the model config holds a {type(data).__name__}, not an object")
    return data


def _number(raw: Mapping[str, Any], name: str, family: Family, file: Path) -> int | None:
    names = ALIASES.get(name, (name,))
    for source in (raw, family.defaults):
        for alias in names:
            value = source.get(alias)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelError(f"{file}: {alias} must be a whole number, not {value!r}")
            if value > 0:
                return value
    return None


def _kv_heads(raw: Mapping[str, Any], heads: int, family: Family, file: Path) -> int:
    # Falcon and GPT-BigCode say only that there is a single shared head.
    shared_one = raw.get("multi_query") is True and not raw.get("new_decoder_architecture")
    if shared_one:
        return 1
    return _number(raw, "kv_heads", family, file) or heads


def _intermediate(raw: Mapping[str, Any], hidden: int, family: Family, file: Path) -> int | None:
    stated = _number(raw, "intermediate", family, file)
    if stated is not None:
        return stated
    # Families with a plain MLP leave its size out when it is four times the hidden size.
    return None if family.gated_mlp else 4 * hidden


def _dtype_bytes(raw: Mapping[str, Any], outer: Mapping[str, Any], file: Path) -> float:
    stated = [m.get(key) for m in (raw, outer) for key in ("dtype", "torch_dtype") if m.get(key)]
    name = str(stated[0] if stated else DEFAULT_DTYPE).removeprefix("torch.")
    if name == "auto":
        name = DEFAULT_DTYPE
    if name not in DTYPE_BYTES:
        raise ModelError(f"{file}: dtype {name!r} is not known; known: {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[name]


def _is_tied(raw: Mapping[str, Any], outer: Mapping[str, Any], family: Family) -> bool:
    for source in (raw, outer):
        if isinstance(source.get("tie_word_embeddings"), bool):
            return bool(source["tie_word_embeddings"])
    return family.tied
