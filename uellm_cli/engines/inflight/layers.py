"""What a model's attention layers are like, found out by asking the model itself.

Configurations name heads, windows and caps in as many ways as there are families. What an
attention module hands to the function that computes it is the same for all: so one short forward
pass is run with a function of ours that looks at what it is given. Some hand over a window, some
leave it to the mask: so transformers is given a mask of ours too, which tells what made it, and
that is asked which tokens see each other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from uellm_cli.engines.inflight.unsupported import Unsupported
from uellm_cli.engines.loaded import input_device

# Tokens of the pass that looks: any text will do, as long as it is more than one token.
_LOOKED_AT = 3
# The last position that a mask is asked about: no text is longer.
_FARTHEST = 2**20

# query, key, value: [1, heads, tokens, head size]; the result is [1, tokens, heads, head size].
AttentionFunction = Callable[..., tuple[torch.Tensor, None]]
# Of indices batch, head, query, key, which broadcast: whether the query sees the key.
SeesKey = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


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
    """Lets `function`, known to transformers by `name` from now on, compute all attention.

    As long as someone else holds it: transformers forgets nothing, and a function may have a cache.
    """
    AttentionInterface.register(name, weakref.proxy(function))
    model.set_attn_implementation(name)


class ObservedMasks:
    """Stands for transformers' masks: each of them is full of its number, from 1.

    So it is known again in whatever shape, type or place a layer gets it.
    """

    def __init__(self) -> None:
        self._windows: list[Callable[[], int | None]] = []

    def __call__(
        self,
        *,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: SeesKey,
        device: torch.device | str = "cpu",
        **_: Any,
    ) -> torch.Tensor:
        """As transformers asks for a mask; what it is to be is asked when a layer gets it."""
        self._windows.append(cache(partial(mask_window, mask_function, device)))
        shape = (batch_size, 1, q_length, kv_length)
        return torch.full(shape, float(len(self._windows)), device=device)

    def window(self, mask: torch.Tensor) -> int | None:
        """The window of what a layer got; None without one. Raises Unsupported."""
        number = int(mask.flatten()[0])
        if not 1 <= number <= len(self._windows) or not bool((mask == number).all()):
            raise Unsupported("it makes attention masks by itself")
        return self._windows[number - 1]()


def mask_window(sees: SeesKey, device: torch.device | str) -> int | None:
    """How many keys a query sees, its own the last of them; None where all before it.

    Raises Unsupported for a mask of another kind.
    """
    keys = torch.arange(_FARTHEST + 2, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)

    def seen(query: int) -> torch.Tensor:
        return sees(zero, zero, torch.full_like(zero, query), keys).broadcast_to(keys.shape)

    window = _FARTHEST + 1 - int(seen(_FARTHEST).int().argmax())
    for query in (_FARTHEST, _FARTHEST - 1, _FARTHEST // 3, 1):
        if not torch.equal(seen(query), (keys <= query) & (keys > query - window)):
            raise Unsupported("some of its tokens see others than those right before them")
    return None if window > _FARTHEST else window


def observe_layers(model: Any) -> tuple[AttentionLayer, ...]:
    """The model's attention layers in the order of their indices.

    Changes which function computes the model's attention. Raises Unsupported where a layer's
    attention does not go through such a function, or is none that a cache of keys and values by
    position can serve.
    """
    seen: dict[int, AttentionLayer] = {}
    masks = ObservedMasks()

    def look(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        layer = _layer(module, query, key, value, options)
        if mask is not None:
            layer = _masked(layer, masks.window(mask))
        if layer.index in seen:
            raise Unsupported(f"layer {layer.index} computes attention more than once")
        seen[layer.index] = layer
        output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        return output, None

    AttentionMaskInterface.register("uellm-looking", weakref.proxy(masks))
    use_attention(model, "uellm-looking", look)
    ids = torch.arange(_LOOKED_AT, device=input_device(model))[None]
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
        window=_window(options.get("sliding_window")),
        softcap=options.get("softcap"),
        # What takes part in a softmax is float32 wherever that is computed.
        sinks=None if sinks is None else sinks.detach().to(key.device, torch.float32).contiguous(),
        dtype=key.dtype,
        device=key.device,
    )


def _window(tokens: int | None) -> int | None:
    """One that no text is longer than is none."""
    return tokens if tokens and tokens <= _FARTHEST else None


def _masked(layer: AttentionLayer, window: int | None) -> AttentionLayer:
    """The layer with its mask's window, of which not all models tell attention as well."""
    if layer.window not in (None, window):
        raise Unsupported(
            f"the attention of layer {layer.index} is told of a window of {layer.window} tokens, "
            f"its mask is made for {window or 'all'}"
        )
    return replace(layer, window=window)
