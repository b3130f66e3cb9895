"""One stretch of a run, from a start or a resume to its end: what is left to do, and its clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from uellm_cli.clock import Clock, VirtualClock
from uellm_cli.config import Resume
from uellm_cli.errors import RunDirectoryError
from uellm_cli.executor.execute import Encode, RunTimer
from uellm_cli.executor.index import Entry, Index
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.progress import Before
from uellm_cli.executor.records import Outcome, Redo, Void
from uellm_cli.executor.todo import Todo
from uellm_cli.models.tokens import PromptTokenizer
from uellm_cli.profiler.profile import Profiler
from uellm_cli.requests.store import RequestStore
from uellm_cli.types import ProfiledRequest, RunInfo


def begin_again(journal: Journal, resume: Resume, store: RequestStore) -> None:
    """Notes in the journal which of its results count no more, and which are to be made again.

    Raises RunDirectoryError for a result that answers another request than the one of its id, where
    `resume` does not allow changes.
    """
    void = [
        custom_id
        for custom_id, entry in journal.index.entries.items()
        if custom_id not in store or store.key(custom_id) != entry.key
    ]
    if void and not resume.changed_only:
        now = "asks something else now" if void[0] in store else "is no request of the model's now"
        raise RunDirectoryError(
            f"the journal has an answer to {void[0]!r}, which {now} ({len(void)} such in all), "
            "though no file has changed; --changed-only lets go of such answers"
        )
    if void:
        journal.note(Void(tuple(void)))
    redo = Redo(tuple(sorted(set(resume.redo))), resume.max_tokens)
    # A redo that was interrupted goes on; it does not begin with what it has done already.
    if resume.redo and not (journal.index.last_redo == redo and journal.index.pending_redo()):
        journal.note(redo)


def left_to_do(
    requests: Sequence[ProfiledRequest], journal: Journal, store: RequestStore, profiler: Profiler
) -> Todo:
    """The requests without a result, and those whose result is to be made again."""
    left: list[ProfiledRequest] = []
    again: set[str] = set()
    for profiled in requests:
        entry = journal.index.entries.get(profiled.custom_id)
        if entry is None:
            left.append(profiled)
        elif entry.redo is not None:
            redone = _redone(profiled, entry.redo, store, profiler)
            if entry.outcome is not Outcome.TRUNCATED or _has_more_room(redone, entry):
                again.add(profiled.custom_id)
                left.append(redone)
    return Todo(left, store, again)


def _redone(
    profiled: ProfiledRequest, redo: Redo, store: RequestStore, profiler: Profiler
) -> ProfiledRequest:
    if redo.max_tokens is None:
        return profiled
    request = store.request(profiled.custom_id)
    return profiler.with_longer_cap(profiled, request, redo.max_tokens)


def all_done(todo: Todo, journal: Journal) -> bool:
    """Whether nothing is left of what a session had to do."""
    entries = journal.index.entries
    return all(name in entries and entries[name].redo is None for name in todo)


def _has_more_room(redone: ProfiledRequest, entry: Entry) -> bool:
    """Whether another try could say more than the one that was cut: it is the same otherwise."""
    return redone.max_tokens * redone.rounds * redone.copies > entry.output_tokens


def done_before(journal: Journal, todo: Todo, invalid: int) -> Before:
    """What was done when a session begins; lines that are no requests have failed already."""
    counts = Counter(
        entry.outcome.is_answer
        for custom_id, entry in journal.index.entries.items()
        if custom_id not in todo
    )
    return Before(answered=counts[True], failed=counts[False] + invalid)


def timer_of(info: RunInfo, clock: Clock, index: Index, is_resumed: bool) -> RunTimer:
    """Time since the run's first start, on the clock that its engine lives by.

    Simulated time begins at 0, and for a resumed run where the last answer was.
    """
    if info.simulated:
        began_s = index.latest_s
        clock = VirtualClock(info.started + timedelta(seconds=began_s))
        return RunTimer(clock, clock.now_s() - began_s, began_s)
    # Wall time, which may have been set back: no session begins before another's last answer.
    elapsed_s = max((clock.wall() - info.started).total_seconds(), index.latest_s)
    began_s = elapsed_s if is_resumed else 0.0
    return RunTimer(clock, clock.now_s() - elapsed_s, began_s)


def encoder_of(info: RunInfo, tokenizer: PromptTokenizer) -> Encode:
    """Prompts as token ids; where nobody reads them, as many zeros."""
    if info.simulated:
        return lambda members: [(0,) * member.profiled.prompt_tokens for member in members]
    return lambda members: tokenizer.encode([member.request for member in members])
