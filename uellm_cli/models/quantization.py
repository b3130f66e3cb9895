"""How many bits a quantised checkpoint stores for each linear weight, scales included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm_cli.errors import ModelError
from uellm_cli.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Stored bytes of one weight: of attention, of MLPs and experts, and of everything else."""

    attention_bytes: float
    mlp_bytes: float
    plain_bytes: float


def weight_format(config: ModelConfig) -> WeightFormat:
    """The format that the config's `quantization_config` declares; plain without one.

    Embeddings, head, norms, biases and routers stay in the model's own dtype, as the loaders of
    transformers leave them. Raises ModelError for a method whose size is not known.
    """
    plain = config.dtype_bytes
    declared = config.raw.get("quantization_config") or config.outer.get("quantization_config")
    if not isinstance(declared, dict):
        return WeightFormat(plain, plain, plain)
    quantised = _bits(declared, config) / 8
    skipped = declared.get("modules_to_not_convert") or ()
    keeps_attention = any("attn" in str(name) for name in skipped)
    return WeightFormat(plain if keeps_attention else quantised, quantised, plain)


def _bits(declared: Mapping[str, Any], config: ModelConfig) -> float:
    method = str(declared.get("quant_method", ""))
    if method == "bitsandbytes":
        return _bitsandbytes_bits(declared)
    if method in ("gptq", "awq"):
        return _grouped_bits(_positive(declared, "bits", 4), _positive(declared, "group_size", 0))
    if method in ("fp8", "fbgemm_fp8"):
        return 8.0
    if method == "mxfp4":
        # An 8-bit exponent for each block of 32 (OCP microscaling formats, v1.0).
        return 4 + 8 / 32
    if method == "compressed-tensors":
        return _compressed_tensors_bits(declared, config)
    raise ModelError(
        f"{config.file}: the stored size of quantisation method {method!r} is not known to uellm"
    )


def _bitsandbytes_bits(declared: Mapping[str, Any]) -> float:
    if not declared.get("load_in_4bit"):
        return 8.0
    # One float32 scale for each 64 weights; double quantisation stores the scales in 8 bits and
    # one float32 for 256 of them (QLoRA, arXiv 2305.14314, section 3).
    scale_bits = 8 + 32 / 256 if declared.get("bnb_4bit_use_double_quant") else 32
    return 4 + scale_bits / 64


def _grouped_bits(bits: int, group_size: int) -> float:
    # A float16 scale and a packed zero point for each group of inputs; group_size -1 is one a row.
    return bits + (16 + bits) / group_size if group_size else float(bits)


def _compressed_tensors_bits(declared: Mapping[str, Any], config: ModelConfig) -> float:
    groups = declared.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("num_bits"):
            bits = _positive(weights, "num_bits", 8)
            return _grouped_bits(bits, _positive(weights, "group_size", 0))
    raise ModelError(f"{config.file}: quantization_config names no num_bits of its weights")


def _positive(declared: Mapping[str, Any], name: str, default: int) -> int:
    value = declared.get(name)
    return value if isinstance(value, int) and value > 0 else default
