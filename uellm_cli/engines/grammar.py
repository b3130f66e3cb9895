"""Answers that follow a JSON Schema: which tokens may come next, by llguidance.

llguidance bounds what a schema may cost (the defaults of its LLParserLimits): one that is too much
is refused when it is compiled, or fails its own answer, within about a second.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from uellm_cli.types import Failure

# Between two parts of an answer: what pretty-printing needs, and no more. Without an end, a model
# that likes spaces fills its answer with them.
WHITESPACE = r" |\n[ \t]{0,32}"
# Compiled schemas that are kept; the requests of one file share a few.
KEPT_SCHEMAS = 64


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled schema, and how far one answer has come in it.

    `mask` is room for one bit a token [1, words of 32 bits], written anew before each use.
    """

    matcher: LLMatcher
    mask: NDArray[np.int32]

    def fresh(self) -> Grammar:
        """The schema for another answer; only of one that has taken no token yet."""
        return Grammar(self.matcher.deep_copy(), self.mask)

    def allowed(self, width: int) -> torch.Tensor | Failure:
        """Which of `width` token ids may come next, as bools [width].

        A failure where nothing can follow the schema, or where that costs too much to find out.
        """
        fill_next_token_bitmask(self.matcher, self.mask)
        if self.matcher.is_error():
            return _failure(self.matcher.get_error())
        # Ids beyond the tokenizer's vocabulary, where the model has more scores, are not allowed.
        bits = np.unpackbits(self.mask.view(np.uint8)[0], count=width, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))

    def completes(self, token: int) -> bool:
        """Goes on by a token that was allowed; whether the answer is whole, and nothing follows."""
        self.matcher.consume_token(token)
        # One whose cost is too much has stopped as well; `allowed` says so.
        return self.matcher.is_stopped() and not self.matcher.is_error()


class Grammars:
    """Compiles schemas for one tokenizer, which is itself prepared when first needed."""

    def __init__(self, tokenizer: Any, eos_ids: Collection[int]) -> None:
        self._hf_tokenizer = tokenizer
        self._eos_ids = sorted(eos_ids)
        self.compiled = lru_cache(KEPT_SCHEMAS)(self._compiled)

    def _compiled(self, schema: str) -> Grammar | Failure:
        """A JSON Schema's grammar; a failure where there is none, with its reason."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, Failure):
            return tokenizer
        try:
            source = LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_pattern": WHITESPACE}
            )
        except ValueError as error:
            return _failure(str(error))
        matcher = LLMatcher(tokenizer, source, log_level=0)
        if matcher.is_error():
            return _failure(matcher.get_error())
        return Grammar(matcher, allocate_token_bitmask(1, tokenizer.vocab_size))

    @cached_property
    def _tokenizer(self) -> LLTokenizer | Failure:
        # Of an end token that the tokenizer does not know, llguidance knows nothing either.
        known = [token for token in self._eos_ids if token < len(self._hf_tokenizer)]
        try:
            return llguidance.hf.from_tokenizer(self._hf_tokenizer, eos_token=known or None)
        except ValueError as error:
            reason = f"answers of this model cannot be made to follow a schema: {error}"
            return Failure("invalid_request", reason, "response_format")


def _failure(reason: str) -> Failure:
    # What follows the first line is the parser's state.
    first_line = reason.strip().partition("\n")[0]
    message = f"no answer can be made to follow this schema: {first_line}"
    return Failure("invalid_request", message, "response_format")
