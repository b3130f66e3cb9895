"""Prompts to token ids with the model's own tokenizer and chat template, without torch.

`tokenizer.json` is read by the `tokenizers` library and the chat template rendered in jinja2's
sandbox with the helpers that transformers gives it, so that ids equal `AutoTokenizer`'s. A model
without a `tokenizer.json` goes through `AutoTokenizer`; a bare `config.json` has no tokenizer at
all, and then tokens are estimated and the profile says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from uellm_cli.errors import ModelError
from uellm_cli.models.files import find_model_file
from uellm_cli.types import Endpoint, Message, Request, Source

if TYPE_CHECKING:
    import jinja2
    import tokenizers

# Bytes of English text a token, as byte-pair vocabularies of 32,000 to 150,000 entries have it.
BYTES_PER_TOKEN = 4
# Tokens that a chat template adds around one message.
TEMPLATE_TOKENS = 8
COUNT_AT_ONCE = 1000


class PromptTokenizer(Protocol):
    """Turns a request into the ids that the model will be given."""

    @property
    def source(self) -> Source:
        """MEASURED when ids are the model's own, ASSUMED when only their number is estimated."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether messages are told apart in a prompt; without one they are joined by newlines."""
        ...

    def count(self, requests: Sequence[Request]) -> list[int]:
        """Prompt tokens of each request, chat template included."""
        ...

    def encode(self, requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of each request; ModelError when there is no tokenizer to make them."""
        ...


def load_tokenizer(
    model: str, trust_remote_code: bool = False, now: datetime | None = None
) -> PromptTokenizer:
    """The tokenizer of a model folder or Hub id; an estimate for a bare `config.json`.

    `now` is the date that templates write into prompts, today's unless given: a run that is resumed
    tomorrow asks what it asked. Code that comes with the model is run only with
    `trust_remote_code`. Raises ModelError when the
    model's tokenizer files cannot be read.
    """
    if Path(model).is_file():
        return EstimatedTokenizer()
    tokenizer_file = find_model_file(model, "tokenizer.json")
    if tokenizer_file is None:
        return _auto_tokenizer(model, trust_remote_code)
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{tokenizer_file}: not a tokenizer: {error}") from None
    # A file may carry the padding and truncation of its training; prompts are taken whole.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Older models name their special tokens in a file of their own.
    settings = _read_json(find_model_file(model, "special_tokens_map.json"))
    settings |= _read_json(find_model_file(model, "tokenizer_config.json"))
    return FastTokenizer(tokenizer, ChatTemplate(_template_text(model, settings), settings, now))


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template; `text` is None for a model without one."""

    text: str | None
    settings: Mapping[str, Any]
    now: datetime | None = None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text, up to where the assistant begins to speak.

        Without a template, messages are joined by newlines: a base model continues them. Raises
        ModelError when the template refuses the messages.
        """
        if self.text is None:
            return "\n".join(message.content for message in messages)
        try:
            return self._compiled.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except ModelError:
            raise
        except Exception as error:  # a template is a program, and may fail in any way
            raise ModelError(f"the chat template refuses this conversation: {error}") from None

    def _strftime_now(self, form: str) -> str:
        return (self.now or datetime.now().astimezone()).strftime(form)

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        tokens = {}
        for name, value in self.settings.items():
            if name.endswith("_token"):
                content = value.get("content") if isinstance(value, dict) else value
                if isinstance(content, str):
                    tokens[name] = content
        return tokens

    @cached_property
    def _compiled(self) -> jinja2.Template:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class GenerationTag(Extension):
            """`{% generation %}` marks what a model has said; for a prompt it means nothing."""

            tags = {"generation"}  # noqa: RUF012 - as the base class has it

            def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self._strftime_now
        try:
            return environment.from_string(self.text or "")
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is not valid: {error}") from None


@dataclass(frozen=True)
class FastTokenizer:
    """A `tokenizer.json` with a chat template."""

    tokenizer: tokenizers.Tokenizer
    template: ChatTemplate

    @property
    def source(self) -> Source:
        return Source.MEASURED

    @property
    def has_chat_template(self) -> bool:
        return self.template.text is not None

    def count(self, requests: Sequence[Request]) -> list[int]:
        # In pieces, so that the ids of a million prompts are never in memory together.
        pieces = (requests[i : i + COUNT_AT_ONCE] for i in range(0, len(requests), COUNT_AT_ONCE))
        return [len(ids) for piece in pieces for ids in self.encode(piece)]

    def encode(self, requests: Sequence[Request]) -> list[list[int]]:
        # Templates write their own special tokens; raw prompts get the tokenizer's.
        ids: list[list[int]] = [[] for _ in requests]
        for templated in (False, True):
            chosen = [i for i, r in enumerate(requests) if self._is_templated(r) is templated]
            texts = [self._text(requests[i]) for i in chosen]
            encoded = self.tokenizer.encode_batch(texts, add_special_tokens=not templated)
            for i, encoding in zip(chosen, encoded, strict=True):
                ids[i] = encoding.ids
        return ids

    def _is_templated(self, request: Request) -> bool:
        return request.endpoint is Endpoint.CHAT and self.template.text is not None

    def _text(self, request: Request) -> str:
        if request.endpoint is Endpoint.COMPLETION:
            return request.prompt
        return self.template.render(request.messages)


@dataclass(frozen=True)
class AutoPromptTokenizer:
    """transformers' own tokenizer, for models that ship no `tokenizer.json`."""

    tokenizer: Any

    @property
    def source(self) -> Source:
        return Source.MEASURED

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def count(self, requests: Sequence[Request]) -> list[int]:
        return [len(ids) for ids in self.encode(requests)]

    def encode(self, requests: Sequence[Request]) -> list[list[int]]:
        return [self._encode_one(request) for request in requests]

    def _encode_one(self, request: Request) -> list[int]:
        if request.endpoint is Endpoint.COMPLETION:
            return list(self.tokenizer(request.prompt)["input_ids"])
        if self.tokenizer.chat_template is None:
            text = "\n".join(message.content for message in request.messages)
            return list(self.tokenizer(text)["input_ids"])
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class EstimatedTokenizer:
    """Counts for planning from a bare `config.json`: UTF-8 bytes over `BYTES_PER_TOKEN`."""

    @property
    def source(self) -> Source:
        return Source.ASSUMED

    @property
    def has_chat_template(self) -> bool:
        return True  # counted as if it had one

    def count(self, requests: Sequence[Request]) -> list[int]:
        return [self._count_one(request) for request in requests]

    def encode(self, requests: Sequence[Request]) -> list[list[int]]:
        raise ModelError("a bare config.json has no tokenizer; give the model's folder or Hub id")

    def _count_one(self, request: Request) -> int:
        texts = [message.content for message in request.messages] or [request.prompt]
        size = sum(len(text.encode()) for text in texts)
        return -(-size // BYTES_PER_TOKEN) + TEMPLATE_TOKENS * len(request.messages)


def _template_text(model: str, settings: Mapping[str, Any]) -> str | None:
    own_file = find_model_file(model, "chat_template.jinja")
    if own_file is not None:
        return own_file.read_text(encoding="utf-8")
    inline = settings.get("chat_template")
    if isinstance(inline, list):
        named = {entry["name"]: entry["template"] for entry in inline}
        inline = named.get("default")
    return inline if isinstance(inline, str) else None


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def _auto_tokenizer(model: str, trust_remote_code: bool) -> PromptTokenizer:
    from transformers import AutoTokenizer

    try:
        return AutoPromptTokenizer(
            AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        )
    except Exception as error:  # many kinds, by tokenizer class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(f"model {model!r} has no tokenizer that can be loaded: {reason}") from None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
