"""What a model's attention layers are like, found out by asking the model itself.

Configurations name heads, windows and caps in as many ways as there are families. What an
attention module hands to the function that computes it is the same for all: so one short forward
pass is run with a function of ours that looks at what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from uellm_cli.engines.inflight.unsupported import Unsupported

# Tokens of the pass that looks: any text will do, as long as it is more than one token.
_LOOKED_AT = 3

# query, key, value: [1, heads, tokens, head size]; the result is [1, tokens, heads, head size].
AttentionFunction = Callable[..., tuple[torch.Tensor, None]]


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention layer, by what it computes.

    A query sees `window` keys, its own among them (None: all before it). Scores are multiplied by
    `scale`, and then bounded by `softcap` where there is one. `sinks` [query heads] are logits that
    take part in the softmax without a value.
    """

    index: int
    query_heads: int
    kv_heads: int
    key_size: int
    value_size: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """KV cache of one token."""
        return self.kv_heads * (self.key_size + self.value_size) * self.dtype.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether it is what every attention kernel computes, but for a window."""
        return self.softcap is None and self.sinks is None


def use_attention(model: Any, name: str, function: AttentionFunction) -> None:
    """Lets `function`, known to transformers by `name` from now on, compute all attention."""
    AttentionInterface.register(name, function)
    model.set_attn_implementation(name)


def observe_layers(model: Any) -> tuple[AttentionLayer, ...]:
    """The model's attention layers in the order of their indices.

    Changes which function computes the model's attention. Raises Unsupported where a layer's
    attention does not go through such a function, or is none that a cache of keys and values by
    position can serve.
    """
    seen: dict[int, AttentionLayer] = {}

    def look(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        layer = _layer(module, query, key, value, options)
        if layer.index in seen:
            raise Unsupported(f"layer {layer.index} computes attention more than once")
        seen[layer.index] = layer
        output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        return output, None

    use_attention(model, "uellm-looking", look)
    ids = torch.arange(_LOOKED_AT, device=model.device)[None]
    with torch.inference_mode():
        model(input_ids=ids, position_ids=ids.clone(), use_cache=False)
    if not seen:
        raise Unsupported("its attention cannot be replaced")
    return tuple(seen[index] for index in sorted(seen))


# What an attention module may hand over that changes nothing here.
_HARMLESS = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "s_aux",
        "scaling",
        "sliding_window",
        "softcap",
        "use_cache",
    }
)


def _layer(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: dict[str, Any],
) -> AttentionLayer:
    index = getattr(module, "layer_idx", None)
    if index is None:
        raise Unsupported("its attention layers are not numbered")
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    unknown = [
        name for name, given in options.items() if name not in _HARMLESS and given is not None
    ]
    if not is_causal or unknown or key.shape[2] != query.shape[2]:
        what = f"takes {', '.join(unknown)}" if unknown else "is not causal self-attention"
        raise Unsupported(f"the attention of layer {index} {what}")
    scale = options.get("scaling")
    sinks = options.get("s_aux")
    return AttentionLayer(
        index=int(index),
        query_heads=query.shape[1],
        kv_heads=key.shape[1],
        key_size=key.shape[3],
        value_size=value.shape[3],
        scale=float(query.shape[3] ** -0.5 if scale is None else scale),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=None if sinks is None else sinks.detach(),
        dtype=key.dtype,
        device=key.device,
    )
