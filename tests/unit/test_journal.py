from __future__ import annotations

import fcntl
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from uellm_cli.config import Redoable
from uellm_cli.errors import JournalError, RunDirectoryError, UsageError
from uellm_cli.executor.durability import Durability, parse_durability
from uellm_cli.executor.index import read_index
from uellm_cli.executor.journal import Journal
from uellm_cli.executor.records import Outcome, Record, Redo, Void, encode_line
from uellm_cli.types import (
    EXPIRED,
    Answer,
    Blame,
    Endpoint,
    Failure,
    FinishReason,
    RequestTiming,
    Result,
)


def record(custom_id: str, text: str = "answer", cut: bool = False, key: str = "key") -> Record:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    return Record(
        key,
        Result(
            custom_id=custom_id,
            slo_class="default",
            batch_id=0,
            prompt_tokens=3,
            predicted_tokens_p50=1.5,
            predicted_tokens_p90=2.5,
            output_tokens=2,
            kv_bytes=10,
            deadline_s=None,
            arrival_s=0.0,
            blame=Blame.NONE,
            endpoint=Endpoint.CHAT,
            timing=RequestTiming(0.0, 1.0, 2.0, 2.0),
            answers=(Answer(text, 2, reason),),
            finish_reason=reason,
        ),
    )


def failure(custom_id: str, code: str = "engine_error") -> Record:
    answered = record(custom_id).result
    return Record(
        "key",
        Result(
            **{name: getattr(answered, name) for name in answered.__struct_fields__}
            | {"answers": (), "finish_reason": None, "timing": None}
            | {"failure": Failure(code, "it broke")}
        ),
    )


def write(path: Path, *lines: Record | Redo | Void) -> None:
    with Journal.open(path) as journal:
        for line in lines:
            if isinstance(line, Record):
                journal.append(line)
                journal.commit()
            else:
                journal.note(line)


def results(path: Path) -> dict[str, Result]:
    """What stands, by id, each result read whole."""
    with Journal.open(path) as journal:
        return {
            custom_id: journal.reader.result(entry)
            for custom_id, entry in journal.index.entries.items()
        }


@given(text=st.text(), long=st.booleans())
def test_any_answer_comes_back_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, text: str, long: bool
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    first = record("a", text * 500 if long else text)
    write(path, first, record("b"))
    assert results(path) == {"a": first.result, "b": record("b").result}


def test_a_result_is_in_the_journal_as_soon_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.open(path) as journal:
        journal.append(record("a"))
        # No batch has ended: an engine that dies here, or is killed, has cost nothing.
        assert set(read_index(path).entries) == {"a"}
        assert journal.reader.result(journal.index.entries["a"]) == record("a").result


