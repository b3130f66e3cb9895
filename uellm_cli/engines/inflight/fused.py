"""Decoder layers in nine calls instead of forty, where they are of the kind most models have.

The kind is Llama's: norm, one product for query, key and value, rotary positions, attention, norm,
a gated MLP, each half added to what it was given. What a layer looks like says little of what it
computes (a model may scale its residual, or rotate by another rule): so this only proposes, and
`rewrite.py` tries before it believes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import nn

from uellm_cli.engines.inflight.attention import PackedAttention
from uellm_cli.engines.inflight.linears import Packing
from uellm_cli.engines.inflight.native import DTYPES, Kernels
from uellm_cli.engines.inflight.native_attention import NativeAttention
from uellm_cli.engines.inflight.step import Step

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}


def looks_like_llama(layer: Any) -> bool:
    """Whether a decoder layer has a Llama layer's parts, each of a kind that is known here."""
    if _children(layer) != _LAYER:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    if _children(attention) not in (_ATTENTION, _ATTENTION | _HEAD_NORMS):
        return False
    if _children(mlp) != _MLP or not isinstance(mlp.act_fn, nn.SiLU | _silu()):
        return False
    linears = [getattr(attention, name) for name in sorted(_ATTENTION)]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in sorted(_HEAD_NORMS & _children(attention))]
    return (
        all(type(linear) is nn.Linear for linear in linears)
        and all(hasattr(norm, "weight") and hasattr(norm, "variance_epsilon") for norm in norms)
        and layer.input_layernorm.weight.dtype in DTYPES
        and all(part.weight.device.type == "cpu" for part in (*linears, *norms))
    )


def is_only_layers(decoder: Any) -> bool:
    """Whether nothing stands around a decoder's fused layers but an embedding and a fused norm."""
    return (
        _children(decoder) == _DECODER
        and all(type(layer) is FusedLayer for layer in decoder.layers)
        and type(decoder.norm) is FusedNorm
    )


