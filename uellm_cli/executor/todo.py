"""What is left to answer: profiles in memory, texts in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from uellm_cli.requests.store import RequestStore
from uellm_cli.types import ProfiledRequest, Request


@dataclass(frozen=True, slots=True)
class Work:
    """A request that is to be answered: its text, its profile, and what its answer's key will be.

    `again` says that it has a result that is to be made again.
    """

    request: Request
    profiled: ProfiledRequest
    key: str
    again: bool = False


class Todo(Mapping[str, Work]):
    """Work by `custom_id`, its text fetched from the store each time it is asked for.

    `profiled` is what planning knows of it, `again` are the ids of what has a result already.
    """

    def __init__(
        self, profiled: Iterable[ProfiledRequest], store: RequestStore, again: Iterable[str] = ()
    ) -> None:
        self.profiled = {request.custom_id: request for request in profiled}
        self._store = store
        self.again = frozenset(again)

    def __getitem__(self, custom_id: str) -> Work:
        return Work(
            request=self._store.request(custom_id),
            profiled=self.profiled[custom_id],
            key=self._store.key(custom_id),
            again=custom_id in self.again,
        )

    def __contains__(self, custom_id: object) -> bool:
        return custom_id in self.profiled

    def __iter__(self) -> Iterator[str]:
        return iter(self.profiled)

    def __len__(self) -> int:
        return len(self.profiled)
