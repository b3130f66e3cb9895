"""How good predictors are on answers that they have not seen, beside the simplest ones there are.

All are judged on the same rows. `evaluate` splits one set by each seed; `transfer` learns from one
set, adapts to a few rows of another, and is judged on others of that. Errors are over those of a
constant, and of answers that were not cut: how long the others would have been nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from uellm_cli.errors import PredictorError
from uellm_cli.profiler.learning import TRAINERS
from uellm_cli.profiler.learning.adapt import adapt
from uellm_cli.profiler.learning.conformal import quantiles_of
from uellm_cli.profiler.learning.metrics import other_medians
from uellm_cli.profiler.learning.saved import build_predictor
from uellm_cli.profiler.learning.tally import Evaluation, Figures, Tally, Truth
from uellm_cli.profiler.lengths.adapted import Base
from uellm_cli.profiler.lengths.bounds import Quantiles, repeated
from uellm_cli.profiler.lengths.constant import Constant
from uellm_cli.profiler.lengths.prompt_length import fit
from uellm_cli.types import Example, LengthPredictor

TEST_SHARE = 0.2
LEAST_EXAMPLES = 50
# Fewer rows with other answers to the same prompt make no ceiling.
LEAST_REPEATED = 20

CONSTANT = "constant"
PROMPT_LENGTH = "prompt-length"
PER_TASK = "constant of the task"
CEILING = "noise ceiling"
# Behind the name of a predictor that learns nothing here.
AS_IT_IS = ", as it is"
# And of one that is told as metadata what the constant of the task knows.
TOLD = ", told the task"

Note = Callable[[str], None]
# What is predicted [rows, levels] of the second examples by what learns from the first, by a seed.
Predict = Callable[[Sequence[Example], Sequence[Example], int], Quantiles]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A predictor that is made of examples, with a seed; or one that is made already."""

    name: str
    learn: Callable[[Sequence[Example], int], LengthPredictor]
    is_told: bool = False

    @classmethod
    def kind(cls, name: str, options: Mapping[str, str]) -> Contestant:
        """One of the kinds that can be trained; UsageError where there is none such."""
        trainer = TRAINERS.build(name, options)
        return cls(name, lambda examples, seed: trainer.train(examples, seed, _silent))

    @classmethod
    def told(cls, name: str, options: Mapping[str, str]) -> Contestant:
        """As `kind`, with each example's task in its request's metadata."""
        trainer = TRAINERS.build(name, options)
        return cls(
            f"{name}{TOLD}",
            lambda examples, seed: trainer.train([told(e) for e in examples], seed, _silent),
            is_told=True,
        )

    @classmethod
    def saved(cls, name: str) -> Contestant:
        """A predictor as it is, by its folder or name."""
        predictor = build_predictor(name, {})
        return cls(f"{name}{AS_IT_IS}", lambda _examples, _seed: predictor)

    def predict(self, train: Sequence[Example], test: Sequence[Example], seed: int) -> Quantiles:
        return said(self.learn(train, seed), [told(e) for e in test] if self.is_told else test)


def evaluate(
    examples: Sequence[Example],
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    note: Note,
) -> Evaluation:
    """Baselines and contestants, on tests of TEST_SHARE of the prompts that each seed draws.

    All answers to one prompt are on the same side. Raises PredictorError for too few examples.
    """
    _refuse_few(examples)
    prompts = prompt_numbers(examples)
    if not prompts.any():
        raise PredictorError(
            "a judgement needs answers to at least 2 prompts; all of these are to the same one"
        )
    competitors = _baselines(examples)
    competitors += [(contestant.name, contestant.predict) for contestant in contestants]
    tally = Tally()
    for seed in seeds:
        is_test = _drawn(prompts, seed)
        train = list(compress(examples, ~is_test))
        test = list(compress(examples, is_test))
        truth = Truth.of(test, repeated(_constant(train), len(test)))
        tally.tests.append(truth)
        for name, predict in competitors:
            note(f"seed {seed}: {name}")
            tally.add(name, _tried(predict, train, test, seed, truth))
        medians = other_medians(truth.tokens, prompts[is_test])
        if truth.judged_by(medians).sum() >= LEAST_REPEATED:
            tally.add(CEILING, truth.figures_of_medians(medians))
    return tally.evaluation(examples, seeds)


