from __future__ import annotations

import pytest

from uellm_cli.executor.run_info import redacted


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--api-key=abc", "--api-key=***"),
        ("--engine-option", "--engine-option"),
        ("api_key=sk-1234567890", "api_key=***"),
        ("OPENAI_API_KEY=x", "OPENAI_API_KEY=***"),
        ("password=hunter2", "password=***"),
        ("hf_abcdefghijklmnop", "***"),
        ("https://me:secret@host/v1", "https://***@host/v1"),
        ("runs/first", "runs/first"),
        ("--max-tokens=64", "--max-tokens=64"),
        ("threshold=15000", "threshold=15000"),
        ("risk-sk-learning.jsonl", "risk-sk-learning.jsonl"),
    ],
)
def test_a_command_line_is_kept_without_what_looks_like_a_secret(word: str, shown: str) -> None:
    assert redacted(["uellm", "run", word]) == ("uellm", "run", shown)


def test_the_value_of_a_secret_option_is_hidden_and_that_of_another_is_not() -> None:
    given = ["run", "--api-key", "abc", "--max-tokens", "64", "--token", "--json", "x"]
    assert redacted(given) == (
        "run", "--api-key", "***", "--max-tokens", "64", "--token", "--json", "x",
    )  # fmt: skip
