"""How much KV cache there is really room for, once a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from uellm_cli.engines.inflight.cache import LayerGroup

# Left for activations, graphs and what allocators lose: a share of a GPU's memory, and at least so
# much of it. A step that wants more makes the next ones smaller.
SPARE_SHARE = 0.06
LEAST_SPARE_BYTES = 2**29

# Bytes that can be had on a device, and bytes that it has.
FreeBytes = Callable[[torch.device], tuple[int, int]]


def free_on_cuda(device: torch.device) -> tuple[int, int]:
    """What the driver has left, and what torch holds and does not use."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused, total


def share_with_room(
    groups: Sequence[LayerGroup],
    page_tokens: int,
    counts: Sequence[int],
    free: FreeBytes = free_on_cuda,
) -> float:
    """The share of so many pages that there is room for: 1 where there is enough for all.

    Of GPUs; nothing is known of a CPU's memory here.
    """
    share = 1.0
    for device, wanted in _wanted_bytes(groups, page_tokens, counts).items():
        if device.type == "cuda":
            left, total = free(device)
            left -= max(LEAST_SPARE_BYTES, int(SPARE_SHARE * total))
            share = min(share, max(0, left) / max(1, wanted))
    return share


def _wanted_bytes(
    groups: Sequence[LayerGroup], page_tokens: int, counts: Sequence[int]
) -> Mapping[torch.device, int]:
    wanted: dict[torch.device, int] = {}
    for group, count in zip(groups, counts, strict=True):
        for layer in group.layers:
            size = count * page_tokens * layer.bytes_per_token
            wanted[layer.device] = wanted.get(layer.device, 0) + size
    return wanted
