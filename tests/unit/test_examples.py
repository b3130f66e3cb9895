"""Rows with answers: what is the request, what the answer, how long it was, and what is no row."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.builders import WordTokenizer
from uellm_cli.errors import RequestFileError
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.profiler.learning.answered import Fields
from uellm_cli.profiler.learning.examples import Read, answer_tokens, read_examples
from uellm_cli.types import Example


def read(
    tmp_path: Path,
    *rows: object,
    limit: int | None = None,
    counts_exactly: bool = True,
    **fields: Any,
) -> tuple[list[Example], Read]:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_file(path, limit=limit, counts_exactly=counts_exactly, **fields)


def read_file(
    path: Path | str,
    limit: int | None = None,
    stdin: io.BytesIO | None = None,
    counts_exactly: bool = True,
    **fields: Any,
) -> tuple[list[Example], Read]:
    told = Read()
    found = read_examples(
        [str(path)],
        WordTokenizer(),
        Fields(**fields),
        told,
        limit=limit,
        stdin=stdin,
        counts_exactly=counts_exactly,
    )
    return list(found), told


def one(tmp_path: Path, row: object, **fields: Any) -> Example:
    (example,), told = read(tmp_path, row, **fields)
    assert told.passed_over == 0
    return example


def said(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.request.messages]


def reason(tmp_path: Path, row: object, **fields: Any) -> str:
    found, told = read(tmp_path, row, **fields)
    assert not found
    assert told.passed_over == 1
    assert told.first is not None
    return f"{told.first.field}: {told.first.reason}"


# --- Which part is which -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["response", "completion", "answer", "output"])
def test_a_text_beside_a_prompt_is_its_answer_and_its_end_is_a_token_too(
    name: str, tmp_path: Path
) -> None:
    example = one(tmp_path, {"prompt": "name a city", name: "Bern of course"})
    assert said(example) == [("user", "name a city")]
    assert (example.prompt_tokens, example.output_tokens, example.censored) == (3, 4, False)


@pytest.mark.parametrize(
    "name", ["output_tokens", "response_tokens", "completion_tokens", "answer_tokens"]
)
def test_a_length_beside_a_prompt_goes_before_a_text(name: str, tmp_path: Path) -> None:
    example = one(tmp_path, {"prompt": "name a city", "response": "Bern", name: 57})
    assert example.output_tokens == 57


def test_a_field_may_be_named_and_be_within_an_object(tmp_path: Path) -> None:
    row = {"prompt": "a b", "output_tokens": 5, "usage": {"made": 9}, "said": {"text": "one two"}}
    assert one(tmp_path, row, tokens="usage.made").output_tokens == 9
    assert one(tmp_path, row, answer="said.text").output_tokens == 3
    assert one(tmp_path, {**row, "usage.made": 4}, tokens="usage.made").output_tokens == 4


@pytest.mark.parametrize("value", [12, 12.0, "12"])
def test_a_number_of_tokens_may_be_written_in_any_way(value: object, tmp_path: Path) -> None:
    assert one(tmp_path, {"prompt": "a", "output_tokens": value}).output_tokens == 12


def test_a_conversation_that_ends_with_the_assistant_holds_its_answer(tmp_path: Path) -> None:
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")]
    messages = [{"role": role, "content": text} for role, text in turns]
    asked = one(tmp_path, {"messages": [*messages, {"role": "assistant", "content": "see you"}]})
    assert said(asked) == turns
    assert asked.output_tokens == 3


def test_parts_of_an_answer_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one two "}, {"type": "text", "text": "three"}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]
    assert one(tmp_path, {"messages": messages}).output_tokens == 4


def test_an_answer_beside_a_conversation_leaves_its_earlier_answers_in_place(
    tmp_path: Path,
) -> None:
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "bye")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert said(one(tmp_path, {"messages": messages, "response": "see you"})) == turns
    # Where the answer is both there and beside, what is beside says how long it is.
    ended = [*messages, {"role": "assistant", "content": "see you"}]
    example = one(tmp_path, {"messages": ended, "output_tokens": 40})
    assert said(example) == turns
    assert example.output_tokens == 40


def test_sharegpt_s_last_answer_is_the_answer_to_what_comes_before_it(tmp_path: Path) -> None:
    turns = [("human", "hi"), ("gpt", "hello"), ("human", "a story"), ("gpt", "once upon a time")]
    conversation = [{"from": who, "value": text} for who, text in turns]
    example = one(tmp_path, {"id": 4, "conversations": conversation})
    assert said(example) == [("user", "hi"), ("assistant", "hello"), ("user", "a story")]
    assert example.output_tokens == 5
    thanked = [*conversation, {"from": "human", "value": "thanks"}]
    assert one(tmp_path, {"id": 4, "conversations": thanked}) == example


def test_a_batch_line_may_have_its_answer_beside_or_in_its_messages(tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    asked = [{"role": "user", "content": "name a city"}]
    beside = one(tmp_path, {**line, "body": {"messages": asked}, "response": "Bern"})
    answered = [*asked, {"role": "assistant", "content": "Bern"}]
    within = one(tmp_path, {**line, "body": {"messages": answered}})
    assert beside == within
    assert (beside.request.custom_id, beside.output_tokens) == ("a", 2)


def test_a_completion_s_answer_is_counted_without_what_is_in_front_of_a_prompt(
    tmp_path: Path,
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    example = one(tmp_path, {**line, "body": {"prompt": "one two"}, "response": "three four"})
    assert example.prompt_tokens == 3  # with the one in front
    assert example.output_tokens == 3  # with the one at its end


def test_what_else_a_row_has_is_passed_over(tmp_path: Path) -> None:
    row: dict[str, object] = {
        "prompt": "a", "response": "b", "url": "https://example.org", "source": "web", "n": "many",
        "licence": None, "tools": ["hammer"], "metadata": {"n": 1, "deep": {}, "none": None},
    }  # fmt: skip
    assert dict(one(tmp_path, row).request.metadata) == {"n": 1}


def test_a_task_is_told_by_the_field_that_is_named_for_it(tmp_path: Path) -> None:
    row = {"prompt": "a", "response": "b", "task": "chat", "metadata": {"kind": 3}}
    assert one(tmp_path, row).task == ""
    assert one(tmp_path, row, task="task").task == "chat"
    assert one(tmp_path, row, task="metadata.kind").task == "3"


# --- Censoring -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beside", "is_cut"),
    [
        ({"censored": True}, True),
        ({"censored": False}, False),
        ({"censored": "bleeped"}, False),  # means something else
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "stop"}, False),
        ({"stop_reason": "max_tokens"}, True),
        ({"max_tokens": 12}, True),
        ({"max_tokens": 13}, False),
        ({"max_completion_tokens": 12}, True),
        ({"max_tokens": 12, "finish_reason": "stop"}, False),
        ({"max_tokens": 12, "stop_reason": "end_turn"}, False),
        ({"max_tokens": 12, "censored": False}, False),
        ({"max_tokens": 12, "censored": "bleeped"}, True),
        ({"censored": True, "finish_reason": "stop"}, True),
    ],
)
def test_an_answer_was_cut_where_its_row_says_so_or_where_it_is_at_its_cap(
    beside: dict[str, object], is_cut: bool, tmp_path: Path
) -> None:
    example = one(tmp_path, {"prompt": "a", "output_tokens": 12, **beside})
    assert (example.output_tokens, example.censored) == (12, is_cut)


def test_a_cut_text_has_no_token_that_ends_it(tmp_path: Path) -> None:
    row = {"prompt": "a", "response": "one two three"}
    assert one(tmp_path, row).output_tokens == 4
    assert one(tmp_path, {**row, "finish_reason": "length"}).output_tokens == 3
    capped = one(tmp_path, {**row, "max_tokens": 3})
    assert (capped.output_tokens, capped.censored) == (3, True)


def test_a_text_that_another_tokenizer_counts_is_not_taken_for_cut_at_its_cap(
    tmp_path: Path,
) -> None:
    row = {"prompt": "a", "response": "one two three four", "max_tokens": 3}
    given = {"prompt": "a", "output_tokens": 3, "max_tokens": 3}
    found, _ = read(tmp_path, row, given, {**row, "finish_reason": "length"}, counts_exactly=False)
    assert [(e.output_tokens, e.censored) for e in found] == [(5, False), (3, True), (4, True)]
    stopped = one(tmp_path, {**row, "finish_reason": "stop"})
    assert (stopped.output_tokens, stopped.censored) == (3, False)


def test_answers_from_a_given_length_on_may_be_taken_for_cut(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "output_tokens": tokens} for tokens in (3999, 4000, 4096)]
    found, _ = read(tmp_path, *rows, censored_from=4000)
    assert [(e.output_tokens, e.censored) for e in found] == [
        (3999, False), (4000, True), (4096, True),
    ]  # fmt: skip


def test_a_named_censored_field_goes_before_the_usual_ones(tmp_path: Path) -> None:
    row = {"prompt": "a", "output_tokens": 12, "finish_reason": "length", "cut": False}
    assert one(tmp_path, row, censored="cut").censored is False
    assert one(tmp_path, {**row, "cut": 1}, censored="cut").censored is True
    assert one(tmp_path, {"prompt": "a", "output_tokens": 12}, censored="cut").censored is False
    assert "cut: must be true or false" in reason(tmp_path, {**row, "cut": "no"}, censored="cut")


# --- What teaches nothing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a"}, "line: has no answer, neither as a text nor as a number of tokens"),
        ({"prompt": "a", "response": " \n"}, "response: is empty: there is no answer"),
        ({"prompt": "a", "response": ["b"]}, "response: must be text, not a list"),
        ({"prompt": "a", "output_tokens": 0}, "output_tokens: must be from 1 to 10000000, not 0"),
        ({"prompt": "a", "output_tokens": "few"}, 'output_tokens: "few" is no number of tokens'),
        ({"prompt": "a", "output_tokens": True}, "output_tokens: true is no number of tokens"),
        ({"prompt": "a", "output_tokens": 10**400}, "output_tokens: 1000000000"),
        ({"prompt": "a", "output_tokens": "9" * 400}, 'output_tokens: "999999999'),
        (
            {"prompt": "a", "output_tokens": 9, "ignore_eos": True},
            "ignore_eos: is set: how long the answer is was not the model's to choose",
        ),
        ({"prompt": "a", "response": "b", "min_tokens": 4}, "min_tokens: is set: how long"),
        ({"response": "b"}, "prompt: is missing; give prompt or messages"),
        ({"prompt": "", "response": "b"}, "prompt: is empty"),
        ({"messages": "hi", "response": "b"}, "line: is not valid JSON"),
        ({"messages": {"role": "user"}, "response": "b"}, "messages: must be a list"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "conversations: hold no turn"),
        ({"messages": [{"role": "assistant", "content": 3}]}, "messages[0].content: must be text"),
        ({"prompt": "forbidden", "response": "b"}, "messages: the chat template refuses"),
        (["a", "b"], "line: holds a list, not an object with one request"),
    ],
)
def test_a_row_without_a_request_or_an_answer_is_passed_over_with_its_reason(
    row: object, why: str, tmp_path: Path
) -> None:
    assert reason(tmp_path, row).startswith(why)


def test_a_named_field_that_is_missing_is_the_reason(tmp_path: Path) -> None:
    row = {"prompt": "a", "response": "b", "output_tokens": 4}
    assert reason(tmp_path, row, tokens="made") == "made: is missing"
    assert reason(tmp_path, row, answer="said") == "said: is missing"


def test_the_others_are_counted_and_the_first_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": text} for text in ("x", "", "y", "")]
    found, told = read(tmp_path, *rows, {"prompt": "forbidden", "output": "z"})
    assert [example.output_tokens for example in found] == [2, 2]
    assert told.passed_over == 3
    assert told.first is not None
    assert told.first.source.line == 2
    assert told.answers_in == {"response": 2, "output": 1}


def test_one_conversation_that_the_template_refuses_costs_only_itself(tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": "x y"} for text in ("a", "forbidden", "b c")]
    found, told = read(tmp_path, *rows)
    assert [(e.prompt_tokens, e.output_tokens) for e in found] == [(1, 3), (2, 3)]
    assert told.passed_over == 1


def test_a_limit_is_of_rows_over_all_files(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": text} for text in ("x", "", "y", "z")]
    found, told = read(tmp_path, *rows, limit=3)
    assert (len(found), told.passed_over) == (2, 1)


# --- Files ---------------------------------------------------------------------------------------

ROWS = [{"prompt": f"row {i}", "response": "one " * (i + 1), "made": i + 1} for i in range(5)]
LENGTHS = [2, 3, 4, 5, 6]


def test_packed_lines_and_arrays_and_pipes_are_read_alike(tmp_path: Path) -> None:
    lines = "".join(f"{json.dumps(row)}\n\n" for row in ROWS).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.jsonl.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.json"):
        found, _ = read_file(tmp_path / name)
        assert [example.output_tokens for example in found] == LENGTHS, name
    found, _ = read_file("-", stdin=io.BytesIO(lines))
    assert [example.output_tokens for example in found] == LENGTHS


def test_a_table_s_columns_are_found_by_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "other": b"\xff"} for row in ROWS]), path)
    assert [example.output_tokens for example in read_file(path)[0]] == LENGTHS
    assert [example.output_tokens for example in read_file(path, tokens="made")[0]] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip


def test_a_table_may_hold_conversations_and_structs_and_json_in_text(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one two"}]
    usage = {"completion": 7}
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "usage": usage}]), path)
    assert read_file(path)[0][0].output_tokens == 3
    assert read_file(path, tokens="usage.completion")[0][0].output_tokens == 7
    pq.write_table(pa.Table.from_pylist([{"messages": json.dumps(turns)}]), path)
    (example,) = read_file(path)[0]
    assert (said(example), example.output_tokens) == ([("user", "hi")], 3)


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RequestFileError, match=r"missing\.jsonl: there is no such file"):
        read_file(tmp_path / "missing.jsonl")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(RequestFileError, match=r"broken\.parquet: the file is damaged"):
        read_file(broken)


def test_a_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in ROWS * 400).encode()
    packed = gzip.compress(lines)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    found, told = read_file(path)
    assert 0 < len(found) < len(ROWS) * 400
    assert told.first is not None
    assert "the file is damaged from here on" in told.first.reason


def test_text_is_counted_as_the_bundled_model_writes_it(tiny_llm: str) -> None:
    from tokenizers import Tokenizer

    texts = ["It is even.", "20", "a longer answer, with a comma"]
    reference = Tokenizer.from_file(f"{tiny_llm}/tokenizer.json")
    assert answer_tokens(load_tokenizer(tiny_llm), texts) == [
        len(reference.encode(text, add_special_tokens=False).ids) for text in texts
    ]
