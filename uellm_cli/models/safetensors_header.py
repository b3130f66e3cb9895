"""The bytes of a checkpoint's tensors, read from its safetensors headers alone.

Format: 8 bytes of little-endian length N, then N bytes of JSON: tensor name -> dtype, shape and
`data_offsets` (https://github.com/huggingface/safetensors#format). No weight is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uellm_cli.errors import ModelError

# The reference implementation refuses larger headers too.
MAX_HEADER_BYTES = 100_000_000

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output_layer|embed_out)\.")
_NORM = re.compile(r"(?:^|\.)(?:\w*norm\w*|ln_f)\.")
# Encoders of other media number their own layers; they are loaded with the embedding.
_OTHER_MEDIA = re.compile(r"vision|visual|audio|multi_modal|mm_projector")


@dataclass(frozen=True, slots=True)
class CheckpointBytes:
    """Stored bytes of a checkpoint by part; what is neither layer, head nor norm is `embedding`."""

    layers: Mapping[int, int]
    embedding: int
    head: int
    norm: int


def checkpoint_bytes(folder: Path) -> CheckpointBytes | None:
    """The bytes of the safetensors in `folder`; None if there are none, or not all shards.

    Raises ModelError, naming the file, when a header is damaged.
    """
    files = _checkpoint_files(folder)
    if not files or not all(file.is_file() for file in files):
        return None
    return group_tensors(pair for file in files for pair in tensor_bytes(file).items())


def tensor_bytes(file: Path) -> dict[str, int]:
    """Stored bytes of each tensor in one safetensors file. Raises ModelError."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, file.stat().st_size - 8):
                raise ModelError(f"{file}: not a safetensors file (header of {length} bytes)")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: its safetensors header is damaged: {error}") from None
    try:
        return {
            name: _span(entry["data_offsets"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelError(f"{file}: its safetensors header is damaged") from None


def group_tensors(tensors: Iterable[tuple[str, int]]) -> CheckpointBytes:
    """Tensor sizes added up by the part of the model that their names belong to."""
    layers: dict[int, int] = {}
    embedding = head = norm = 0
    for name, size in tensors:
        in_layer = None if _OTHER_MEDIA.search(name) else _LAYER.search(name)
        if in_layer:
            number = int(in_layer.group(1))
            layers[number] = layers.get(number, 0) + size
        elif _HEAD.search(name):
            head += size
        elif _NORM.search(name) and not _OTHER_MEDIA.search(name):
            norm += size
        else:
            embedding += size
    return CheckpointBytes(layers, embedding, head, norm)


def _span(offsets: Any) -> int:
    begin, end = offsets
    if not 0 <= begin <= end:
        raise ValueError(offsets)
    return int(end - begin)


def _checkpoint_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        # Adapters and consolidated copies lie beside a checkpoint under other names.
        return sorted(folder.glob("model*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / Path(str(shard)).name for shard in sorted(shards)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: the index of the checkpoint's files is damaged") from None
