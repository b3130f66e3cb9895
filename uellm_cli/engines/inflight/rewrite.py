"""Replacing parts of a loaded model by faster ones that compute the same.

Part after part, so that no more than one is in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Replacement:
    """The child `name` of `parent`, and what makes the part that is to stand in its place."""

    parent: nn.Module
    name: str
    make: Callable[[nn.Module], nn.Module]

    def apply(self) -> nn.Module:
        """Puts the new part in place, and gives the old one back."""
        old = self.parent.get_submodule(self.name)
        setattr(self.parent, self.name, self.make(old))
        return old

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


def packed_linears(model: Any, packing: Packing) -> Iterator[Replacement]:
    """All plain linear layers, the one that gives the scores among them."""

    def packed(old: Any) -> nn.Module:
        return packing.linear(old.weight, old.bias) or old

    parents = [(parent, [*parent.named_children()]) for parent in model.modules()]
    for parent, children in parents:
        for name, child in children:
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                yield Replacement(parent, name, packed)


class Spoiled(Exception):  # noqa: N818  # no error: the model is loaded again
    """The model computes something else now, and what it was is gone."""


def faster(model: Any, attention: PackedAttention, trial: Trial, whole_layers: bool) -> None:
    """Replaces what can be replaced by something faster that computes the same.

    With `whole_layers` the first of them is tried alone before any other's weights are touched, and
    all together in the end: raises Spoiled where they differ from the first. Linear layers that are
    left are tried one by one.
    """
    packing = Packing()
    backend = attention.backend
    if whole_layers and isinstance(backend, NativeAttention):
        replacements = [*fused_layers(model, attention, backend, packing)]
        if replacements and _stands(replacements[0], attention, trial):
            for replacement in replacements[1:]:
                replacement.apply()
            if _is_off(attention, trial):
                raise Spoiled
        for decoder in fused_decoder(model, attention):
            _stands(decoder, attention, trial)
    for replacement in packed_linears(model, packing):
        replacement.apply()


def _stands(replacement: Replacement, attention: PackedAttention, trial: Trial) -> bool:
    """Whether a part was replaced, since nothing else is computed with the new one."""
    old = replacement.apply()
    if not _is_off(attention, trial):
        return True
    replacement.undo(old)
    return False


def _is_off(attention: PackedAttention, trial: Trial) -> bool:
    try:
        return trial.differs(attention) is not None
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return True  # its layers are called in another way, or give back something else
