"""Cutting a prompt that is longer than the model's context, where the user asks for that.

The start of the longest text goes first, since what is asked mostly stands at the end (vLLM's
`truncate_prompt_tokens` keeps the last tokens too). Texts are cut, not token ids: roles, system
prompt and the template's own tokens stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from uellm_cli.types import Message, ModelSpec, Request


def prompt_room(model: ModelSpec, max_tokens: int | None) -> int:
    """The most tokens a cut prompt may have.

    What is left of the context is for the answer: its cap, but never more than half of the
    context, and a quarter where there is no cap.
    """
    context = model.context_tokens
    wanted = context // 4 if max_tokens is None else max_tokens
    return context - max(1, min(wanted, context // 2))


def truncated(request: Request, count: Callable[[Request], int], room: int) -> Request | None:
    """`request` with as little text cut as it takes to have at most `room` tokens by `count`.

    None if even single characters are too much.
    """
    texts = [message.content for message in request.messages] or [request.prompt]
    for place in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        cut = partial(_without_start, request, texts, place)
        most = max(len(texts[place]) - 1, 0)
        if count(cut(most)) <= room:
            return _least_cut(cut, count, room, most)
        texts[place] = texts[place][most:]
    return None


def _least_cut(
    cut: Callable[[int], Request], count: Callable[[Request], int], room: int, most: int
) -> Request:
    """The request with the fewest characters cut that fits, by halving; `most` of them fit.

    Cutting a character may add a token where it splits a word, so this is a least cut, not always
    the least.
    """
    too_few = -1
    while most - too_few > 1:
        middle = (most + too_few) // 2
        if count(cut(middle)) <= room:
            most = middle
        else:
            too_few = middle
    return cut(most)


def _without_start(request: Request, texts: Sequence[str], place: int, chars: int) -> Request:
    """`request` with `texts`, of which the one at `place` loses its first `chars` characters."""
    texts = [*texts[:place], texts[place][chars:], *texts[place + 1 :]]
    if not request.messages:
        return replace(request, prompt=texts[0])
    pairs = zip(request.messages, texts, strict=True)
    return replace(request, messages=tuple(Message(m.role, text) for m, text in pairs))
