"""Attention on GPUs: keys and values are read in their pages, and no step waits for the host.

Rows that decode are the paged kernels' affair. Prompts are FlashAttention's, which torch has built
in, where it computes a layer's attention (`cuda_prompts.py`), and the paged kernels' elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch

from uellm_cli.engines.inflight.attention import AttentionBackend
from uellm_cli.engines.inflight.cache import LayerCache
from uellm_cli.engines.inflight.cuda_prompts import FlashPrompts, PackedPrompts
from uellm_cli.engines.inflight.layers import AttentionLayer
from uellm_cli.engines.inflight.step import Step
from uellm_cli.engines.inflight.uploads import upload


@dataclass(frozen=True, slots=True)
class PagedRows:
    """A step's rows for one group of layers, on a device.

    `slots` [tokens] say where keys and values go. Row r has the tokens from `starts[r]` to
    `starts[r + 1]`, the last of its `lengths[r]` tokens; its pages begin at `tables[r · width]`.
    All but the slots are 32-bit integers; `width` is one of them.
    """

    slots: torch.Tensor
    tables: torch.Tensor
    width: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True, slots=True)
class PromptBlocks:
    """Tokens of prompts that are computed together: block b has those of row `rows[b]` from the
    `tokens[b]`-th on that it has in the step."""

    rows: torch.Tensor
    tokens: torch.Tensor


class PagedKernels(Protocol):
    """The work of a GPU. Queries and outputs are those of a whole step: [tokens, heads, size]."""

    def store(
        self, key: torch.Tensor, value: torch.Tensor, cache: LayerCache, slots: torch.Tensor
    ) -> None:
        """Puts a step's keys and values into their slots."""
        ...

    def decode(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        count: int,
    ) -> None:
        """Writes the `output` of the first `count` tokens, each the only one of its row."""
        ...

    def prompts(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        query: torch.Tensor,
        output: torch.Tensor,
        rows: PagedRows,
        blocks: PromptBlocks,
    ) -> None:
        """Writes the `output` of the tokens of all blocks."""
        ...

    def prompt_tokens(self, layer: AttentionLayer) -> int:
        """Tokens of a block."""
        ...


def rows_key(group: int, device: torch.device) -> object:
    """Where a step's `prepared` has its `PagedRows`."""
    return ("paged rows", group, device)


class CudaAttention:
    """An `AttentionBackend`; `prompts` is None where only the kernels are to be used."""

    heads_first: ClassVar[bool] = False

    def __init__(
        self, page_tokens: int, kernels: PagedKernels, prompts: FlashPrompts | None
    ) -> None:
        self._page_tokens = page_tokens
        self._kernels = kernels
        self._prompts = prompts

    def attend(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        group: int,
        step: Step,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        rows = self._rows(layer, group, step)
        self._kernels.store(key, value, cache, rows.slots)
        output = query.new_empty(*query.shape[:2], layer.value_size)
        if step.decode_rows:
            self._kernels.decode(layer, cache, query, output, rows, step.decode_rows)
        if step.decode_rows == step.rows:
            return output
        if self._prompts is not None and self._prompts.fits(layer):
            packed = self._packed(layer, group, step)
            output[step.decode_rows :] = self._prompts.attend(
                layer, cache, packed, query, key, value
            )
        else:
            blocks = self._blocks(layer, step)
            self._kernels.prompts(layer, cache, query, output, rows, blocks)
        return output

    def _rows(self, layer: AttentionLayer, group: int, step: Step) -> PagedRows:
        name = rows_key(group, layer.device)
        known = step.prepared.get(name)
        if not isinstance(known, PagedRows):
            parts = step.groups[group]
            width = np.array([parts.tables.shape[1]], dtype=np.int32)
            arrays = (parts.slots, parts.tables, width, step.lengths, step.starts)
            known = PagedRows(*upload(arrays, layer.device))
            step.prepared[name] = known
        return known

    def _blocks(self, layer: AttentionLayer, step: Step) -> PromptBlocks:
        size = self._kernels.prompt_tokens(layer)
        name = ("prompt blocks", size, layer.device)
        known = step.prepared.get(name)
        if not isinstance(known, PromptBlocks):
            counts = np.diff(step.starts)[step.decode_rows :]
            blocks = -(-counts // size)
            rows = np.repeat(np.arange(step.decode_rows, step.rows), blocks)
            ends = np.cumsum(blocks)
            tokens = (np.arange(len(rows)) - np.repeat(ends - blocks, blocks)) * size
            arrays = (rows.astype(np.int32), tokens.astype(np.int32))
            known = PromptBlocks(*upload(arrays, layer.device))
            step.prepared[name] = known
        return known

    def _packed(self, layer: AttentionLayer, group: int, step: Step) -> PackedPrompts:
        name = ("packed prompts", group, layer.device)
        known = step.prepared.get(name)
        if not isinstance(known, PackedPrompts):
            known = PackedPrompts.of(step, group, layer, self._page_tokens)
            step.prepared[name] = known
        return known


class AttentionByDevice:
    """An `AttentionBackend` for a model on devices of several kinds: each kind has its own."""

    heads_first: ClassVar[bool] = False

    def __init__(self, backends: Mapping[str, AttentionBackend]) -> None:
        self._backends = dict(backends)

    def attend(
        self,
        layer: AttentionLayer,
        cache: LayerCache,
        group: int,
        step: Step,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        backend = self._backends[layer.device.type]
        return backend.attend(layer, cache, group, step, query, key, value)
