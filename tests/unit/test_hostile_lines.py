"""Lines that are no requests: each with the field that is named and the reason that is given."""

# ruff: noqa: E501 (tables of whole messages are read best with one case a line)

from __future__ import annotations

import json

import pytest

from tests.unit.request_cases import (
    HI,
    SOURCE,
    STARTED,
    batch,
    chat,
    completion,
    parsed,
    plain,
    schema,
    sharegpt,
    valid,
)
from uellm_cli.requests.lines import parse_carefully, quick_request
from uellm_cli.requests.wording import MAX_FIELD_CHARS, MAX_REASON_CHARS
from uellm_cli.types import InvalidRequest, Message


def deep(levels: int) -> dict[str, object]:
    """A JSON Schema with so many levels."""
    inner: dict[str, object] = {}
    for _ in range(levels - 1):
        inner = {"not": inner}
    return inner


HOSTILE: dict[str, tuple[object, str, str]] = {
    "an object that is cut off": (b"{", "line", "is not valid JSON: input data was truncated"),
    "single quotes": (b"{'prompt': 'x'}", "line", "is not valid JSON: object keys must be strings (byte 1)"),
    "something after the object": (b'{"prompt": "x"} x', "line", "is not valid JSON: trailing characters (byte 17)"),
    "bytes that are not UTF-8": (b'{"prompt": "\xff"}', "line", "is not UTF-8 at byte 12"),
    "NaN": (b'{"prompt": "x", "top_p": NaN}', "line", "is not valid JSON: NaN and Infinity are no numbers there"),
    "minus Infinity": (b'{"prompt": "x", "top_p": -Infinity}', "line", "is not valid JSON: NaN and Infinity are no numbers there"),
    "a number beyond all floats": (b'{"prompt": "x", "top_p": 1e999}', "line", "is not valid JSON: number out of range"),
    "a whole number of 5000 digits": (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "line", "is not valid JSON: integer value out of range"),
    "100000 brackets": (b"[" * 100_000, "line", "is nested too deeply"),
    "100000 nested objects": (b'{"user":' * 100_000, "line", "is nested too deeply"),
    "lists 980 deep": (b'{"prompt":"x","user":' + b"[" * 980 + b"]" * 980 + b"}", "line", "is nested too deeply"),
    "lists 700 deep": (b'{"prompt":"x","user":' + b"[" * 700 + b"]" * 700 + b"}", "line", "is nested too deeply"),
    "a list": ([plain()], "line", "holds a list, not an object with one request"),
    "a number": (5, "line", "holds a number, not an object with one request"),
    "a text": ("hi", "line", "holds text, not an object with one request"),
    "null": (None, "line", "holds null, not an object with one request"),
    "an empty object": ({}, "prompt", "is missing; give prompt or messages"),
    "a prompt of null": ({"prompt": None}, "prompt", "is missing; give prompt or messages"),
    "an empty prompt": (plain(prompt=""), "prompt", "is empty"),
    "a blank prompt": (plain(prompt=" \n"), "prompt", "is empty"),
    "a prompt that is a number": (plain(prompt=5), "prompt", "expected text, got a whole number"),
    "a list of prompts": (plain(prompt=["a", "b"]), "prompt", "expected text, got a list"),
    "a prompt beside messages": (plain(messages=HI), "prompt", "stands beside messages; give one of them"),
    "a misspelt field": (plain(max_token=5), "max_token", "is an unknown field; did you mean 'max_tokens'?"),
    "a field of nobody's": (plain(colour="red"), "colour", "is an unknown field; fields of your own go under metadata"),
    "an empty id": (plain(id=""), "id", "must have 1 to 512 characters, not 0"),
    "an id of 513 characters": (plain(id="x" * 513), "id", "must have 1 to 512 characters, not 513"),
    "an id that is a list": (plain(id=[1]), "id", "must be text, not a list"),
    "an id that is true": (plain(id=True), "id", "must be text, not true or false"),
    "an id that differs from custom_id": (plain(id="a", custom_id="b"), "id", "differs from custom_id; give one of them"),
    "max_tokens of 0": (plain(max_tokens=0), "max_tokens", "expected a whole number >= 1"),
    "negative max_tokens": (plain(max_tokens=-1), "max_tokens", "expected a whole number >= 1"),
    "max_tokens of a billion": (plain(max_tokens=10**9), "max_tokens", "expected a whole number <= 10000000"),
    "max_tokens of 10 to the 18": (plain(max_tokens=10**18), "max_tokens", "expected a whole number <= 10000000"),
    "max_tokens with a fraction": (plain(max_tokens=1.5), "max_tokens", "expected a whole number, got a number"),
    "max_tokens as text": (plain(max_tokens="5"), "max_tokens", "expected a whole number, got text"),
    "max_tokens of true": (plain(max_tokens=True), "max_tokens", "expected a whole number, got true or false"),
    "two caps that differ": (plain(max_tokens=5, max_completion_tokens=6), "max_completion_tokens", "differs from max_tokens; give one of them"),
    "a negative temperature": (plain(temperature=-0.1), "temperature", "expected a number >= 0.0"),
    "a temperature above 2": (plain(temperature=2.1), "temperature", "expected a number <= 2.0"),
    "a temperature as text": (plain(temperature="hot"), "temperature", "expected a number, got text"),
    "top_p of 0": (plain(top_p=0), "top_p", "expected a number > 0.0"),
    "top_p above 1": (plain(top_p=1.1), "top_p", "expected a number <= 1.0"),
    "top_k below -1": (plain(top_k=-2), "top_k", "expected a whole number >= -1"),
    "a seed below 64 bits": (plain(seed=-(2**64)), "seed", "expected a whole number >= -9223372036854775808"),
    "a seed beyond 64 bits": (plain(seed=2**64), "seed", "expected a whole number <= 9223372036854775807"),
    "an empty stop": (plain(stop=""), "stop", "expected text of length >= 1"),
    "an empty stop in a list": (plain(stop=["a", ""]), "stop[1]", "expected text of length >= 1"),
    "five stops": (plain(stop=["a"] * 5), "stop", "expected a list of length <= 4"),
    "a stop of null in a list": (plain(stop=[None]), "stop[0]", "expected text, got null"),
    "a negative arrival": (plain(arrival_s=-1), "arrival_s", "expected a number >= 0.0"),
    "an arrival in another age": (plain(arrival_s=1e300), "arrival_s", "expected a number <= 315360000.0"),
    "metadata as a list": (plain(metadata=[]), "metadata", "expected an object, got a list"),
    "nested metadata": (plain(metadata={"a": {}}), "metadata.a", "must be text, a number, true or false, not an object"),
    "a metadata key with a blank": (plain(metadata={"a b": [1]}), "metadata.'a b'", "must be text, a number, true or false, not a list"),
    "an slo that is a number": (plain(slo=5), "slo", "expected an object, got a whole number"),
    "an slo that is empty": (plain(slo={}), "slo", "promises nothing; give a deadline, ttft or tpot"),
    "an slo with only a name": (plain(slo={"name": "gold"}), "slo", "promises nothing; give a deadline, ttft or tpot"),
    "a misspelt promise": (plain(slo={"deadlin": 5}), "slo.deadlin", "unknown key 'deadlin'; did you mean 'deadline'? known here: deadline, ttft, tpot, weight, name"),
    "an impossible clock time": (plain(slo={"deadline": "25:00"}), "slo.deadline", "'25:00' is no clock time; write 09:00 or 09:00:30"),
    "a promise of no time": (plain(slo={"ttft": 0}), "slo.ttft", "a duration must be more than zero and finite, not 0"),
    "a weight of 0": (plain(slo={"ttft": 1, "weight": 0}), "slo.weight", "should be greater than 0, not 0"),
    "no messages": ({"messages": []}, "messages", "expected a list of length >= 1"),
    "messages as text": ({"messages": "hi"}, "messages", "expected a list, got text"),
    "a message of null": ({"messages": [None]}, "messages[0]", "expected an object, got null"),
    "messages without text": ({"messages": [{"role": "user", "content": " "}]}, "messages", "hold no text"),
    "the role of a tool": (batch({"messages": [*HI, {"role": "tool", "content": "x"}]}), "body.messages[1].role", '"tool" is not one of system, user, assistant, developer'),
    "a role that is a number": (batch({"messages": [{"role": 5, "content": "x"}]}), "body.messages[0].role", "expected text, got a whole number"),
    "a message without a role": (batch({"messages": [{"content": "x"}]}), "body.messages[0].role", "is missing"),
    "a message without content": (batch({"messages": [{"role": "user"}]}), "body.messages[0].content", "is missing"),
    "content of null": (batch({"messages": [{"role": "user", "content": None}]}), "body.messages[0].content", "is missing"),
    "tool calls": (batch({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}), "body.messages[0].tool_calls", "is not supported"),
    "an image": (batch({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}), "body.messages[0].content[0].type", 'parts of type "image_url" are not supported, only text'),
    "a part without text": (batch({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "body.messages[0].content[0].text", "is missing"),
    "a part that is a text": (batch({"messages": [{"role": "user", "content": ["x"]}]}), "body.messages[0].content[0]", "expected an object, got text"),
    "a chat without messages": (batch({}), "body.messages", "is missing"),
    "a prompt for the chat endpoint": (batch({"prompt": "x"}), "body.prompt", "is not a field of /v1/chat/completions, which takes messages"),
    "messages for the completions endpoint": (batch({"messages": HI}, url="/v1/completions"), "body.messages", "is not a field of /v1/completions, which takes prompt"),
    "a completion without a prompt": (batch({}, url="/v1/completions"), "body.prompt", "is missing"),
    "a body as text": (batch("{}"), "body", "must be an object"),
    "a line without a body": (batch("absent"), "body", "is missing"),
    "the method GET": (batch({}, method="GET"), "method", 'must be POST, not "GET"'),
    "no method": (batch({}, method="absent"), "method", "is missing; it must be POST"),
    "an endpoint for embeddings": (batch({}, url="/v1/embeddings"), "url", 'must be /v1/chat/completions or /v1/completions, not "/v1/embeddings"'),
    "no endpoint": (batch({}, url="absent"), "url", "is missing; it must be /v1/chat/completions or /v1/completions"),
    "a field beside the body": (batch({"messages": HI}, priority=1), "priority", "is not a field of a batch line"),
    "an id that is an object": (batch({"messages": HI}, custom_id={}), "custom_id", "must be text, not an object"),
    # JSON
    "nothing but a brace": (b"}", "line", "is not valid JSON: invalid character (byte 0)"),
    "Infinity": (b'{"prompt": "x", "top_p": Infinity}', "line", "is not valid JSON: NaN and Infinity are no numbers there"),
    "NaN in metadata": (b'{"prompt": "x", "metadata": {"a": NaN}}', "line", "is not valid JSON: NaN and Infinity are no numbers there"),
    "half of a surrogate pair at the end": (rb'{"prompt": "\ud800"}', "line", "is not valid JSON: it holds half of a surrogate pair"),
    "the second half of a surrogate pair": (rb'{"prompt": "\udc00 x"}', "line", "is not valid JSON: it holds half of a surrogate pair"),
    "half of a surrogate pair in an id": (rb'{"prompt": "x", "id": "\ud83dxxxxxxx"}', "line", "is not valid JSON: it holds half of a surrogate pair"),
    "half of a surrogate pair in a key": (rb'{"prompt": "x", "metadata": {"\ud83dxxxxxxx": 1}}', "line", "is not valid JSON: it holds half of a surrogate pair"),
    "a surrogate as three bytes": (b'{"prompt": "\xed\xa0\x80"}', "line", "is not UTF-8 at byte 12"),
    "an overlong slash": (b'{"prompt": "\xc0\xaf"}', "line", "is not UTF-8 at byte 12"),
    "Latin-1": ('{"prompt": "Grüße"}'.encode("latin-1"), "line", "is not UTF-8 at byte 14"),
    "a null byte in a text": (b'{"prompt": "a\x00b"}', "line", "is not valid JSON: invalid character (byte 13)"),
    "a null byte after the object": (b'{"prompt": "a"}\x00', "line", "is not valid JSON: trailing characters (byte 16)"),
    "a line end in a text": (b'{"prompt": "a\rb"}', "line", "is not valid JSON: invalid character (byte 13)"),
    "a comma at the end": (b'{"prompt": "a",}', "line", "is not valid JSON: trailing comma in object (byte 15)"),
    "a comment": (b'{"prompt": "a"} // b', "line", "is not valid JSON: trailing characters (byte 17)"),
    "two objects on one line": (b'{"prompt": "a"}{"prompt": "b"}', "line", "is not valid JSON: trailing characters (byte 16)"),
    "a number with a leading zero": (b'{"prompt": "a", "seed": 007}', "line", "is not valid JSON: invalid number (byte 25)"),
    "a hexadecimal number": (b'{"prompt": "a", "seed": 0x7}', "line", "is not valid JSON: expected ',' or '}' (byte 25)"),
    "True as Python writes it": (b'{"prompt": "a", "stream": True}', "line", "is not valid JSON: invalid character (byte 26)"),
    "an escape that JSON does not have": (rb'{"prompt": "\x41"}', "line", "is not valid JSON: invalid escape character in string (byte 14)"),
    "a byte order mark of UTF-16": (b'\xff\xfe{"prompt": "a"}', "line", "is not UTF-8 at byte 0"),
    "a shell's error message": (b"cat: a.jsonl: No such file or directory", "line", "is not valid JSON: invalid character (byte 0)"),
    "lists 200 deep": (b'{"prompt":"x","user":' + b"[" * 200 + b"]" * 200 + b"}", "line", "is nested too deeply"),
    "a part with lists 200 deep": (b'{"messages":[{"role":"user","content":[{"type":"text","text":"x","y":' + b"[" * 200 + b"]" * 200 + b"}]}]}", "line", "is nested too deeply"),
    "false": (False, "line", "holds true or false, not an object with one request"),
    # Keys
    "a key that is there twice, wrong at last": (b'{"prompt": "a", "prompt": ""}', "prompt", "is empty"),
    "a key that would move the cursor": (plain(**{"a\x1b[2Jb": 1}), r"a\x1b[2Jb", "is an unknown field; fields of your own go under metadata"),
    "a key of 5000 characters": (plain(**{"x" * 5000: 1}), "x" * 200 + "…", "is an unknown field; fields of your own go under metadata"),
    "a key with a line end": (plain(**{"a\nb": 1}), r"a\nb", "is an unknown field; fields of your own go under metadata"),
    "an empty key": (plain(**{"": 1}), '""', "is an unknown field; fields of your own go under metadata"),
    "a misspelt prompt": ({"promt": "x"}, "promt", "is an unknown field; did you mean 'prompt'?"),
    "another program's cap": (plain(max_new_tokens=5), "max_new_tokens", "is an unknown field; did you mean 'max_tokens'?"),
    "a body in a plain line": (plain(body={}), "prompt", "is not a field of a batch line"),
    "a body in a body": (batch({"messages": HI, "body": {"body": {}}}), "body.body", "is an unknown field; fields of your own go under metadata"),
    # Ids
    "an id of 10000 characters": (plain(id="x" * 10_000), "id", "must have 1 to 512 characters, not 10000"),
    "an id with a fraction": (plain(id=1.5), "id", "must be text, not a number"),
    "an empty custom_id of a batch line": (batch({"messages": HI}, custom_id=""), "custom_id", "must have 1 to 512 characters, not 0"),
    # Numbers
    "max_tokens of 400 digits": (b'{"prompt": "x", "max_tokens": ' + b"9" * 400 + b"}", "max_tokens", "expected a whole number <= 10000000"),
    "a temperature of 400 digits": (b'{"prompt": "x", "temperature": ' + b"9" * 400 + b"}", "temperature", "number out of range"),
    "a seed like 1e300": (plain(seed=1e300), "seed", "expected a whole number <= 9223372036854775807"),
    "a whole number of 30 digits in metadata": (plain(metadata={"a": 10**29}), "metadata.a", "is a whole number beyond 64 bits"),
    "top_k beyond 31 bits": (plain(top_k=2**31), "top_k", "expected a whole number <= 2147483647"),
    "top_k of true": (plain(top_k=True), "top_k", "expected a whole number, got true or false"),
    "an arrival as text": (plain(arrival_s="1s"), "arrival_s", "expected a number, got text"),
    "a max_completion_tokens of 0": (chat(max_completion_tokens=0), "body.max_completion_tokens", "expected a whole number >= 1"),
    # Answers, log probabilities, biases
    "n of 0": (plain(n=0), "n", "expected a whole number >= 1"),
    "n of 129": (plain(n=129), "n", "expected a whole number <= 128"),
    "n with a fraction": (plain(n=1.5), "n", "expected a whole number, got a number"),
    "n of true": (chat(n=True), "body.n", "expected a whole number, got true or false"),
    "the best of two": (plain(n=2, best_of=2), "best_of", "2 is not supported"),
    "logprobs as a number in a chat": (chat(logprobs=2), "body.logprobs", "must be true or false; the number goes under top_logprobs"),
    "logprobs as a number in a plain line": (plain(logprobs=0), "logprobs", "must be true or false; the number goes under top_logprobs"),
    "logprobs as text": (plain(logprobs="yes"), "logprobs", "expected true or false or a whole number, got text"),
    "logprobs as true in a completion": (completion(logprobs=True), "body.logprobs", "must be a whole number for /v1/completions, not true or false"),
    "six logprobs in a completion": (completion(logprobs=6), "body.logprobs", "expected a whole number <= 5"),
    "top_logprobs in a completion": (completion(logprobs=1, top_logprobs=1), "body.top_logprobs", "is not a field of /v1/completions, which takes logprobs"),
    "top_logprobs alone": (plain(top_logprobs=2), "top_logprobs", "needs logprobs to be true"),
    "top_logprobs beside logprobs of false": (chat(logprobs=False, top_logprobs=2), "body.top_logprobs", "needs logprobs to be true"),
    "21 top_logprobs": (plain(logprobs=True, top_logprobs=21), "top_logprobs", "expected a whole number <= 20"),
    "logit_bias as a list": (plain(logit_bias=[1]), "logit_bias", "expected an object, got a list"),
    "a bias for a word": (plain(logit_bias={"yes": 1}), "logit_bias.yes", '"yes" is no id of a token'),
    "a bias for a negative id": (plain(logit_bias={"-1": 1}), "logit_bias.-1", '"-1" is no id of a token'),
    "a bias for an id with a leading zero": (plain(logit_bias={"07": 1}), "logit_bias.07", '"07" is no id of a token'),
    "a bias for an id in Arabic digits": (plain(logit_bias={"٣": 1}), "logit_bias.٣", '"٣" is no id of a token'),
    "a bias above 100": (plain(logit_bias={"7": 100.5}), "logit_bias.7", "must be from -100 to 100, not 100.5"),
    "a bias below -100": (plain(logit_bias={"7": -101}), "logit_bias.7", "must be from -100 to 100, not -101"),
    "a bias as text": (plain(logit_bias={"7": "1"}), "logit_bias.7", "must be a number, not text"),
    "a bias of true": (plain(logit_bias={"7": True}), "logit_bias.7", "must be a number, not true or false"),
    "1025 biases": (plain(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias", "expected an object of length <= 1024"),
    # What other servers have beside OpenAI's fields
    "min_p above 1": (plain(min_p=1.5), "min_p", "expected a number <= 1.0"),
    "min_p below 0": (chat(min_p=-0.1), "body.min_p", "expected a number >= 0.0"),
    "a repetition_penalty of 0": (plain(repetition_penalty=0), "repetition_penalty", "expected a number >= 0.01"),
    "a repetition_penalty above 100": (plain(repetition_penalty=101), "repetition_penalty", "expected a number <= 100.0"),
    "a presence_penalty above 2": (plain(presence_penalty=2.5), "presence_penalty", "expected a number <= 2.0"),
    "a frequency_penalty below -2": (completion(frequency_penalty=-3), "body.frequency_penalty", "expected a number >= -2.0"),
    "a frequency_penalty as text": (plain(frequency_penalty="1"), "frequency_penalty", "expected a number, got text"),
    "stop_token_ids as a number": (plain(stop_token_ids=2), "stop_token_ids", "expected a list, got a whole number"),
    "a stop token as text": (plain(stop_token_ids=["2"]), "stop_token_ids[0]", "expected a whole number, got text"),
    "a stop token with a fraction": (plain(stop_token_ids=[2.5]), "stop_token_ids[0]", "expected a whole number, got a number"),
    "a stop token of null": (plain(stop_token_ids=[None]), "stop_token_ids[0]", "expected a whole number, got null"),
    "a stop token below 0": (plain(stop_token_ids=[1, -1]), "stop_token_ids[1]", "expected a whole number >= 0"),
    "a stop token beyond 31 bits": (plain(stop_token_ids=[2**31]), "stop_token_ids[0]", "expected a whole number <= 2147483647"),
    "1025 stop tokens": (plain(stop_token_ids=[1] * 1025), "stop_token_ids", "expected a list of length <= 1024"),
    "ignore_eos of 1": (plain(ignore_eos=1), "ignore_eos", "expected true or false, got a whole number"),
    "min_tokens below 0": (plain(min_tokens=-1), "min_tokens", "expected a whole number >= 0"),
    "min_tokens beyond all answers": (plain(min_tokens=10_000_001), "min_tokens", "expected a whole number <= 10000000"),
    "min_tokens above max_tokens": (plain(min_tokens=6, max_tokens=5), "min_tokens", "must be at most max_tokens, which is 5, not 6"),
    "min_tokens above max_completion_tokens": (chat(min_tokens=6, max_completion_tokens=5), "body.min_tokens", "must be at most max_tokens, which is 5, not 6"),
    "a misspelt min_tokens": (plain(min_token=6), "min_token", "is an unknown field; did you mean 'min_tokens'?"),
    # Formats of answers
    "response_format as text": (plain(response_format="json"), "response_format", "expected an object, got text"),
    "a response_format of nothing": (plain(response_format={}), "response_format.type", "is missing"),
    "a grammar": (chat(response_format={"type": "grammar"}), "body.response_format.type", '"grammar" is not one of text, json_object, json_schema'),
    "an unknown key of response_format": (plain(response_format={"type": "text", "x": 1}), "response_format.x", "is not supported"),
    "no schema at all": (plain(response_format={"type": "json_schema"}), "response_format.json_schema", "is missing"),
    "a schema beside plain text": (plain(response_format=schema({}) | {"type": "text"}), "response_format.json_schema", 'stands beside type "text"'),
    "a schema of true": (plain(response_format=schema(True)), "response_format.json_schema.schema", "expected an object, got true or false"),
    "a schema as text": (plain(response_format=schema("{}")), "response_format.json_schema.schema", "expected an object, got text"),
    "a schema without a name": (plain(response_format=schema({}, name=None)), "response_format.json_schema.name", "expected text, got null"),
    "a schema with an unknown key beside it": (plain(response_format=schema({}, x=1)), "response_format.json_schema.x", "is not supported"),
    "a schema 65 levels deep": (plain(response_format=schema(deep(65))), "response_format.json_schema.schema", "is nested deeper than 64 levels"),
    "a schema of more than 1 MiB": (plain(response_format=schema({"enum": ["x" * 2**20]})), "response_format.json_schema.schema", "is larger than 1 MiB"),
    "a number of 30 digits in a schema": (plain(response_format=schema({"const": 10**29})), "response_format.json_schema.schema", "holds a whole number beyond 64 bits"),
    # Messages
    "messages as an object": ({"messages": {"role": "user", "content": "x"}}, "messages", "expected a list, got an object"),
    "a role with a capital": ({"messages": [{"role": "User", "content": "x"}]}, "messages[0].role", '"User" is not one of system, user, assistant, developer'),
    "a role of 5000 characters": ({"messages": [{"role": "x" * 5000, "content": "x"}]}, "messages[0].role", '"' + "x" * 59 + "… is not one of system, user, assistant, developer"),
    "content that is a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "expected text or a list, got a whole number"),
    "a name for a speaker": ({"messages": [{"role": "user", "content": "x", "name": "Eve"}]}, "messages[0].name", "is not supported"),
    "tools": (chat(tools=[{"type": "function"}]), "body.tools", '[{"type": "function"}] is not supported'),
    # ShareGPT
    "conversations as text": ({"conversations": "hi"}, "conversations", "expected a list, got text"),
    "an empty conversation": (sharegpt(), "conversations", "hold no turn of a human"),
    "a conversation without a human": (sharegpt(("gpt", "x"), ("system", "y")), "conversations", "hold no turn of a human"),
    "a conversation without text": (sharegpt(("human", " "), ("gpt", "x")), "conversations", "hold no text"),
    "a turn that is text": ({"conversations": ["hi"]}, "conversations[0]", "expected an object, got text"),
    "a turn of nobody": ({"conversations": [{"value": "x"}]}, "conversations[0].from", "is missing"),
    "a turn of nothing": ({"conversations": [{"from": "human"}]}, "conversations[0].value", "is missing"),
    "a turn with a list": (sharegpt(("human", ["x"])), "conversations[0].value", "expected text, got a list"),
    "a turn of a tool": (sharegpt(("human", "x"), ("tool", "y")), "conversations[1].from", '"tool" is not one of system, human, user, gpt, assistant, chatgpt, bing, bard, model'),
    "a turn that calls a function": (sharegpt(("human", "x"), ("function_call", "y")), "conversations[1].from", '"function_call" is not one of system, human, user, gpt, assistant, chatgpt, bing, bard, model'),
    "an observation": (sharegpt(("observation", "x"), ("human", "y")), "conversations[0].from", '"observation" is not one of system, human, user, gpt, assistant, chatgpt, bing, bard, model'),
    "a conversation beside a prompt": (sharegpt(("human", "x"), prompt="y"), "prompt", "stands beside conversations; give one of them"),
    "a conversation about images": (sharegpt(("human", "x"), images=["a.png"]), "images", '["a.png"] is not supported'),
    "a conversation with tools": (sharegpt(("human", "x"), tools='[{"name": "y"}]'), "tools", r'"[{\"name\": \"y\"}]" is not supported'),
    "a conversation with a misspelt cap": (sharegpt(("human", "x"), max_token=5), "max_token", "is an unknown field; did you mean 'max_tokens'?"),
    "a conversation with two system prompts": (sharegpt(("system", "x"), ("human", "y"), system="z"), "system", "differs from the conversation's own system turn"),
    "a misspelt conversation": ({"conversation": []}, "conversation", "is an unknown field; did you mean 'conversations'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_refused_with_its_field_and_reason(name: str) -> None:
    line, field, reason = HOSTILE[name]
    refused = parsed(line)
    assert isinstance(refused, InvalidRequest)
    assert (refused.field, refused.reason) == (field, reason)
    assert (field + reason).isprintable()
    assert len(field) <= MAX_FIELD_CHARS + 1
    assert len(reason) <= MAX_REASON_CHARS + 1
    assert refused.source == SOURCE


HARMLESS: dict[str, object] = {
    "an id that looks like a path": plain(id="../../etc/passwd"),
    "an id that looks like a flag": plain(id="--help"),
    "an id with a null byte": plain(id="a\0b"),
    "an id with a line end": plain(custom_id="a\nb"),
    "an id that rings the bell": chat() | {"custom_id": "a\x07"},
    "an id of 512 characters": plain(id="x" * 512),
    "an id of another script": plain(id="Ж漢\N{NO-BREAK SPACE}🦊"),
    "an id as a number of 30 digits": plain(id=10**29),
    "an escaped null byte in a prompt": plain(prompt="a\0b"),
    "control characters in a prompt": plain(prompt="\x1b[31mred\x07"),
    "an emoji as a surrogate pair": rb'{"prompt": "\ud83e\udd8a"}',
    "a key that is there twice, right at last": b'{"prompt": "", "prompt": "a"}',
    "blanks around the object": b' \t{ "prompt" : "a" } \r',
    "a key written with escapes": rb'{"p\u0072ompt": "a"}',
    "a schema 64 levels deep": plain(response_format=schema(deep(64))),
    "a prompt of a megabyte": plain(prompt="x" * 2**20),
    "two caps that agree": plain(max_tokens=5, max_completion_tokens=5),
    "the best of one beside two answers": plain(n=2, best_of=1),
    "as many tokens at least as at most": plain(min_tokens=5, max_tokens=5),
    "a stop token a thousand times": plain(stop_token_ids=[7] * 1024),
    "penalties that ask for nothing": plain(presence_penalty=0, frequency_penalty=-0.0),
    "a min_p of 1 and the least penalty": chat(min_p=1, repetition_penalty=0.01),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_hostile_is_a_request(name: str) -> None:
    json.dumps(valid(HARMLESS[name]).messages[0].content).encode()


@pytest.mark.parametrize("name", [*HOSTILE, *HARMLESS])
def test_both_ways_of_reading_agree(name: str) -> None:
    line = HOSTILE[name][0] if name in HOSTILE else HARMLESS[name]
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    quick, careful = quick_request(text, SOURCE, STARTED), parse_carefully(text, SOURCE, STARTED)
    assert quick is None or quick == careful
    assert quick is None or name in HARMLESS


def test_the_emoji_of_a_surrogate_pair_is_one_character() -> None:
    assert valid(HARMLESS["an emoji as a surrogate pair"]).messages == (Message("user", "🦊"),)