@given(data=st.data())
def test_a_journal_cut_anywhere_keeps_every_whole_record_and_says_what_was_torn(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    whole = [encode_line(record(str(i), "ü" * i)) for i in range(4)]
    content = b"".join(whole)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    kept = sum(len(b"".join(whole[: i + 1])) <= cut for i in range(4))

    with Journal.open(path) as journal:
        assert list(journal.index.entries) == [str(i) for i in range(kept)]
        assert journal.index.torn_bytes == cut - len(b"".join(whole[:kept]))
        journal.append(record("next"))
        journal.commit()
    assert list(results(path)) == [*(str(i) for i in range(kept)), "next"]


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_damaged_record_costs_itself_alone_and_is_counted(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    write(path, record("a"), record("b"), record("c"))
    content = bytearray(path.read_bytes())
    first, second = (len(encode_line(record(name))) for name in "ab")
    place = first + at % (second - 1)  # within b's record, its newline left out
    content[place] ^= 1 << bit
    path.write_bytes(content)
    index = read_index(path)
    # The flip may have made a newline, which cuts the record in two.
    assert index.damaged in (1, 2)
    assert {name: index.entries[name].outcome for name in index.entries} == {
        "a": Outcome.ANSWERED,
        "c": Outcome.ANSWERED,
    }


def test_the_newest_answer_stands_and_the_old_one_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    redo = Redo((Redoable.TRUNCATED,), 50)
    write(path, record("a", "cut", cut=True), record("b"), redo)
    index = read_index(path)
    assert index.entries["a"].redo == redo
    assert index.entries["b"].redo is None
    assert index.pending_redo()
    assert results(path)["a"].answers[0].text == "cut"

    write(path, record("a", "whole"))
    assert not read_index(path).pending_redo()
    assert results(path)["a"].answers[0].text == "whole"
    assert path.read_bytes().count(b'"custom_id":"a"') == 2


def test_a_cut_answer_never_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    redo = Redo((Redoable.TRUNCATED,))
    longer, shorter = record("a", "1 2 3", cut=True), record("a", "1", cut=True)
    shorter = Record("key", replace(shorter.result, output_tokens=1))
    write(path, longer, redo, shorter)
    assert results(path)["a"].answers[0].text == "1 2 3"
    assert not read_index(path).pending_redo()
    # A whole one does, however short.
    write(path, redo, Record("key", replace(record("a", "1").result, output_tokens=1)))
    assert results(path)["a"].answers[0].text == "1"


def test_an_answer_stands_when_trying_again_fails(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, record("a", "cut", cut=True), Redo((Redoable.TRUNCATED,)), failure("a"))
    assert results(path)["a"].answers[0].text == "cut"
    assert not read_index(path).pending_redo()


@pytest.mark.parametrize(
    ("which", "reopened"),
    [
        (Redoable.FAILED, {"failed"}),
        (Redoable.EXPIRED, {"expired"}),
        (Redoable.TRUNCATED, {"cut"}),
    ],
)
def test_only_the_asked_kind_is_made_again(
    which: Redoable, reopened: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    write(path, record("fine"), record("cut", cut=True), failure("failed"))
    write(path, failure("expired", EXPIRED), Redo((which,)))
    entries = read_index(path).entries
    assert {name for name, entry in entries.items() if entry.redo is not None} == reopened


def test_a_void_result_counts_no_more_until_there_is_another(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, record("a"), record("b"), Void(("a",)))
    assert set(read_index(path).entries) == {"b"}
    write(path, record("a", "new", key="other"))
    assert read_index(path).entries["a"].key == "other"


def test_two_runs_cannot_write_one_journal(tmp_path: Path) -> None:
    with (
        Journal.open(tmp_path / "journal"),
        pytest.raises(RunDirectoryError, match="another uellm run"),
    ):
        Journal.open(tmp_path / "journal")
    write(tmp_path / "journal", record("a"))


def test_a_full_disk_is_a_clear_error_and_costs_only_what_was_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, record("a"))
    size = path.stat().st_size
    with Journal.open(path) as journal, no_file_larger_than(size + 50):
        with pytest.raises(JournalError, match=r"cannot be written: .*--resume"):
            journal.append(record("b"))
        assert set(journal.index.entries) == {"a"}
    # Nothing is left of the part that went in.
    assert path.stat().st_size == size


def test_a_journal_that_another_run_has_taken_away_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    flock = fcntl.flock

    def taken_away_meanwhile(file: object, how: int) -> None:
        path.unlink()
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", taken_away_meanwhile)
    with pytest.raises(RunDirectoryError, match="another uellm run"):
        Journal.open(path)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A full disk, as the system shows it to this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- When it is put on the disk ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("result", Durability(each_result=True)),
        ("batch", Durability()),
        ("5s", Durability(every_s=5.0)),
        ("100ms", Durability(every_s=0.1)),
    ],
)
def test_a_schedule_is_read_from_its_name(text: str, expected: Durability) -> None:
    assert parse_durability(text) == expected


@pytest.mark.parametrize("text", ["", "never", "0s", "-1s", "results"])
def test_a_schedule_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--durability"):
        parse_durability(text)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that have put a file on the disk."""
    seen: list[str] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        seen.append(threading.current_thread().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    return seen


@pytest.mark.parametrize(("schedule", "expected"), [("result", 6), ("batch", 2), ("1h", 1)])
def test_the_disk_is_asked_as_often_as_the_schedule_says(
    schedule: str, expected: int, tmp_path: Path, syncs: list[str]
) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.keep(parse_durability(schedule))
        syncs.clear()
        for batch in range(2):
            for i in range(3):
                journal.append(record(f"{batch}-{i}"))
            journal.commit()
    assert len(syncs) == expected  # the one of "1h" is when the journal is closed


def test_a_result_waits_for_the_disk_no_longer_than_asked_for(
    tmp_path: Path, syncs: list[str]
) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.keep(Durability(every_s=0.05))
        for name in "abc":
            syncs.clear()
            journal.append(record(name))
            for _ in range(2000):  # nothing else happens: a batch may take an hour
                if not syncs:
                    threading.Event().wait(0.005)
            assert syncs == ["journal-sync"]
        syncs.clear()
    assert syncs == ["MainThread"]


def test_what_is_written_during_a_sync_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, syncs = threading.Event(), threading.Event(), []

    def slow(_: int) -> None:
        begun.set()
        assert go_on.wait(10)
        syncs.append(threading.current_thread().name)

    with Journal.open(tmp_path / "journal") as journal:
        journal.keep(Durability(every_s=0.001))
        monkeypatch.setattr(os, "fsync", slow)
        journal.append(record("a"))
        assert begun.wait(10)
        journal.append(record("b"))
        go_on.set()
        for _ in range(5000):
            if len(syncs) < 2:
                threading.Event().wait(0.001)
        assert syncs == ["journal-sync", "journal-sync"]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_disk_that_refuses_behind_the_run_s_back_is_told_at_the_latest_at_its_end(
    at_the_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    def refuse(_: int) -> None:
        refused.set()
        raise OSError(5, "Input/output error")

    def a_run() -> None:
        with Journal.open(tmp_path / "journal") as journal:
            journal.keep(Durability(every_s=0.001))
            monkeypatch.setattr(os, "fsync", refuse)
            journal.append(record("a"))
            assert refused.wait(10)
            while not at_the_end:
                journal.commit()

    with pytest.raises(JournalError, match="Input/output error"):
        a_run()
