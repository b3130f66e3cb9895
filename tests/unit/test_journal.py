from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm_cli.errors import JournalError, RunDirectoryError
from uellm_cli.executor.journal import Journal, Record, encode_record, read_records
from uellm_cli.types import Answer, Blame, Endpoint, FinishReason, RequestTiming, Result


def record(custom_id: str, text: str = "answer") -> Record:
    return Record(
        "hash",
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
            answers=(Answer(text, 2, FinishReason.STOP),),
            finish_reason=FinishReason.STOP,
        ),
    )


def write(path: Path, *records: Record) -> None:
    with Journal.open(path) as journal:
        for entry in records:
            journal.append(entry)
        journal.commit()


@given(text=st.text())
def test_any_answer_comes_back_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    write(path, record("a", text), record("b"))
    assert read_records(path)[0] == [record("a", text), record("b")]


def test_what_is_not_committed_is_not_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.open(path) as journal:
        journal.append(record("a"))
        journal.commit()
        journal.append(record("b"))
    assert read_records(path)[0] == [record("a")]


@given(data=st.data())
def test_a_journal_cut_anywhere_keeps_every_whole_record_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    whole = [encode_record(record(str(i), "ü" * i)) for i in range(4)]
    content = b"".join(whole)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    kept = sum(len(b"".join(whole[: i + 1])) <= cut for i in range(4))

    with Journal.open(path) as journal:
        assert [r.result.custom_id for r in journal.records] == [str(i) for i in range(kept)]
        journal.append(record("next"))
        journal.commit()
    assert [r.result.custom_id for r in read_records(path)[0]] == [
        *(str(i) for i in range(kept)),
        "next",
    ]


def test_a_damaged_record_with_whole_ones_behind_it_is_refused_with_its_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    write(path, record("a"), record("b"), record("c"))
    content = bytearray(path.read_bytes())
    content[len(encode_record(record("a"))) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalError, match="journal:2: the journal is damaged"):
        Journal.open(path)
    assert path.read_bytes() == content


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
    room = path.stat().st_size + 50
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(path) as journal:
        journal.append(record("b"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(JournalError, match=r"cannot be written: .*--resume"):
                journal.commit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Journal.open(path) as journal:
        assert [r.result.custom_id for r in journal.records] == ["a"]
