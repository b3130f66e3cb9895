from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.builders import chat
from tests.unit.test_journal import failure, record
from tests.unit.test_openai_rows import INFO
from uellm_cli.clock import VirtualClock
from uellm_cli.config import Redoable, Resume
from uellm_cli.errors import RunDirectoryError
from uellm_cli.executor.index import Index
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.records import Record
from uellm_cli.executor.session import begin_again, timer_of
from uellm_cli.requests.store import RequestStore

FAILED_AGAIN = Resume(redo=(Redoable.FAILED,))


@pytest.fixture
def store(tmp_path: Path) -> RequestStore:
    kept = RequestStore(tmp_path, "model")
    for name in "ab":
        kept.add(chat(name, name), chat(name, name))
    return kept


def keyed(made: Record, store: RequestStore) -> Record:
    return Record(store.key(made.result.custom_id), made.result)


def due(journal: Journal) -> set[str]:
    return {name for name, entry in journal.index.entries.items() if entry.redo is not None}


def test_a_redo_that_was_interrupted_goes_on_and_one_that_ended_can_be_asked_for_anew(
    tmp_path: Path, store: RequestStore
) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        for name in "ab":
            journal.append(keyed(failure(name), store))
        begin_again(journal, FAILED_AGAIN, store)
        assert due(journal) == {"a", "b"}
        journal.append(keyed(failure("a"), store))
    with Journal.open(tmp_path / "journal") as journal:
        # Killed here: a has had its second try.
        begin_again(journal, FAILED_AGAIN, store)
        assert due(journal) == {"b"}
        journal.append(keyed(failure("b"), store))
        begin_again(journal, FAILED_AGAIN, store)
        assert due(journal) == {"a", "b"}


def test_kinds_in_another_order_are_the_same_redo(tmp_path: Path, store: RequestStore) -> None:
    both = (Redoable.FAILED, Redoable.TRUNCATED)
    with Journal.open(tmp_path / "journal") as journal:
        journal.append(keyed(failure("a"), store))
        journal.append(keyed(record("b", cut=True), store))
        begin_again(journal, Resume(redo=both), store)
        size = journal.index.size
        begin_again(journal, Resume(redo=(*reversed(both), *both)), store)
        assert journal.index.size == size


@pytest.mark.parametrize(
    ("name", "words"), [("b", "asks something else now"), ("gone", "is no request")]
)
def test_an_answer_to_something_else_is_named_and_let_go_of_only_when_that_is_allowed(
    name: str, words: str, tmp_path: Path, store: RequestStore
) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.append(keyed(record("a"), store))
        journal.append(record(name, key="of something else"))
        with pytest.raises(RunDirectoryError, match=f"'{name}', which {words}.*--changed-only"):
            begin_again(journal, Resume(), store)
        assert set(journal.index.entries) == {"a", name}
        begin_again(journal, Resume(changed_only=True), store)
        assert set(journal.index.entries) == {"a"}


def test_a_resumed_run_counts_from_the_first_start_and_never_before_its_last_answer() -> None:
    def began_s(passed_s: float, index: Index, is_resumed: bool) -> float:
        clock = VirtualClock(INFO.started + timedelta(seconds=passed_s))
        return timer_of(INFO, clock, index, is_resumed).began_s

    assert began_s(3.0, Index(), is_resumed=False) == 0.0
    # Killed before its first answer, it has been waiting all the same.
    assert began_s(86_400.0, Index(), is_resumed=True) == 86_400.0
    # A clock that was set back does not bring time back.
    assert began_s(-60.0, Index(latest_s=50.0), is_resumed=True) == 50.0


def test_simulated_time_goes_on_where_the_last_answer_was() -> None:
    info = replace(INFO, simulated=True)
    clock = VirtualClock(datetime(2027, 1, 1, tzinfo=UTC))
    timer = timer_of(info, clock, Index(latest_s=50.0), is_resumed=True)
    assert (timer.began_s, timer.elapsed_s()) == (50.0, 50.0)
