"""The story of `uellm predictor`: answers are read, predictors learn from them, and are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from uellm_cli.config import Choice
from uellm_cli.errors import PredictorError
from uellm_cli.executor.past_answers import PastRun, examples_of
from uellm_cli.executor.run_info import installed_versions
from uellm_cli.models.files import bundled_model
from uellm_cli.models.tokens import load_tokenizer
from uellm_cli.profiler.learning import TRAINERS
from uellm_cli.profiler.learning.answered import TOKENS_FIELDS, Fields
from uellm_cli.profiler.learning.evaluate import Contestant, evaluate, transfer
from uellm_cli.profiler.learning.examples import Read, read_examples
from uellm_cli.profiler.learning.saved import Description, refuse_taken, write_predictor
from uellm_cli.profiler.learning.tally import Evaluation
from uellm_cli.profiler.lengths.oracle import metadata_value
from uellm_cli.types import Example

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Data:
    """What to learn from: files of requests with answers, and directories of runs.

    `model` is whose answers the files hold, and whose tokenizer counts them; None for nobody's that
    is known, and the bundled one's.
    """

    paths: tuple[str, ...]
    model: str | None = None
    fields: Fields = field(default_factory=Fields)
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What was read; `notes` say to the user how it went. `model` is whose answers, if one's."""

    examples: list[Example]
    notes: tuple[str, ...]
    model: str | None

    @property
    def censored(self) -> int:
        return sum(example.censored for example in self.examples)


def read_answers(data: Data) -> Answers:
    """Raises PredictorError where there is no answer, RequestFileError for an unreadable file."""
    notes: list[str] = []
    models: set[str | None] = set()
    examples: list[Example] = []
    files = [path for path in data.paths if not Path(path).is_dir()]
    for path in data.paths:
        if Path(path).is_dir():
            run = PastRun.open(Path(path))
            models.add(run.info.model)
            examples += _of_run(run, data.fields, _left(data, examples), notes)
    if files:
        models.add(data.model)
        examples += _of_files(files, data, _left(data, examples), notes)
    if not examples:
        why = f": {notes[-1]}" if notes else ""
        raise PredictorError(f"{', '.join(data.paths)}: there is no answer to learn from{why}")
    (model,) = models if len(models) == 1 else (None,)
    return Answers(examples, tuple(notes), model)


def _left(data: Data, examples: Sequence[Example]) -> int | None:
    return None if data.limit is None else data.limit - len(examples)


def _of_run(run: PastRun, fields: Fields, limit: int | None, notes: list[str]) -> list[Example]:
    examples: list[Example] = []
    unanswered = 0
    for request, result in run.answers():
        if limit is not None and len(examples) >= limit:
            break
        task = None if fields.task is None else metadata_value(request, fields.task)
        found = [] if result is None else examples_of(request, result, str(task or ""))
        examples += found
        unanswered += not found
    examples = examples[:limit]  # the last request may have several answers
    rest = f"; {unanswered:,} requests have none to learn from" if unanswered else ""
    notes.append(f"{run.directory}: {len(examples):,} answers of {run.info.model}{rest}")
    return examples


def _of_files(
    files: Sequence[str], data: Data, limit: int | None, notes: list[str]
) -> list[Example]:
    tokenizer = load_tokenizer(data.model or str(bundled_model()))
    read = Read()
    examples = list(
        read_examples(
            files, tokenizer, data.fields, read, limit, counts_exactly=data.model is not None
        )
    )
    if read.answers_in:
        places = ", ".join(f"{count:,} in {name!r}" for name, count in read.answers_in.items())
        notes.append(f"answers: {places}")
    if data.model is None:
        # Lengths that the rows themselves give are taken as they are.
        counted = {*read.answers_in} - {*TOKENS_FIELDS, data.fields.tokens}
        what = "prompts and answers" if counted else "prompts"
        notes.append(
            f"tokens of {what} are counted as the bundled model does; --model names whose they are"
        )
    if read.first is not None:
        first = read.first
        notes.append(
            f"{read.passed_over:,} rows teach nothing and were passed over; the first is "
            f"{first.source}: {first.field}: {first.reason}"
        )
    return examples


# --- Learning ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """A predictor that was learnt: where it is and what, and what there is to say of its data."""

    folder: Path
    description: Description
    notes: tuple[str, ...]


def train(
    data: Data, kind: Choice, seed: int, folder: Path, started: datetime, note: Note
) -> Training:
    """Learns a predictor and writes it to `folder`; `note` is told how it goes on."""
    trainer = TRAINERS.build(kind.name, kind.options)
    refuse_taken(folder)
    answers = read_answers(data)
    trained = trainer.train(answers.examples, seed, note)
    description = Description(
        kind=kind.name,
        rows=len(answers.examples),
        censored=answers.censored,
        seed=seed,
        data=data.paths,
        trained=started,
        versions=installed_versions(),
        model=answers.model,
    )
    written = write_predictor(folder, trained, description)
    return Training(folder, written, answers.notes)


# --- Judging -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came out, and what there is to say of the data."""

    evaluation: Evaluation
    notes: tuple[str, ...]


def judge(
    data: Data,
    kinds: Sequence[Choice],
    saved: Sequence[str],
    seeds: Sequence[int],
    note: Note,
    told: Sequence[Choice] = (),
) -> Judgement:
    """Kinds of predictors that learn from a part of `data`, and saved ones, judged on the rest.

    Those of `told` take part too, knowing the task.
    """
    contestants = _contestants(kinds, saved)
    contestants += [Contestant.told(kind.name, kind.options) for kind in told]
    answers = read_answers(data)
    return Judgement(evaluate(answers.examples, contestants, seeds, note), answers.notes)


def judge_transfer(
    data: Data,
    other: Data,
    kinds: Sequence[Choice],
    saved: Sequence[str],
    pilots: Sequence[int],
    seeds: Sequence[int],
    note: Note,
) -> Judgement:
    """What learns from `data`, adapted to pilots of `other` and judged on the rest of that."""
    contestants = _contestants(kinds, saved)
    answers, others = read_answers(data), read_answers(other)
    found = transfer(answers.examples, others.examples, contestants, pilots, seeds, note)
    return Judgement(found, (*answers.notes, *others.notes))


def _contestants(kinds: Sequence[Choice], saved: Sequence[str]) -> list[Contestant]:
    return [
        *(Contestant.kind(kind.name, kind.options) for kind in kinds),
        *(Contestant.saved(name) for name in saved),
    ]