class FusedNorm(nn.Module):
    """An RMS norm in one call."""

    def __init__(self, norm: Any, kernels: Kernels) -> None:
        super().__init__()
        self.weight = norm.weight.detach()
        self.epsilon = float(norm.variance_epsilon)
        self._kernels = kernels

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self._kernels.rms_norm(rows.contiguous(), self.weight, self.epsilon)

    def of_sum(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Adds `rows` to `residual`, in place, and gives the norm of that."""
        return self._kernels.add_rms_norm(rows, residual, self.weight, self.epsilon)


class FusedLayer(nn.Module):
    """A layer that `looks_like_llama`, over the cache of `attention`.

    Of the last layer's output only the tokens count that are followed by a drawn one: the others
    only leave their keys and values.
    """

    def __init__(
        self,
        layer: Any,
        attention: PackedAttention,
        backend: NativeAttention,
        packing: Packing,
        is_last: bool,
    ) -> None:
        super().__init__()
        own, mlp, kernels = layer.self_attn, layer.mlp, backend.kernels
        self._attention = attention
        self._backend = backend
        self._kernels = kernels
        self.index = int(own.layer_idx)
        self._is_last = is_last
        self.input_norm = FusedNorm(layer.input_layernorm, kernels)
        self.mlp_norm = FusedNorm(layer.post_attention_layernorm, kernels)
        self.query_norm = FusedNorm(own.q_norm, kernels) if hasattr(own, "q_norm") else None
        self.key_norm = FusedNorm(own.k_norm, kernels) if hasattr(own, "k_norm") else None
        self._query_key_value = joined([own.q_proj, own.k_proj, own.v_proj], packing)
        self._output = joined([own.o_proj], packing)
        self._gate_up = joined([mlp.gate_proj, mlp.up_proj], packing)
        self._down = joined([mlp.down_proj], packing)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *_: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **__: Any,
    ) -> torch.Tensor:
        """[1, tokens, hidden]; what it is given is changed."""
        hidden, step = hidden_states[0], self._attention.step
        cos, sin = position_embeddings
        query = self.query(self.input_norm.forward(hidden), step, cos[0], sin[0])
        query, kept = self.wanted(query, hidden, step)
        if kept.shape[0]:
            kept += self.added(query, kept, step)
        if kept is not hidden:
            hidden.index_copy_(0, step.drawn_at, kept)
        return hidden_states

    def query(
        self, rows: torch.Tensor, step: Step, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """[tokens, query heads, size] of normed `rows`; keys and values go to the cache.

        `cos` and `sin` are [tokens, size].
        """
        layer, cache, group = self._attention.layers[self.index]
        heads = self._query_key_value(rows).view(rows.shape[0], -1, layer.key_size)
        query, key, value = torch.split(
            heads, [layer.query_heads, layer.kv_heads, layer.kv_heads], dim=1
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm.forward(query), self.key_norm.forward(key)
        slots = self._backend.prepared(group, step).slots
        self._kernels.rope_store(query, key, value, cos, sin, cache.keys, cache.values, slots)
        return query

    def wanted(
        self, query: torch.Tensor, hidden: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is left to compute with: of the last layer, the tokens that are drawn after."""
        if not self._is_last or step.drawn_at.shape[0] == hidden.shape[0]:
            return query, hidden
        return query.index_select(0, step.drawn_at), hidden.index_select(0, step.drawn_at)

    def added(self, query: torch.Tensor, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """What the MLP adds to `hidden`, once attention has added its part to it in place."""
        layer, cache, group = self._attention.layers[self.index]
        rows = query.shape[0]
        if rows == step.token_ids.shape[1]:
            plan = self._backend.prepared(group, step).plan
        else:
            plan = self._backend.plan_of_drawn(group, step)
        attended = self._backend.attended(layer, cache, plan, query).view(rows, -1)
        normed = self.mlp_norm.of_sum(self._output(attended), hidden)
        return self._down(self._kernels.silu_mul(self._gate_up(normed)))


class FusedDecoder(nn.Module):
    """A decoder of nothing but an embedding, `FusedLayer`s and a norm.

    What a layer adds is added where the next one's norm reads it: one pass over memory less. And
    of all that transformers does around layers, a step of few tokens feels every line.
    """

    def __init__(self, decoder: Any, attention: PackedAttention) -> None:
        super().__init__()
        self.embed_tokens = decoder.embed_tokens
        self.layers = decoder.layers
        self.norm = decoder.norm
        self.rotary_emb = decoder.rotary_emb
        self._attention = attention
        norms = [*(layer.input_norm for layer in decoder.layers[1:]), decoder.norm]
        self._layers = [*zip(decoder.layers, norms, strict=True)]

    def get_decoder(self) -> FusedDecoder:
        """As transformers asks for it."""
        return self

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> Any:
        """Of the [1, tokens, hidden] that come last, only tokens that are drawn after count."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        step = self._attention.step
        embedded = self.embed_tokens(input_ids)
        cos, sin = (part[0] for part in self.rotary_emb(embedded, position_ids))
        hidden = embedded[0]
        rows = self.layers[0].input_norm.forward(hidden)
        for layer, norm in self._layers:
            query = layer.query(rows, step, cos, sin)
            query, hidden = layer.wanted(query, hidden, step)
            if hidden.shape[0]:
                rows = norm.of_sum(layer.added(query, hidden, step), hidden)
        if hidden.shape[0] == embedded.shape[1]:
            last = rows[None]
        else:
            last = embedded.index_copy_(1, step.drawn_at, rows[None, : hidden.shape[0]])
        return BaseModelOutputWithPast(last_hidden_state=last)


def joined(linears: list[Any], packing: Packing) -> Callable[[torch.Tensor], torch.Tensor]:
    """One product that computes several of the same input, their outputs one after the other."""
    weight, bias = linears[0].weight.detach(), linears[0].bias
    if len(linears) > 1:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([_bias(linear) for linear in linears])
    packed = packing.linear(weight, bias)
    if packed is not None:
        return packed.forward
    return partial(F.linear, weight=weight, bias=None if bias is None else bias.detach())


def _bias(linear: Any) -> torch.Tensor:
    if linear.bias is not None:
        bias: torch.Tensor = linear.bias.detach()
        return bias
    return torch.zeros(linear.out_features, dtype=linear.weight.dtype)


def _children(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


def _silu() -> type[nn.Module]:
    from transformers.activations import SiLUActivation

    kind: type[nn.Module] = SiLUActivation
    return kind
