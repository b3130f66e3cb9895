"""Exact match of a model folder on prompts its training never saw.

``python -m sample_data.make.evaluate sample_data/tiny-llm`` prints the share by task as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from sample_data.make.tasks import Example, completion_prompt, held_out

Format = Literal["chat", "system", "completion"]
FORMATS: tuple[Format, ...] = ("chat", "system", "completion")
MAX_NEW_TOKENS = 448


def render(tokenizer: PreTrainedTokenizerFast, example: Example, form: Format) -> str:
    """Return the text an example's answer continues."""
    if form == "completion":
        return completion_prompt(example.prompt)
    messages = [{"role": "user", "content": example.prompt}]
    if form == "system":
        messages.insert(0, {"role": "system", "content": "You are a helpful assistant."})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    form: Format = "chat",
    batch_size: int = 64,
) -> list[str]:
    """Return the model's greedy answers, each up to its own end of text."""
    # Answers of like length share a batch: a batch takes as long as its longest answer.
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].answer))
    found = [""] * len(examples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = tokenizer(
            [render(tokenizer, examples[index], form) for index in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            found[index] = text
    return found


def exact_match(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    form: Format = "chat",
) -> dict[str, float]:
    """Return the share of right answers by task, and over all as "overall"."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for example, answer in zip(examples, answers(model, tokenizer, examples, form), strict=True):
        right[example.task].append(answer == example.answer)
    shares = {task: sum(marks) / len(marks) for task, marks in sorted(right.items())}
    marks = [mark for task_marks in right.values() for mark in task_marks]
    return {"overall": sum(marks) / len(marks), **shares}


def main() -> None:
    """Measure a model folder and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--examples", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=FORMATS, default="chat")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    examples = held_out(args.examples, args.seed)
    print(json.dumps(exact_match(model, tokenizer, examples, args.format), indent=2))


if __name__ == "__main__":
    main()
