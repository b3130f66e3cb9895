"""OpenAI's fields and shapes through the front door: what goes in, and all that comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

HI = [{"role": "user", "content": "Is 7 even or odd?"}]
COUNT = [{"role": "user", "content": "Count from 3 to 9."}]
# Nothing that the model has learnt, so that what it draws is open.
OPEN = [{"role": "user", "content": "What do you think of the sea?"}]
SCHEMA = {
    "type": "object",
    "properties": {"parity": {"enum": ["even", "odd"]}},
    "required": ["parity"],
    "additionalProperties": False,
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Usage(Strict):
    prompt_tokens: Annotated[int, Field(gt=0)]
    completion_tokens: Annotated[int, Field(ge=0)]
    total_tokens: int


class Message(Strict):
    role: Literal["assistant"]
    content: str
    refusal: None


class Token(Strict):
    token: str
    logprob: Annotated[float, Field(le=0)]
    bytes: list[int] | None


class ToldToken(Token):
    top_logprobs: list[Token]


class ChatLogprobs(Strict):
    content: list[ToldToken]
    refusal: None


class CompletionLogprobs(Strict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatChoice(Strict):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionChoice(Strict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Chat(Strict):
    id: Annotated[str, Field(pattern="^chatcmpl-")]
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Text(Strict):
    id: Annotated[str, Field(pattern="^cmpl-")]
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Response(Strict):
    status_code: Literal[200]
    request_id: Annotated[str, Field(min_length=1)]
    body: Chat | Text


class OutputLine(Strict):
    """A line of a batch's output file (platform.openai.com/docs/api-reference/batch)."""

    id: Annotated[str, Field(pattern="^batch_req_")]
    custom_id: str
    response: Response
    error: None


class Error(Strict):
    code: str
    message: Annotated[str, Field(min_length=1)]
    field: str | None = None
    file: str
    line: int


class ErrorLine(Strict):
    id: Annotated[str, Field(pattern="^batch_req_")]
    custom_id: str | None
    response: None
    error: Error


