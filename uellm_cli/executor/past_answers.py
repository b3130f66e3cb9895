"""The answers of a run as examples to learn from: its journal joined with what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from uellm_cli.config import Settings
from uellm_cli.errors import PredictorError, RequestFileError, RunDirectoryError
from uellm_cli.executor.index import Index, ResultReader, read_index
from uellm_cli.executor.run_directory import JOURNAL, PIPED, RUN, read_run_info
from uellm_cli.requests import read_requests
from uellm_cli.requests.keys import answer_key, content_of, model_salt
from uellm_cli.types import Example, FinishReason, Request, Result, RunInfo


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run that has answered something, whether it is over or not."""

    directory: Path
    info: RunInfo
    index: Index

    @classmethod
    def open(cls, directory: Path) -> PastRun:
        """RunDirectoryError where there is no run; PredictorError for one that was simulated."""
        info = read_run_info(directory)
        if info.simulated:
            raise PredictorError(
                f"{directory}: its answers were simulated, and there is nothing to learn from them"
            )
        return cls(directory, info, read_index(directory / JOURNAL))

    def answers(self) -> Iterator[tuple[Request, Result | None]]:
        """Each valid request of its files, and the result that stands for it.

        None where there is no answer, or one to what the request asked before its file changed.
        Raises RequestFileError where the files are no longer there.
        """
        salt = model_salt(self.info.model_fingerprint)
        settings = self._settings()
        paths = [self._located(name) for name in settings.requests]
        with (self.directory / JOURNAL).open("rb") as journal:
            reader = ResultReader(journal)
            try:
                for request in read_requests(
                    paths, started=self.info.started, limit=settings.limit
                ):
                    if not isinstance(request, Request):
                        continue
                    entry = self.index.entries.get(request.custom_id)
                    key = answer_key(content_of(request), salt).hex()
                    stands = entry is not None and entry.outcome.is_answer and entry.key == key
                    yield request, reader.result(entry) if entry and stands else None
            except RequestFileError as error:
                raise RequestFileError(
                    f"{self.directory}: what it was asked cannot be read: {error}"
                ) from None

    def _settings(self) -> Settings:
        try:
            return msgspec.convert(self.info.settings, Settings)
        except msgspec.ValidationError as error:
            raise RunDirectoryError(f"{self.directory / RUN}: {error}") from None

    def _located(self, name: str) -> str:
        """A copy of what came through a pipe is in the run's directory, wherever that is now."""
        copy = self.directory / name
        return str(copy) if name.startswith(PIPED) and copy.exists() else name


def examples_of(request: Request, result: Result, task: str = "") -> list[Example]:
    """One for each answer that was made: copies of a greedy one say nothing new.

    None where the length was not the model's to choose.
    """
    if not request.sampling.is_length_free:
        return []
    made = result.answers[: len(result.answers) // result.copies]
    return [
        Example(
            request,
            result.prompt_tokens,
            answer.output_tokens,
            censored=answer.finish_reason is FinishReason.LENGTH,
            task=task,
        )
        for answer in made
        if answer.output_tokens
    ]
