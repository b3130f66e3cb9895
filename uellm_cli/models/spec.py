"""From a model's folder, `config.json` or Hub id to its `ModelSpec`, without loading weights.

Where safetensors lie in the folder their headers give every byte (MEASURED); else weights are
counted from the config: SPECIFIED for a family in `families.py`, ASSUMED for others (computed as a
gated transformer) and for models with a vision tower, which the count leaves out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from uellm_cli.errors import ModelError
from uellm_cli.models.config import ModelConfig, read_config
from uellm_cli.models.kinds import layer_kinds
from uellm_cli.models.kv import kv_layers
from uellm_cli.models.parameters import (
    LayerParameters,
    embedding_parameters,
    head_parameters,
    layer_parameters,
    norm_parameters,
)
from uellm_cli.models.quantization import WeightFormat, weight_format
from uellm_cli.models.safetensors_header import CheckpointBytes, checkpoint_bytes
from uellm_cli.types import LayerSpec, ModelSpec, Source

CONFIG_FILE = "config.json"


def load_model_spec(model: str | Path) -> ModelSpec:
    """The spec of `model`: a folder, a config file, or a Hub id (cached, or fetched: config only).

    Raises ModelError when there is no such model or its description cannot be understood.
    """
    if str(model) == "":
        raise ModelError("the model's name is empty")
    path = Path(model).expanduser()
    if path.is_file():
        # A bare config is all there is: what lies beside it belongs to other models.
        return spec_from_config(read_config(path), path.stem)
    if path.is_dir():
        config_file = path / CONFIG_FILE
        if not config_file.is_file():
            raise ModelError(f"{path}: the model folder has no {CONFIG_FILE}")
        name = path.resolve().name
    elif _looks_like_path(str(model)):
        raise ModelError(
            f"there is no model folder or file {str(model)!r}; give a folder with {CONFIG_FILE}, "
            "such a file itself, or a Hub id like 'org/name'"
        )
    else:
        config_file, name = _hub_config(str(model)), str(model)
    spec = spec_from_config(read_config(config_file), name)
    stored = checkpoint_bytes(config_file.parent)
    return spec if stored is None else _with_stored_bytes(spec, stored, config_file)


def spec_from_config(config: ModelConfig, name: str) -> ModelSpec:
    """What the config alone says; layer, embedding, head and norm bytes are counted weights."""
    stored = weight_format(config)
    kinds = layer_kinds(config)
    counted = [layer_parameters(config, i, kind) for i, kind in enumerate(kinds)]
    caches = kv_layers(config, kinds)
    is_counted_whole = config.is_known_family and not config.has_vision
    return ModelSpec(
        name=name,
        architecture=config.architecture,
        dtype_bytes=_mean_weight_bytes(counted, stored),
        hidden_size=config.hidden,
        vocab_size=config.vocab,
        context_tokens=config.context,
        layers=tuple(
            LayerSpec(
                weight_bytes=_layer_bytes(layer, layer.experts, stored),
                active_bytes=_layer_bytes(layer, layer.active_experts, stored),
                kv_bytes_per_token=cache.bytes_per_token,
                kv_window_tokens=cache.window_tokens,
                state_bytes=cache.state_bytes,
            )
            for layer, cache in zip(counted, caches, strict=True)
        ),
        embedding_bytes=round(embedding_parameters(config) * stored.plain_bytes),
        head_bytes=round(head_parameters(config) * stored.plain_bytes),
        norm_bytes=round(norm_parameters(config) * stored.plain_bytes),
        weight_source=Source.SPECIFIED if is_counted_whole else Source.ASSUMED,
        num_kv_heads=config.kv_heads,
        is_moe=any(layer.experts for layer in counted),
    )


def _layer_bytes(layer: LayerParameters, experts: int, stored: WeightFormat) -> int:
    return round(
        layer.attention * stored.attention_bytes
        + (layer.mlp + experts) * stored.mlp_bytes
        + layer.plain * stored.plain_bytes
    )


def _mean_weight_bytes(layers: list[LayerParameters], stored: WeightFormat) -> float:
    weights = sum(part.attention + part.mlp + part.experts + part.plain for part in layers)
    return sum(_layer_bytes(part, part.experts, stored) for part in layers) / weights


def _with_stored_bytes(spec: ModelSpec, stored: CheckpointBytes, config_file: Path) -> ModelSpec:
    missing = [i for i in range(len(spec.layers)) if i not in stored.layers]
    if missing:
        raise ModelError(
            f"{config_file}: the config has {len(spec.layers)} layers, but the safetensors beside "
            f"it hold no tensor of layer {missing[0]}"
        )
    # Layers beyond the config's are prediction heads for training that no loader here uses.
    layers = tuple(
        replace(
            layer,
            weight_bytes=stored.layers[i],
            active_bytes=round(stored.layers[i] * layer.active_bytes / layer.weight_bytes),
        )
        for i, layer in enumerate(spec.layers)
    )
    return replace(
        spec,
        layers=layers,
        embedding_bytes=stored.embedding,
        # A tied head that was saved all the same is dropped on loading.
        head_bytes=stored.head if spec.head_bytes else 0,
        norm_bytes=stored.norm,
        weight_source=Source.MEASURED,
    )


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _hub_config(model: str) -> Path:
    """The Hub model's config.json: from the local cache, else fetched. Raises ModelError."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(model, CONFIG_FILE, local_files_only=True))
        except LocalEntryNotFoundError:
            # Asked once: the download itself would retry for half a minute without a network.
            get_hf_file_metadata(hf_hub_url(model, CONFIG_FILE))
            return Path(hf_hub_download(model, CONFIG_FILE))
    except Exception as error:  # errors of the Hub and of its HTTP client share no other base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"there is no model folder or file {model!r}, and it could not be had from the "
            f"Hugging Face Hub: {reason}"
        ) from None
