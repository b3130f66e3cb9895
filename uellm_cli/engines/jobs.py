"""A request that an engine is at work on, from its first round to its completion."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from uellm_cli.engines.grammar import Grammar
from uellm_cli.engines.sampling import RowSampling
from uellm_cli.types import Answer, Completion, EngineRequest, Failure, RequestTiming


@dataclass(slots=True)
class Job:
    """A request with the answers that it has so far; each round of a batch adds one.

    It is done with all of them, or with a `failure`. `grammar` is its schema at the beginning of
    an answer, None where it has none.
    """

    batch_id: int
    request: EngineRequest
    sampling: RowSampling
    grammar: Grammar | None = None
    answers: tuple[Answer, ...] = ()
    timing: RequestTiming | None = None
    failure: Failure | None = None

    @property
    def is_done(self) -> bool:
        return self.failure is not None or len(self.answers) == self.request.sampling.n

    def add(self, answer: Answer, timing: RequestTiming) -> None:
        """An answer, and its own round's timing."""
        # A greedy answer would only be made again.
        count = self.request.sampling.n if self.sampling.is_greedy else 1
        self.answers += (answer,) * count
        if self.timing is not None:
            first = self.timing
            timing = replace(timing, prefill_s=first.prefill_s, first_token_s=first.first_token_s)
        self.timing = timing

    def completion(self) -> Completion:
        """Of a job that is done; a failed one has no answers."""
        name, batch_id = self.request.custom_id, self.batch_id
        if self.failure is not None:
            return Completion(name, batch_id, failure=self.failure)
        return Completion(name, batch_id, self.timing, self.answers)
