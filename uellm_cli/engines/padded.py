"""A left-padded batch through transformers' `generate`.

`generate` knows one temperature and one stop for the whole batch. Here every row has its own: a
logits processor chooses each row's token and makes its score the largest, so that `generate`'s
argmax picks it; a stopping criterion hands the tokens to the rows and ends the batch with its last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from uellm_cli.engines.loaded import LoadedModel
from uellm_cli.engines.rows import Decode, Row
from uellm_cli.engines.scores import choose
from uellm_cli.types import StepSample


def draw_batch(
    loaded: LoadedModel,
    rows: Sequence[Row],
    now_s: Callable[[], float],
    stop: Callable[[], bool],
    step_seen: Callable[[StepSample], None],
) -> RowStops:
    """Draws every row to its end, unless told to `stop` before; `step_seen` is told of each step.

    What each row has come to is in the row. Raises whatever breaks the batch.
    """
    prompts, mask = _left_padded(loaded, [row.request.prompt_token_ids for row in rows])
    scores = RowScores(rows)
    stops = RowStops(rows, scores, loaded.decode, now_s, stop, step_seen)
    with torch.inference_mode():
        loaded.model.generate(
            prompts,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max(row.request.max_tokens for row in rows),
                do_sample=False,  # RowScores samples, and `generate` takes what it chose
                pad_token_id=loaded.pad_id,
            ),
            logits_processor=[scores],
            stopping_criteria=[stops],
        )
    return stops


def _left_padded(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest prompt], on the model's device."""
    width = max(map(len, prompts))
    ids = [[loaded.pad_id] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = loaded.device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class RowScores(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Chooses the open rows' tokens, `chosen`, and makes each the largest of its row's scores."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.chosen: list[tuple[Row, int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of the model's scores [rows, vocab]."""
        at = [i for i, row in enumerate(self._rows) if row.is_open]
        if not at:
            self.chosen = []
            return scores
        rows = [self._rows[i] for i in at]
        tokens = choose(rows, scores if len(at) == len(self._rows) else scores[at])
        found = [(i, token) for i, token in zip(at, tokens, strict=True) if token is not None]
        self.chosen = [(self._rows[i], token) for i, token in found]
        if found:
            places = torch.tensor(found, device=scores.device)
            scores[places[:, 0], places[:, 1]] = torch.inf
        return scores


class RowStops(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Gives each row its token, and ends the batch with its last row or when told to stop.

    `first_token_s` is when all rows had their first token. Once `stopped`, rows take nothing more.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        scores: RowScores,
        decode: Decode,
        now_s: Callable[[], float],
        stop: Callable[[], bool],
        step_seen: Callable[[StepSample], None],
    ) -> None:
        self._rows = rows
        self._scores = scores
        self._decode = decode
        self._now_s = now_s
        self._stop = stop
        self._step_seen = step_seen
        self._last_s = now_s()
        self.first_token_s: float | None = None
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """Whether each row is to end, as bools [rows]."""
        # `generate` makes another step after the last one on devices where it looks one step late.
        if not self.stopped:
            self._tell(*input_ids.shape)
            self._take()
            self.stopped = self._stop()
        ended = [self.stopped or not row.is_open for row in self._rows]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)

    def _tell(self, rows: int, tokens: int) -> None:
        """Of the step that has just drawn; `tokens` are a row's, padding and the drawn one too."""
        began_s, self._last_s = self._last_s, self._now_s()
        seconds = self._last_s - began_s
        if self.first_token_s is None:
            self._step_seen(StepSample(rows * (tokens - 1), rows, 0, seconds))
        else:
            self._step_seen(StepSample(0, rows, rows * (tokens - 1), seconds))

    def _take(self) -> None:
        now_s = self._now_s()
        if self.first_token_s is None:
            self.first_token_s = now_s
        for row, token in self._scores.chosen:
            row.take(token, now_s, self._decode)
