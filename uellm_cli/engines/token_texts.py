"""Tokens one by one, as OpenAI's log probabilities tell them: their text and their bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from uellm_cli.engines.rows import Decode, TokenScore
from uellm_cli.types import TokenLogprob

# "Very unlikely", in OpenAI's reference; JSON has no infinity.
LEAST_LOGPROB = -9999.0

_ONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class TokenTexts:
    """A tokenizer's vocabulary as text and bytes.

    The bytes of an answer's tokens, joined, are the answer's text in UTF-8, but for what decoding
    strips (a sentencepiece model's first space). Special tokens are no part of a text: they have
    none. A token that is a part of a character has its bytes escaped in its text: `\\xf0\\x9f`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}

    def logprobs(self, scores: Sequence[TokenScore]) -> tuple[TokenLogprob, ...]:
        return tuple(
            self._logprob(score.token, score.logprob, [self._logprob(*one) for one in score.top])
            for score in scores
        )

    def _logprob(
        self, token: int, logprob: float, top: Sequence[TokenLogprob] = ()
    ) -> TokenLogprob:
        if token not in self._known:
            self._known[token] = self.text_and_bytes(token)
        text, raw = self._known[token]
        return TokenLogprob(text, max(logprob, LEAST_LOGPROB), raw, tuple(top))

    def text_and_bytes(self, token: int) -> tuple[str, bytes]:
        """Empty for an id that the tokenizer has no token for, as models pad their vocabulary."""
        added = self._added.get(token)
        if added is not None:
            content = str(added.content)
            return content, b"" if added.special else content.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        raw = b"" if piece is None else self._piece_bytes(piece)
        return raw.decode(errors="backslashreplace"), raw

    def _piece_bytes(self, piece: str) -> bytes:
        if self._is_byte_level and _BYTES.keys() >= set(piece):
            return bytes(_BYTES[character] for character in piece)
        one_byte = _ONE_BYTE.fullmatch(piece)
        if one_byte is not None:
            return bytes.fromhex(one_byte[1])
        return piece.replace("▁", " ").encode()  # sentencepiece's mark for a space

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether pieces are written in GPT-2's alphabet of 256 characters, one for each byte."""
        return bool(self._tokenizer.convert_tokens_to_string(["Ġ"]) == " ")


def tokens_within(text: str, tokens: Sequence[int], decode: Decode) -> int:
    """How many of an answer's first tokens it takes to make `text`, which begins the answer.

    The last of them may reach beyond it, where a stop string begins within a token.
    """
    count = len(tokens)
    while count and decode(tokens[: count - 1]).startswith(text):
        count -= 1
    return count
