"""The parts of an engine on GPUs: which there are, and whether they do for a model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from uellm_cli.engines.inflight.attention import AttentionBackend, PackedAttention
from uellm_cli.engines.inflight.check import Trial
from uellm_cli.engines.inflight.cuda_attention import (
    AttentionByDevice,
    CudaAttention,
    PagedKernels,
)
from uellm_cli.engines.inflight.cuda_graphs import CudaRecorder, GraphedModel, Record
from uellm_cli.engines.inflight.cuda_prompts import FlashPrompts
from uellm_cli.engines.inflight.packed import PackedModel, StepModel
from uellm_cli.engines.inflight.pages import PagePool
from uellm_cli.engines.inflight.torch_attention import TorchAttention
from uellm_cli.engines.loaded import input_device

Note = Callable[[str], None]


def kernels_for(device: torch.device, page_tokens: int) -> PagedKernels | None:
    """Triton's, which comes with torch for CUDA."""
    if device.type != "cuda":
        return None
    try:
        from uellm_cli.engines.inflight.triton_attention import TritonKernels
    except ImportError:
        return None
    return TritonKernels(page_tokens)


def recorder_for(device: torch.device) -> Record | None:
    """What records steps on a device, where that can be done."""
    return CudaRecorder(device) if device.type == "cuda" else None


def looks_ahead(device: torch.device) -> bool:
    """Whether there is a device that could be at work while the host is."""
    return device.type == "cuda"


def attention(trial: Trial, page_tokens: int, note: Note) -> PackedAttention | None:
    """Attention for a model of which layers are on GPUs; None where torch's own has to do.

    It has been tried. That it cannot be had is no reason not to run, whatever the reason is, but
    one to say so.
    """
    devices = {layer.device for layer in trial.layers}
    kernels = {device: kernels_for(device, page_tokens) for device in devices}
    own = {device.type: found for device, found in kernels.items() if found is not None}
    if not own:
        return None
    backends: dict[str, AttentionBackend] = {
        kind: CudaAttention(page_tokens, found, FlashPrompts.of_torch())
        for kind, found in own.items()
    }
    if len(backends) < len({device.type for device in devices}):
        backends["cpu"] = TorchAttention(page_tokens)
    (first, *others) = backends.values()
    packed = PackedAttention(trial.layers, AttentionByDevice(backends) if others else first)
    try:
        off = trial.differs(packed)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        off = f"{type(error).__name__}: {error}".splitlines()[0]
    if off is None:
        return packed
    note(f"attention is computed by torch's own functions, since uellm's kernels do not do ({off})")
    return None


def graphed(packed: PackedModel, note: Note) -> StepModel:
    """The model with its decoding steps as CUDA graphs, where that can be done at all.

    Takes a page from each of the cache's pools, for rows that nobody asked for.
    """
    cache, device = packed.cache, input_device(packed.model)
    record = recorder_for(device)
    is_whole = all(part.device == device for part in packed.model.parameters())
    if (
        record is None
        or not isinstance(packed.attention.backend, CudaAttention)
        or not is_whole
        or min(pool.count for pool in cache.pools) < 2
    ):
        return packed
    cache.pools = [PagePool(pool.count - 1) for pool in cache.pools]
    scratch = [pool.count for pool in cache.pools]
    return GraphedModel(packed, scratch, device, record, note)
