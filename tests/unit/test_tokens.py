from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.builders import chat
from uellm_cli.errors import ModelError
from uellm_cli.models.tokens import AutoPromptTokenizer, EstimatedTokenizer, load_tokenizer
from uellm_cli.types import Endpoint, Message, Request, Source

CONVERSATION = Request(
    "c",
    Endpoint.CHAT,
    messages=(
        Message("system", "You are terse."),
        Message("user", "Count from 3 to 7, naïve façade 漢字 🙂"),
        Message("assistant", "3 4 5"),
        Message("user", "go on\n\n"),
    ),
)
COMPLETION = Request("d", Endpoint.COMPLETION, prompt="count from 3 to 7:\n")


def copy_model(source: str, target: Path, **changes: object) -> Path:
    """The model's tokenizer in a folder of its own, with changed tokenizer settings."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    settings_file = target / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) | changes
    settings_file.write_text(json.dumps(settings))
    return target


def test_ids_equal_autotokenizer_s_for_chats_and_raw_prompts(tiny_llm: str) -> None:
    from transformers import AutoTokenizer

    reference = AutoPromptTokenizer(AutoTokenizer.from_pretrained(tiny_llm))
    requests = [CONVERSATION, COMPLETION, chat("e", "hi")]
    tokenizer = load_tokenizer(tiny_llm)
    assert tokenizer.source is Source.MEASURED
    assert tokenizer.encode(requests) == reference.encode(requests)
    assert tokenizer.count(requests) == [len(ids) for ids in reference.encode(requests)]


def test_padding_and_truncation_of_training_are_not_applied_to_prompts(
    tiny_llm: str, tmp_path: Path
) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(str(folder)).encode([CONVERSATION]) == load_tokenizer(tiny_llm).encode(
        [CONVERSATION]
    )


def test_a_template_in_the_settings_serves_as_well_as_one_in_a_file(
    tiny_llm: str, tmp_path: Path
) -> None:
    template = (Path(tiny_llm) / "chat_template.jinja").read_text()
    for i, form in enumerate([template, [{"name": "default", "template": template}]]):
        folder = copy_model(tiny_llm, tmp_path / str(i), chat_template=form)
        (folder / "chat_template.jinja").unlink()
        assert load_tokenizer(str(folder)).encode([CONVERSATION]) == load_tokenizer(
            tiny_llm
        ).encode([CONVERSATION])


def test_without_a_template_messages_are_joined_by_newlines(tiny_llm: str, tmp_path: Path) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(str(folder))
    joined = "\n".join(message.content for message in CONVERSATION.messages)
    raw = Request("r", Endpoint.COMPLETION, prompt=joined)
    assert tokenizer.encode([CONVERSATION]) == tokenizer.encode([raw])


def test_a_conversation_that_the_template_refuses_is_an_error_with_its_reason(
    tiny_llm: str, tmp_path: Path
) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    template = "{{ raise_exception('roles must alternate') }}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="roles must alternate"):
        load_tokenizer(str(folder)).encode([CONVERSATION])


def test_a_template_cannot_reach_out_of_its_sandbox(tiny_llm: str, tmp_path: Path) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ModelError, match="unsafe"):
        load_tokenizer(str(folder)).encode([CONVERSATION])


def test_a_template_that_does_not_parse_is_the_model_s_error(tiny_llm: str, tmp_path: Path) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelError, match="template is not valid"):
        load_tokenizer(str(folder)).encode([CONVERSATION])


def test_a_broken_tokenizer_file_is_named(tiny_llm: str, tmp_path: Path) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_bare_config_gives_an_estimate_and_says_so(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    tokenizer = load_tokenizer(str(config))
    assert isinstance(tokenizer, EstimatedTokenizer)
    assert tokenizer.source is Source.ASSUMED
    # 40 bytes at 4 a token, and 8 for the template around the one message.
    assert tokenizer.count([chat("a", "x" * 40)]) == [18]
    with pytest.raises(ModelError, match="has no tokenizer"):
        tokenizer.encode([chat("a", "x")])


def test_templates_may_use_all_that_transformers_gives_them(tiny_llm: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = copy_model(tiny_llm, tmp_path / "model")
    template = (
        "{% if tools is not none %}tools{% endif %}{{ bos_token }}"
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{{ m | tojson(separators=(',', ':'), sort_keys=true) }}{% if loop.last %}{% break %}"
        "{% endif %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    reference = AutoPromptTokenizer(AutoTokenizer.from_pretrained(folder))
    assert load_tokenizer(str(folder)).encode([CONVERSATION]) == reference.encode([CONVERSATION])


def test_special_tokens_are_found_in_a_file_of_their_own(tiny_llm: str, tmp_path: Path) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = {name: settings.pop(name) for name in ("bos_token", "eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    assert load_tokenizer(str(folder)).encode([CONVERSATION]) == load_tokenizer(tiny_llm).encode(
        [CONVERSATION]
    )


def test_a_template_that_breaks_in_its_own_way_costs_only_the_conversation(
    tiny_llm: str, tmp_path: Path
) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] + 1 }}")
    with pytest.raises(ModelError, match="refuses this conversation"):
        load_tokenizer(str(folder)).encode([CONVERSATION])


def test_a_date_in_a_template_is_the_run_s_and_not_the_day_s(tiny_llm: str, tmp_path: Path) -> None:
    folder = copy_model(tiny_llm, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }} {{ messages }}")
    days = [datetime(2026, 7, day, tzinfo=UTC) for day in (1, 2)]
    first, second = (load_tokenizer(str(folder), now=day).encode([CONVERSATION]) for day in days)
    assert first != second
    assert load_tokenizer(str(folder), now=days[0]).encode([CONVERSATION]) == first
