"""From a row that has ended to its answer."""

from __future__ import annotations

from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.rows import Row, cut_at_stop
from uellm_cli.engines.token_texts import TokenTexts, tokens_within
from uellm_cli.types import Answer, TokenLogprob


class AnswerMaker:
    """Of one model: it keeps the texts of the tokens whose log probabilities it has told."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._decode = loaded.decode
        self._texts = TokenTexts(loaded.tokenizer)

    def answer(self, row: Row) -> Answer:
        """Of a row with an `end`: its text up to a stop string, without the token that ended it.

        That token and the stop string count as output, and have no log probabilities.
        """
        if row.end is None:
            raise ValueError(f"a row of {row.request.custom_id!r} has not ended")
        whole = self._decode(row.content)
        text = cut_at_stop(whole, row.request.sampling.stop, row.first_stop_from(self._decode))
        logprobs = None
        if row.request.sampling.logprobs is not None:
            logprobs = self._logprobs(row, None if text == whole else text)
        return Answer(text, len(row.tokens), row.end.reason, logprobs)

    def _logprobs(self, row: Row, cut: str | None) -> tuple[TokenLogprob, ...]:
        """Of the tokens that the text is made of: `cut`, or all its content."""
        count = len(row.content)
        if cut is not None:
            count = tokens_within(cut, row.content, self._decode)
        return self._texts.logprobs(row.scores[:count])
