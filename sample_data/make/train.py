"""Train the tiny model from scratch, measure it, and write its folder.

``python -m sample_data.make.train --out sample_data/tiny-llm`` takes about half an hour on two
cores.  The text it learns from is drawn by a seed; how far it gets depends on the machine,
because the schedule follows the wall clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from sample_data.make import tokenizer as tokenizers_of_model
from sample_data.make.batches import IGNORED, Batch, batches
from sample_data.make.card import write_card
from sample_data.make.evaluate import FORMATS, exact_match
from sample_data.make.model import new_model
from sample_data.make.tasks import held_out

BATCH_TOKENS = 2048
MUON_RATE = 0.01
ADAM_RATE = 0.002
WARMUP_STEPS = 100
#: The learning rate falls to nothing over this last share of the run.
DECAY_SHARE = 0.7
#: Steps per recorded loss.
LOSS_EVERY = 100
SAVE_SECONDS = 240.0
EVALUATION_SEED = 1


@dataclass(frozen=True)
class Run:
    """What a training run did."""

    steps: int
    tokens: int
    seconds: float
    #: (last step, mean loss) of each stretch of LOSS_EVERY steps.
    losses: list[tuple[int, float]]


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the embeddings, AdamW for everything else."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate_factor(step: int, progress: float) -> float:
    """Return what share of the full learning rate a step uses, progress being from 0 to 1."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, 1 - progress) / DECAY_SHARE)


def _loss(model: LlamaForCausalLM, body: Callable[..., object], batch: Batch) -> torch.Tensor:
    learnt = batch.targets != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = body(input_ids=batch.tokens, use_cache=False)[0]  # type: ignore[index]
        # Only learnt positions go through the head, which is a large share of so small a model.
        logits = model.lm_head(hidden[learnt])
    return functional.cross_entropy(logits.float(), batch.targets[learnt])


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    seconds: float,
    save: Callable[[], None],
) -> Run:
    """Train the model in place for the given time, saving it now and then."""
    optimizers = _optimizers(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    full_rates = [group["lr"] for group in groups]
    body = torch.compile(model.model, dynamic=True)
    start = saved = time.monotonic()
    steps = tokens = 0
    recent: list[float] = []
    losses: list[tuple[int, float]] = []
    for batch in batches(tokenizer.backend_tokenizer, seed, BATCH_TOKENS):
        now = time.monotonic()
        progress = (now - start) / seconds
        if progress >= 1:
            break
        if now - saved > SAVE_SECONDS:
            save()
            saved = now
        for group, full in zip(groups, full_rates, strict=True):
            group["lr"] = full * rate_factor(steps, progress)
        loss = _loss(model, body, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        steps += 1
        tokens += batch.tokens.numel()
        recent.append(loss.item())
        if len(recent) == LOSS_EVERY:
            losses.append((steps, round(sum(recent) / LOSS_EVERY, 5)))
            recent.clear()
            print(f"step {steps}, {progress:.1%}, loss {losses[-1][1]:.4f}", file=sys.stderr)
    return Run(steps, tokens, time.monotonic() - start, losses)


def main() -> None:
    """Build the tokenizer, train, measure, and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=800, help="held-out prompts to measure on")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = tokenizers_of_model.save(args.out)
    model = new_model(tokenizer)
    run = train(
        model, tokenizer, args.seed, 60 * args.minutes, lambda: model.save_pretrained(args.out)
    )
    model.eval().save_pretrained(args.out)

    examples = held_out(args.examples, EVALUATION_SEED)
    figures = {
        "command": f"python -m sample_data.make.train --minutes {args.minutes:g}"
        f" --seed {args.seed} --threads {args.threads}",
        "date": datetime.now(UTC).date().isoformat(),
        "seed": args.seed,
        "parameters": model.num_parameters(),
        "steps": run.steps,
        "tokens": run.tokens,
        "training_seconds": round(run.seconds, 1),
        "threads": args.threads,
        "held_out_examples": len(examples),
        "held_out_seed": EVALUATION_SEED,
        "exact_match": {form: exact_match(model, tokenizer, examples, form) for form in FORMATS},
        "loss": run.losses,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (args.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(args.out, model.config, figures)


if __name__ == "__main__":
    main()