def chat(custom_id: str, **body: object) -> dict[str, object]:
    url = "/v1/chat/completions"
    body = {"model": "any", "messages": HI, "max_tokens": 12, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def text(custom_id: str, **body: object) -> dict[str, object]:
    body = {"model": "any", "prompt": "Is 7 even or odd?", "max_tokens": 6, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def json_schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

HONOURED: list[dict[str, object]] = [
    chat("plain"),
    chat("four", n=4, temperature=2, seed=11, messages=OPEN),
    chat("four-again", n=4, temperature=2, seed=11, messages=OPEN),
    chat("greedy-three", n=3),
    chat("told", logprobs=True, top_logprobs=3),
    chat("parity", response_format=json_schema(SCHEMA), max_tokens=40),
    chat("any-json", response_format={"type": "json_object"}, max_tokens=60),
    chat("stopped", messages=COUNT, stop=[", 6", "8"]),
    chat("developer", messages=[{"role": "developer", "content": "Be brief."}, *HI]),
    chat("to-the-cap", ignore_eos=True),
    chat("at-least", min_tokens=9),
    chat("likeliest", temperature=2, min_p=1, seed=3),
    chat("penalized", messages=COUNT, repetition_penalty=1.5, max_tokens=30),
    chat("penalized-2", messages=COUNT, presence_penalty=2, frequency_penalty=2, max_tokens=30),
    text("raw"),
    text("raw-told", logprobs=2),
]
REFUSED = {
    "tools": (chat("tools", tools=[TOOL]), "body.tools"),
    "a picture": (
        chat("picture", messages=[{"role": "user", "content": [PICTURE]}]),
        "body.messages[0].content[0]",
    ),
    "audio": (chat("audio", modalities=["text", "audio"]), "body.modalities"),
    "streaming": (chat("stream", stream=True), "body.stream"),
    "too many answers": (chat("many", n=129), "body.n"),
    "a bias of no token": (chat("bias", logit_bias={"999999": 1}), "logit_bias.999999"),
    "a stop at no token": (chat("stop", stop_token_ids=[999999]), "stop_token_ids"),
    "more at least than at most": (chat("least", min_tokens=13), "body.min_tokens"),
    "a share above all": (chat("share", min_p=1.1), "body.min_p"),
    "a schema that is none": (
        chat("schema", response_format=json_schema({"type": "nothing"})),
        "response_format",
    ),
    "a grammar": (chat("grammar", response_format={"type": "grammar"}), "response_format.type"),
    "no token at all": (chat("none", max_tokens=0), "body.max_tokens"),
    "a prompt beyond the context": (
        chat("long", messages=[{"role": "user", "content": "Count. " * 4000}]),
        "messages",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of everything above, with answers as a table too."""
    from uellm_cli.cli import main

    folder = tmp_path_factory.mktemp("fields")
    lines = [*HONOURED, *(line for line, _ in REFUSED.values())]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as ended:
        main(f"run {folder}/in.jsonl --output-format parquet --quiet -o {folder}/run".split())
    assert ended.value.code == 3
    return folder / "run"


@pytest.fixture(scope="module")
def answers(finished: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    return {row["custom_id"]: row["response"]["body"] for row in rows}


def test_every_line_of_the_output_and_of_the_errors_has_exactly_openai_s_fields(
    finished: Path,
) -> None:
    output, errors = TypeAdapter(OutputLine), TypeAdapter(ErrorLine)
    answered = [output.validate_json(x) for x in (finished / "results.jsonl").open("rb")]
    failed = [errors.validate_json(x) for x in (finished / "errors.jsonl").open("rb")]
    assert [row.custom_id for row in answered] == [line["custom_id"] for line in HONOURED]
    assert [row.custom_id for row in failed] == [line["custom_id"] for line, _ in REFUSED.values()]
    for row in answered:
        usage = row.response.body.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_openai_s_package_reads_every_body_and_loses_nothing(answers: dict[str, Any]) -> None:
    for body in answers.values():
        shape = ChatCompletion if body["object"] == "chat.completion" else Completion
        read = shape.model_validate_json(json.dumps(body), strict=True)
        assert read.model_dump(mode="json", exclude_unset=True) == body


def contents(body: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in body["choices"]]


def test_n_answers_are_drawn_and_a_seed_draws_them_again(answers: dict[str, Any]) -> None:
    assert len(contents(answers["four"])) == 4
    assert len(set(contents(answers["four"]))) > 1
    assert contents(answers["four"]) == contents(answers["four-again"])
    assert contents(answers["greedy-three"]) == contents(answers["plain"]) * 3


def test_logprobs_are_of_the_text_and_the_likeliest_is_what_greedy_takes(
    answers: dict[str, Any],
) -> None:
    (choice,) = answers["told"]["choices"]
    told = choice["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in told).decode() == choice["message"]["content"]
    for token in told:
        best = max(token["top_logprobs"], key=lambda other: other["logprob"])
        assert (best["token"], best["logprob"]) == (token["token"], token["logprob"])
        assert len(token["top_logprobs"]) == 3
    (raw,) = answers["raw-told"]["choices"]
    assert "".join(raw["logprobs"]["tokens"]).startswith(raw["text"])


def test_an_answer_follows_its_schema(answers: dict[str, Any]) -> None:
    (parity,) = contents(answers["parity"])
    assert json.loads(parity)["parity"] in ("even", "odd")
    assert answers["parity"]["choices"][0]["finish_reason"] == "stop"
    (made,) = contents(answers["any-json"])
    assert made.startswith("{")


def test_an_answer_ends_before_its_stop_string(answers: dict[str, Any]) -> None:
    (content,) = contents(answers["stopped"])
    assert content
    assert "8" not in content
    assert ", 6" not in content
    assert answers["stopped"]["choices"][0]["finish_reason"] == "stop"


def test_an_answer_is_as_long_as_it_has_to_be(answers: dict[str, Any]) -> None:
    assert answers["plain"]["usage"]["completion_tokens"] < 9
    assert answers["to-the-cap"]["usage"]["completion_tokens"] == 12
    assert answers["to-the-cap"]["choices"][0]["finish_reason"] == "length"
    assert 9 < answers["at-least"]["usage"]["completion_tokens"] <= 12


def test_the_likeliest_token_alone_is_what_greedy_takes(answers: dict[str, Any]) -> None:
    assert contents(answers["likeliest"]) == contents(answers["plain"])


def test_penalties_keep_a_model_from_saying_the_same_again(answers: dict[str, Any]) -> None:
    for name in ("penalized", "penalized-2"):
        words = contents(answers[name])[0].split()
        # It counts as it should: no number is there twice.
        assert len(words) == len(set(words))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_the_field_s_name(name: str, finished: Path) -> None:
    line, field = REFUSED[name]
    rows = [json.loads(row) for row in (finished / "errors.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["custom_id"] == line["custom_id"]]
    assert field in row["error"]["field"]
    code = "context_length_exceeded" if name.startswith("a prompt beyond") else "invalid_request"
    assert row["error"]["code"] == code


def test_a_table_has_every_request_answered_or_not(finished: Path, answers: dict[str, Any]) -> None:
    table = pq.read_table(finished / "results.parquet")
    rows = {row["custom_id"]: row for row in table.to_pylist()}
    assert len(rows) == len(HONOURED) + len(REFUSED)
    assert rows["plain"]["text"] == contents(answers["plain"])[0]
    assert rows["four"]["texts"] == contents(answers["four"])
    assert rows["tools"]["error_field"] == "body.tools"
    assert rows["tools"]["text"] is None


def test_a_bias_moves_the_answer_and_a_stop_token_ends_it(
    uellm: Callable[..., int], tmp_path: Path, tiny_llm: str
) -> None:
    from tokenizers import Tokenizer

    digit = Tokenizer.from_file(str(Path(tiny_llm) / "tokenizer.json")).encode("9").ids[-1]
    lines = [
        chat("as-it-is", messages=COUNT, max_tokens=30),
        chat("without", messages=COUNT, max_tokens=30, logit_bias={str(digit): -100}),
        chat("up-to", messages=COUNT, max_tokens=30, stop_token_ids=[digit]),
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert uellm("run", tmp_path / "in.jsonl", "--quiet", "-o", tmp_path / "run") == 0
    rows = map(json.loads, (tmp_path / "run" / "results.jsonl").read_text().splitlines())
    first, second, third = (contents(row["response"]["body"])[0] for row in rows)
    assert first.endswith("8 9")
    assert "8 9" not in second
    assert third == first.removesuffix("9")
