from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import WordTokenizer, chat, model_spec
from tests.unit.test_profiler import CONSTANT
from uellm_cli.profiler.profile import Profiler
from uellm_cli.profiler.truncate import prompt_room, truncated
from uellm_cli.types import Endpoint, Message, Request


def words(request: Request) -> int:
    """One token a word, two more for each message."""
    texts = [m.content for m in request.messages] or [request.prompt]
    return sum(len(text.split()) for text in texts) + 2 * len(request.messages)


def test_the_start_of_the_longest_message_goes_and_nothing_else() -> None:
    request = Request(
        "a",
        Endpoint.CHAT,
        messages=(
            Message("system", "be brief please"),
            Message("user", "one two three four five six"),
            Message("user", "what now"),
        ),
    )
    cut = truncated(request, words, room=14)
    assert cut is not None
    assert words(cut) <= 14
    assert [m.content.strip() for m in cut.messages] == [
        "be brief please",
        "four five six",
        "what now",
    ]


def test_no_more_is_cut_than_has_to_be() -> None:
    request = Request("a", Endpoint.COMPLETION, prompt="one two three")
    cut = truncated(request, words, room=2)
    # A word counts until its last character is gone.
    assert cut is not None
    assert cut.prompt == " two three"


def test_a_conversation_of_too_many_messages_cannot_be_cut_to_fit() -> None:
    messages = tuple(Message("user", "a b c") for _ in range(10))
    assert truncated(Request("a", Endpoint.CHAT, messages=messages), words, room=20) is None


@given(
    texts=st.lists(st.text(alphabet="ab ", max_size=40), min_size=1, max_size=4),
    room=st.integers(1, 60),
)
def test_whatever_is_cut_fits(texts: list[str], room: int) -> None:
    messages = tuple(Message("user", text) for text in texts)
    cut = truncated(Request("a", Endpoint.CHAT, messages=messages), words, room)
    if cut is not None:
        assert words(cut) <= room
        for before, after in zip(messages, cut.messages, strict=True):
            assert before.content.endswith(after.content)


@pytest.mark.parametrize(
    ("max_tokens", "room"), [(None, 768), (100, 924), (900, 512), (5000, 512), (1, 1023)]
)
def test_room_is_left_for_the_answer(max_tokens: int | None, room: int) -> None:
    assert prompt_room(model_spec(context_tokens=1024), max_tokens) == room


def test_only_a_prompt_that_leaves_no_room_is_cut_and_only_where_asked_for() -> None:
    requests = [chat("long", "word " * 12 + "end", max_tokens=3), chat("short", "word " * 9)]
    model = model_spec(context_tokens=10)
    refused = Profiler(WordTokenizer(), model, CONSTANT).profile(requests)
    assert [(i.custom_id, i.code) for i in refused.invalid] == [("long", "context_length_exceeded")]
    kept: list[tuple[Request, Request]] = []
    profiler = Profiler(WordTokenizer(), model, CONSTANT, truncate=True)
    profile = profiler.profile(requests, keep=lambda *pair: kept.append(pair))
    assert profile.truncated == 1
    assert [r.prompt_tokens for r in profile.requests] == [7, 9]
    assert profile.requests[0].max_tokens == 3
    assert kept[0][0] is requests[0]
    assert kept[0][1].messages[0].content.endswith("word end")
    assert kept[1] == (requests[1], requests[1])
