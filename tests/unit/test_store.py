from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.builders import chat
from uellm_cli.errors import OutputError
from uellm_cli.requests.keys import answer_key, content_of, model_salt
from uellm_cli.requests.store import RequestStore
from uellm_cli.types import SLO, Endpoint, Message, Request, SamplingParams, SourceLine

ASKED = chat("a", "hi", max_tokens=5)
SALT = model_salt("model")

texts = st.text(max_size=50)
requests = st.builds(
    Request,
    custom_id=st.just("x"),
    endpoint=st.sampled_from(Endpoint),
    messages=st.lists(st.builds(Message, texts, texts), max_size=3).map(tuple),
    prompt=texts,
    sampling=st.builds(
        SamplingParams,
        max_tokens=st.none() | st.integers(1, 10**7),
        temperature=st.none() | st.floats(0, 2),
        stop=st.lists(texts, max_size=4).map(tuple),
        logit_bias=st.lists(st.tuples(st.integers(0, 10**6), st.floats(-100, 100))).map(tuple),
        json_schema=st.none() | texts,
        min_p=st.none() | st.floats(0, 1),
        repetition_penalty=st.none() | st.floats(0.1, 100),
        presence_penalty=st.floats(-2, 2),
        stop_token_ids=st.lists(st.integers(0, 10**6)).map(tuple),
        ignore_eos=st.booleans(),
        min_tokens=st.integers(0, 10**7),
    ),
    source=st.builds(SourceLine, texts, st.integers(1, 10**9)),
)


@given(st.lists(requests, min_size=1, max_size=20))
def test_every_request_comes_back_as_it_was_kept(
    tmp_path_factory: pytest.TempPathFactory, asked: list[Request]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = RequestStore(folder, "model")
    named = [replace(request, custom_id=str(i)) for i, request in enumerate(asked)]
    for request in named:
        store.add(request, request)
    assert len(store) == len(named)
    for request in reversed(named):
        assert store.request(request.custom_id) == request
        assert store.source(request.custom_id) == request.source
    # Nothing is left to be seen or cleaned up.
    assert list(folder.iterdir()) == []


def test_a_request_that_was_cut_keeps_the_key_of_what_was_asked(tmp_path: Path) -> None:
    store = RequestStore(tmp_path, "model")
    whole, cut = chat("a", "a long story"), chat("a", "story")
    store.add(whole, cut)
    assert store.request("a").messages == cut.messages
    assert store.key("a") == answer_key(content_of(whole), SALT).hex()


def test_what_a_request_says_of_itself_is_kept_beside_its_text(tmp_path: Path) -> None:
    store = RequestStore(tmp_path, "model")
    told = {"tier": "gold", "rank": 3, "share": 0.5, "is_new": True, "note": None}
    store.add(replace(chat("a", "one"), metadata=told))
    store.add(chat("b", "two"))
    assert store.request("a").metadata == told
    assert store.request("b").metadata == {}
    assert store.request("b").messages[0].content == "two"


def test_reading_and_adding_may_take_turns(tmp_path: Path) -> None:
    store = RequestStore(tmp_path, "model")
    for name in "abc":
        store.add(chat(name, name * 3), chat(name, name * 3))
        assert store.request(name).messages[0].content == name * 3
    assert "b" in store
    assert "d" not in store


def test_a_key_is_of_what_is_asked_and_of_whom_and_not_of_what_is_promised() -> None:
    key = answer_key(content_of(ASKED), SALT)
    unchanged = replace(
        ASKED,
        custom_id="b",
        slo=SLO("gold", 5.0),
        metadata={"tier": "gold"},
        arrival_s=7.0,
        source=SourceLine("other.jsonl", 9),
    )
    assert answer_key(content_of(unchanged), SALT) == key
    others = [
        replace(ASKED, messages=(Message("user", "ho"),)),
        replace(ASKED, messages=(Message("system", "hi"),)),
        replace(ASKED, endpoint=Endpoint.COMPLETION, messages=(), prompt="hi"),
        *(
            replace(ASKED, sampling=replace(ASKED.sampling, **{name: value}))
            for name, value in (
                ("max_tokens", 6),
                ("temperature", 0.0),
                ("seed", 0),
                ("stop", ("x",)),
                ("n", 2),
                ("logprobs", 0),
                ("logit_bias", ((1, 1.0),)),
                ("json_schema", "{}"),
                ("min_p", 0.0),
                ("repetition_penalty", 1.0),
                ("presence_penalty", 1.0),
                ("frequency_penalty", 1.0),
                ("stop_token_ids", (1,)),
                ("ignore_eos", True),
                ("min_tokens", 1),
            )
        ),
    ]
    keys = {key, *(answer_key(content_of(other), SALT) for other in others)}
    assert len(keys) == len(others) + 1
    assert answer_key(content_of(ASKED), model_salt("other model")) != key


def test_the_key_of_a_request_stays_the_same_from_version_to_version() -> None:
    # Runs are resumed by it: a change of this value makes every finished answer void.
    assert answer_key(content_of(ASKED), SALT).hex() == "5e2041941944fe90961f4a2581f24705"
    # With all that the first version knew, and nothing of what came later.
    full = SamplingParams(5, 0.7, 0.9, 40, 7, ("x", "y"), 2, 3, ((1, 1.5),), '{"type":"object"}')
    asked = Request("a", Endpoint.COMPLETION, prompt="hi", sampling=full)
    assert answer_key(content_of(asked), SALT).hex() == "75d433a187a90c740e3cb307f9b8b509"


def test_a_disk_that_has_no_room_for_the_requests_is_named(tmp_path: Path) -> None:
    store = RequestStore(tmp_path, "model")
    store._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115, PTH123 - a full disk
    store.add(ASKED, ASKED)
    with pytest.raises(OutputError, match=f"{tmp_path}: requests cannot be kept there: No space"):
        store.request("a")
    with pytest.raises(OutputError, match="nowhere"):
        RequestStore(tmp_path / "nowhere", "model")


def test_texts_beyond_what_is_collected_are_on_the_disk_before_anything_is_asked_for(
    tmp_path: Path,
) -> None:
    store = RequestStore(tmp_path, "model")
    long = [chat(name, name * 700_000) for name in "abc"]
    for request in long:
        store.add(request, request)
    assert os.fstat(store._file.fileno()).st_size > 1_400_000
    assert [store.request(r.custom_id).messages for r in long] == [r.messages for r in long]
