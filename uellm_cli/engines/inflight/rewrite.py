"""Replacing parts of a loaded model by faster ones that compute the same.

Part after part, so that no more than one is in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.check import Trial
from uellm_cli.engines.inflight.fused import (
    FusedDecoder,
    FusedLayer,
    FusedNorm,
    is_only_layers,
    looks_like_llama,
)
from uellm_cli.engines.inflight.linears import Packing
from uellm_cli.engines.inflight.native_attention import NativeAttention
from uellm_cli.engines.inflight.unsupported import why_failed


@dataclass(frozen=True, slots=True)
class Parts:
    """What is to be replaced: whole decoder layers, and linear layers that are left."""

    layers: bool = True
    linears: bool = True


class Spoiled(Exception):  # noqa: N818  # no error: the model is loaded again
    """The model computes something else now, and what it was is gone; replace `parts` only."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts


@dataclass(frozen=True, slots=True)
class Replacement:
    """The child `name` of `parent`, and what makes the part that is to stand in its place."""

    parent: nn.Module
    name: str
    make: Callable[[nn.Module], nn.Module]

    def apply(self) -> nn.Module:
        """Puts the new part in place, and gives the old one back."""
        old = self.part
        setattr(self.parent, self.name, self.make(old))
        return old

    @property
    def part(self) -> nn.Module:
        """What is in place now."""
        return self.parent.get_submodule(self.name)

    def undo(self, old: nn.Module) -> None:
        setattr(self.parent, self.name, old)


def fused_layers(
    model: Any, attention: PackedAttention, backend: NativeAttention, packing: Packing
) -> Iterator[Replacement]:
    """Whole decoder layers, and the last norm, of a model like Llama."""

    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", nn.ModuleList())
    for number, child in enumerate(layers):
        if looks_like_llama(child):
            is_last = number == len(layers) - 1
            make = partial(
                FusedLayer, attention=attention, backend=backend, packing=packing, is_last=is_last
            )
            yield Replacement(layers, str(number), make)
    norm = getattr(decoder, "norm", None)
    if norm is not None and hasattr(norm, "variance_epsilon"):
        yield Replacement(decoder, "norm", lambda old: FusedNorm(old, backend.kernels))


def fused_decoder(model: Any, attention: PackedAttention) -> Iterator[Replacement]:
    """The decoder around layers that are all fused."""
    decoder = model.get_decoder()
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is decoder and is_only_layers(decoder):
                yield Replacement(parent, name, partial(FusedDecoder, attention=attention))
                return


def packed_linears(model: Any, packing: Packing, spare_bytes: int) -> Iterator[Replacement]:
    """All plain linear layers, the one that gives the scores among them.

    A weight that is the embedding too stays in memory beside its packed self: such a layer is one
    of them only if that takes no more than `spare_bytes`.
    """

    def packed(old: Any) -> nn.Module:
        return packing.linear(old.weight, old.bias) or old

    parents = [(parent, [*parent.named_children()]) for parent in model.modules()]
    for parent, children in parents:
        for name, child in children:
            if (
                type(child) is nn.Linear
                and child.weight.device.type == "cpu"
                and (not _is_embedding(child, model) or child.weight.nbytes <= spare_bytes)
            ):
                yield Replacement(parent, name, packed)


def faster(attention: PackedAttention, trial: Trial, parts: Parts, spare_bytes: int) -> int:
    """Replaces what can be replaced by something faster that computes the same.

    Gives the bytes that this takes, up to `spare_bytes`. Raises Spoiled where the model computes
    something else afterwards.
    """
    packing, backend, taken = Packing(), attention.backend, 0
    if parts.layers and isinstance(backend, NativeAttention):
        with _or_only(replace(parts, layers=False)):
            _fuse(attention, backend, trial, packing)
    if parts.linears:
        with _or_only(replace(parts, linears=False)):
            taken = _pack(attention, trial, packing, spare_bytes)
    return taken


def _fuse(
    attention: PackedAttention, backend: NativeAttention, trial: Trial, packing: Packing
) -> None:
    """Tries the first layer alone before any other's weights are touched, and in the end all."""
    replacements = [*fused_layers(trial.model, attention, backend, packing)]
    if replacements and _stands(replacements[0], attention, trial):
        for replacement in replacements[1:]:
            replacement.apply()
        _check(attention, trial)
    for decoder in fused_decoder(trial.model, attention):
        _stands(decoder, attention, trial)


def _pack(attention: PackedAttention, trial: Trial, packing: Packing, spare_bytes: int) -> int:
    """Tries all together: one by one takes long, and what linear layers compute is no guess."""
    taken, is_changed = 0, False
    for replacement in packed_linears(trial.model, packing, spare_bytes):
        old: Any = replacement.apply()
        if replacement.part is not old:
            is_changed = True
            taken += old.weight.nbytes if _is_embedding(old, trial.model) else 0
    if is_changed:
        _check(attention, trial)
    return taken


def _is_embedding(linear: Any, model: Any) -> bool:
    is_it: bool = linear.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    return is_it


class _DiffersError(Exception):
    """What a model computes with its new parts is not what it was."""


@contextmanager
def _or_only(parts: Parts) -> Iterator[None]:
    """Whatever fails in here spoils the model, of which then only `parts` are to be replaced."""
    try:
        yield
    except Exception as error:
        why_failed(error)
        raise Spoiled(parts) from None


def _check(attention: PackedAttention, trial: Trial) -> None:
    off = trial.differs(attention)
    if off is not None:
        raise _DiffersError(off)


def _stands(replacement: Replacement, attention: PackedAttention, trial: Trial) -> bool:
    """Whether a part was replaced, since nothing else is computed with the new one."""
    old = replacement.apply()
    if trial.differs(attention) is None:
        return True
    replacement.undo(old)
    return False