def transfer(
    examples: Sequence[Example],
    others: Sequence[Example],
    contestants: Sequence[Contestant],
    pilots: Sequence[int],
    seeds: Sequence[int],
    note: Note,
) -> Evaluation:
    """What was learnt from `examples`, adapted to pilots of `others` that each seed draws.

    Contestants learn once, with the first seed. All pilots of a seed are judged on the same rows of
    `others`, which are in none of them. The reference is the constant that fits these rows best,
    which nobody knows beforehand; the line `constant` is the pilot's own, and without a pilot that
    of `examples`. Raises PredictorError for too few of either.
    """
    _refuse_few(examples)
    least = max(pilots) + LEAST_EXAMPLES
    if len(others) < least:
        raise PredictorError(
            f"after a pilot of {max(pilots)} rows at least {LEAST_EXAMPLES} answers are needed to "
            f"judge by; there are {len(others)} in all"
        )
    bases: list[tuple[str, LengthPredictor | PredictorError]] = []
    for contestant in contestants:
        note(f"{contestant.name}: learning from {len(examples):,} answers")
        bases.append((contestant.name, _learnt(contestant, examples, seeds[0])))
    tally = Tally()
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(others))
        test = [others[i] for i in order[max(pilots) :]]
        truth = Truth.of(test, repeated(_constant(test), len(test)))
        tally.tests.append(truth)
        for size in pilots:
            note(f"seed {seed}: pilot of {size}")
            pilot = [others[i] for i in order[:size]]
            own = repeated(_constant(pilot or examples), len(test))
            tally.add(CONSTANT, truth.figures(own), size)
            for name, base in bases:
                if isinstance(base, PredictorError):
                    tally.add(name, base, size)
                else:
                    used = adapt(Base(name), base, pilot, seed) if pilot else base
                    tally.add(name, truth.figures(said(used, test)), size)
    return tally.evaluation(others, seeds)


def said(predictor: LengthPredictor, examples: Sequence[Example]) -> Quantiles:
    """What a predictor says of examples' requests."""
    requests = [example.request for example in examples]
    return predictor.quantiles(requests, [example.prompt_tokens for example in examples])


def told(example: Example) -> Example:
    """The example with its task in its request's metadata."""
    request = replace(example.request, metadata={**example.request.metadata, "task": example.task})
    return replace(example, request=request)


def prompt_numbers(examples: Sequence[Example]) -> NDArray[np.int64]:
    """The same number for the same prompt."""
    numbers: dict[object, int] = {}
    return np.array(
        [
            numbers.setdefault((example.request.messages, example.request.prompt), len(numbers))
            for example in examples
        ]
    )


def _drawn(prompts: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    count = int(prompts.max()) + 1
    chosen = np.random.default_rng(seed).permutation(count)[: max(1, round(TEST_SHARE * count))]
    return np.isin(prompts, chosen)


def _refuse_few(examples: Sequence[Example]) -> None:
    whole = sum(not example.censored for example in examples)
    if whole < LEAST_EXAMPLES:
        raise PredictorError(
            f"a judgement needs at least {LEAST_EXAMPLES} answers that were not cut; there are "
            f"{whole}"
        )


def _tried(
    predict: Predict, train: Sequence[Example], test: Sequence[Example], seed: int, truth: Truth
) -> Figures | PredictorError:
    try:
        return truth.figures(predict(train, test, seed))
    except PredictorError as error:
        return error


def _learnt(
    contestant: Contestant, examples: Sequence[Example], seed: int
) -> LengthPredictor | PredictorError:
    try:
        return contestant.learn(examples, seed)
    except PredictorError as error:
        return error


def _silent(_: str) -> None:
    pass


# --- Baselines -----------------------------------------------------------------------------------


def _baselines(examples: Sequence[Example]) -> list[tuple[str, Predict]]:
    baselines: list[tuple[str, Predict]] = [
        (CONSTANT, _constant_for_all),
        (PROMPT_LENGTH, _by_prompt_length),
    ]
    if len({example.task for example in examples}) > 1:
        baselines.append((PER_TASK, _by_task))
    return baselines


def _constant(examples: Sequence[Example]) -> tuple[float, ...]:
    tokens = [float(max(example.output_tokens, 1)) for example in examples]
    return quantiles_of(tokens, np.array([example.censored for example in examples]))


def _constant_for_all(train: Sequence[Example], test: Sequence[Example], _seed: int) -> Quantiles:
    return said(Constant(_constant(train)), test)


def _by_prompt_length(train: Sequence[Example], test: Sequence[Example], _seed: int) -> Quantiles:
    prompts = [example.prompt_tokens for example in train]
    try:
        line = fit(prompts, [example.output_tokens for example in train])
    except ValueError as error:
        raise PredictorError(str(error)) from None
    return said(line, test)


def _by_task(train: Sequence[Example], test: Sequence[Example], _seed: int) -> Quantiles:
    """A constant for each task; of one that is new, that of all."""
    members: dict[str, list[Example]] = {}
    for example in train:
        members.setdefault(example.task, []).append(example)
    constants = {task: _constant(rows) for task, rows in members.items()}
    overall = _constant(train)
    return np.array([constants.get(example.task, overall) for example in test])
