"""The tiny model's card: its README, written from the figures its training recorded."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from sample_data.make.tasks import TASKS, completion_prompt, sample_task

EXAMPLE_SEED = 4
#: A shown answer is cut to this many letters.
SHOWN = 40

CARD = """\
# tiny-llm

A Llama of {parameters:,} parameters ({layers} layers of width {width}, {vocabulary:,} tokens,
context {context:,}) that does {tasks} small text tasks. It was trained from scratch on text its own
scripts draw, so that batch inference can be tried, tested and measured with no download. Each
answer, and how long it is, follows from the prompt; the model ends it by itself, after 1 to about
400 tokens. It knows nothing else, and answers other prompts with nonsense.

## Tasks

Exact match is on {examples} prompts whose content training never saw, greedy: as a chat, as a chat
after a system prompt, and as a raw completion.

| task | example | answer | chat | system | completion |
| --- | --- | --- | --- | --- | --- |
{rows}

The phrasings are listed in `sample_data/make/tasks.py`. The case of the first letter, a "please"
and the final mark may vary. A raw completion is the prompt without its final mark, then a colon and
a new line: `{completion}`.

## Making it

    {command} --out sample_data/tiny-llm

It took {minutes:.1f} minutes on 2 cores (AMD EPYC), CPU, torch {torch}, {date}: {steps:,} steps,
{tokens:,} tokens (padding included), seed {seed}, loss on answer tokens {first_loss:.2f} over the
first {loss_steps} steps and {last_loss:.4f} over the last. The schedule follows the wall clock, so
another run ends with other weights. `training.json` has all recorded figures, and
`python -m sample_data.make.evaluate sample_data/tiny-llm` measures exact match again.

## Limits

- Numbers count up to 400, down from 200; number words reach 299, multiples 12, lists 35 items.
- Words are copied letter by letter. Words of up to eight letters are what it was trained on; a
  word that occurs in a phrasing ("count", "Monday") is one token and cannot be spelt.
- English only, one task per prompt; earlier turns of a chat have no part in an answer.
"""


def _short(text: str) -> str:
    flat = text.replace("\n", " ⏎ ").replace("|", "\\|")
    return flat if len(flat) <= SHOWN else flat[:SHOWN].rstrip() + " …"


def write_card(folder: Path, config: Any, figures: dict[str, Any]) -> None:
    """Write the README of a model folder from its configuration and recorded figures."""
    rng = Random(EXAMPLE_SEED)
    marks = figures["exact_match"]
    rows = []
    for task in TASKS:
        example = sample_task(rng, task)
        shares = " | ".join(f"{form[task.name]:.0%}" for form in marks.values())
        prompt, answer = _short(example.prompt), _short(example.answer)
        rows.append(f"| {task.name} | {prompt} | `{answer}` | {shares} |")
    shares = " | ".join(f"**{form['overall']:.1%}**" for form in marks.values())
    rows.append(f"| **all** | | | {shares} |")
    (folder / "README.md").write_text(
        CARD.format(
            parameters=figures["parameters"],
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
            tasks=len(TASKS),
            examples=figures["held_out_examples"],
            rows="\n".join(rows),
            completion=repr(completion_prompt("Count from 3 to 7."))[1:-1],
            command=figures["command"],
            minutes=figures["training_seconds"] / 60,
            torch=figures["torch"].split("+")[0],
            date=figures["date"],
            steps=figures["steps"],
            tokens=figures["tokens"],
            seed=figures["seed"],
            first_loss=figures["loss"][0][1],
            last_loss=figures["loss"][-1][1],
            loss_steps=figures["loss"][0][0],
        ),
        encoding="utf-8",
    )
