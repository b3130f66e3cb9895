"""Every command that the documents show is run as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from tests.builders import profiled
from tests.conftest import REPOSITORY
from tests.unit.scheduling_cases import STATIC
from uellm_cli.cli.app import app
from uellm_cli.columns import columns_of
from uellm_cli.types import ModelSpec

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


COMMANDS = [
    line for block in blocks("bash") for line in block.splitlines() if line.startswith("uellm ")
]


def test_the_readme_s_commands_work_one_after_another(
    uellm: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(
        REPOSITORY / "sample_data", tmp_path / "sample_data",
        ignore=shutil.ignore_patterns("make", "__pycache__"),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert COMMANDS
    for command in COMMANDS:
        assert uellm(*shlex.split(command)[1:]) == 0, command


def test_every_command_is_shown_in_the_readme() -> None:
    names = set(typer.main.get_group(app).commands)
    assert names
    assert names == {shlex.split(command)[1] for command in COMMANDS}


def test_the_readme_s_request_lines_and_promises_are_valid(
    uellm: Callable[..., int], tmp_path: Path
) -> None:
    lines = tmp_path / "requests.jsonl"
    (shown,) = blocks("json")
    lines.write_text(shown)
    (promises,) = blocks("yaml")
    slo_file = tmp_path / "slo.yaml"
    slo_file.write_text(promises)
    assert yaml.safe_load(promises)["classes"]
    assert all(json.loads(line) for line in shown.splitlines())
    assert uellm("plan", lines, "--slo-file", slo_file, "--strict") == 0


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"\bmake (\w+) ", "".join(blocks("console")))
    assert targets == ["run", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M)
    assert "exec make test" in (REPOSITORY / ".ci" / "run").read_text()


def test_contributing_s_example_scheduler_works_as_it_stands() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^ *```python\n(.*?)^ *```", text, flags=re.M | re.S)
    names: dict[str, object] = {}
    prelude = (
        "import numpy as np\n"
        "from dataclasses import dataclass\n"
        "from uellm_cli.columns import Arrangement, RequestColumns\n"
        "from uellm_cli.scheduler.batching import cut_into_batches\n"
        "from uellm_cli.types import Conditions\n"
    )
    exec(prelude + re.sub(r"^   ", "", example, flags=re.M), names)  # noqa: S102
    scheduler = names["HeaviestFirst"]()  # type: ignore[operator]
    columns = columns_of([profiled("b", output=9), profiled("c"), profiled("a", deadline_s=3)])
    arranged = scheduler.arrange(columns, STATIC).named("example", columns.custom_ids)
    assert arranged.batches[0].custom_ids == ("a", "c", "b")


def test_the_architecture_page_names_only_rooms_that_exist() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| (.+?) \|", page, flags=re.M)[1:]
    named = [name for row in rooms for name in re.findall(r"`([\w/.]+)`", row)]
    assert len(named) > 12
    for name in named:
        assert (REPOSITORY / "uellm_cli" / name).exists(), name
    assert ModelSpec.__name__ in page
