"""`uellm predictor`: learning how long answers are, and how far such predictions can be trusted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uellm_cli.cli import options
from uellm_cli.cli.output import Output
from uellm_cli.profiler.learning import DEFAULT_TRAINER
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS

if TYPE_CHECKING:
    from rich.table import Table

    from uellm_cli.config import Choice
    from uellm_cli.profiler.learning.answered import Fields
    from uellm_cli.profiler.learning.saved import Description
    from uellm_cli.profiler.learning.tally import Evaluation, Line, Spread
    from uellm_cli.profiler.offered import Offered

predictor = typer.Typer(
    name="predictor", help="Train and judge predictors of output lengths.", no_args_is_help=True
)
NOTHING = "-"
KINDS = ("history", "ngram")
SEEDS, TRANSFER_SEEDS = 5, 8
PILOTS = (0, 24, 100, 300)
HOW_TO_TRAIN = (
    "Train one with uellm predictor train DATA --kind NAME -o DIR and use it with --predictor DIR; "
    "ngram comes with one that is trained already."
)

AnswerFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="Files of requests with their answers (as request files, the answer's text or tokens "
        "beside), or directories of runs.",
        show_default=False,
    ),
]
AnswerModel = Annotated[
    str | None,
    typer.Option(
        help="Whose answers the files hold, a Hub id or folder; its tokenizer counts them. Left "
        "out: not known, and counted as the small bundled model does.",
        show_default=False,
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="A kind that learns: ngram, history or encoder; may be given several times. Left "
        "out: history and ngram.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="The encoder's pretrained model, a Hub id or folder.", show_default=False),
]
KindOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="Set an option of the kind.", show_default=False
    ),
]
AnswerField = Annotated[
    str | None,
    typer.Option(help="Where an answer's text is; response or the like.", show_default=False),
]
TokensField = Annotated[
    str | None,
    typer.Option(help="Where an answer's tokens are; output_tokens or such.", show_default=False),
]
CensoredField = Annotated[
    str | None,
    typer.Option(help="What is true of an answer that was cut.", show_default=False),
]
TaskField = Annotated[
    str | None,
    typer.Option(help="What tells tasks apart, for their own constants.", show_default=False),
]
CensoredFrom = Annotated[
    int | None,
    typer.Option(
        min=1, help="Answers of so many tokens and more were cut there.", show_default=False
    ),
]


@predictor.command("train")
def train(
    data: AnswerFiles,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder of the predictor.", show_default=False
        ),
    ],
    kind: Annotated[str, typer.Option(help="ngram, history or encoder.")] = DEFAULT_TRAINER,
    option: KindOptions = None,
    base: Base = None,
    model: AnswerModel = None,
    answer_field: AnswerField = None,
    tokens_field: TokensField = None,
    censored_field: CensoredField = None,
    task_field: TaskField = None,
    censored_from: CensoredFrom = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Learn from answers how long others will be.

    Example: uellm predictor train runs/first --kind history -o predictors/mine
    """
    from uellm_cli import training
    from uellm_cli.clock import SystemClock

    show = Output(json, quiet)
    fields = _fields(answer_field, tokens_field, censored_field, task_field, censored_from)
    made = training.train(
        training.Data(tuple(data), model, fields, limit),
        options.choice(kind, option, base=base),
        seed,
        output,
        SystemClock().wall(),
        show.line,
    )
    about = made.description
    show.say(*made.notes, f"{kind} has learnt from {_amount(about)}.")
    # A folder that is called as a predictor is stands behind that.
    named = f".{os.sep}{output}" if str(output) in LENGTH_PREDICTORS.names() else output
    show.say(f"Wrote {output}. Next: uellm profile REQUESTS --predictor {named}")
    show.document({"folder": str(output), **_content(about), "notes": made.notes})


@predictor.command("evaluate")
def evaluate(
    data: AnswerFiles,
    kind: Kinds = None,
    option: KindOptions = None,
    base: Base = None,
    saved: Annotated[
        list[str] | None,
        typer.Option(
            "--predictor",
            help="Judge this one too as it is, a name or a trained one's folder; may be given "
            "several times.",
            show_default=False,
        ),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER", help="Learn from DATA, judge on these answers.", show_default=False
        ),
    ] = None,
    pilot: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="With --transfer: adapt to so many of the other answers first; may be given "
            "several times. Left out: 0, 24, 100 and 300.",
            show_default=False,
        ),
    ] = None,
    tell_task: Annotated[
        bool,
        typer.Option(
            "--tell-task",
            help="Judge each kind also with the task among its requests' metadata, as the constant "
            "of the task knows it.",
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many random splits; 5, with --transfer 8.", show_default=False
        ),
    ] = None,
    model: AnswerModel = None,
    answer_field: AnswerField = None,
    tokens_field: TokensField = None,
    censored_field: CensoredField = None,
    task_field: TaskField = None,
    censored_from: CensoredFrom = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Judge predictors on answers that they have not seen, beside constants.

    Example: uellm predictor evaluate answers.jsonl --kind ngram --task-field source
    """
    from uellm_cli import training

    show = Output(json, quiet)
    fields = _fields(answer_field, tokens_field, censored_field, task_field, censored_from)
    asked = training.Data(tuple(data), model, fields, limit)
    kinds = _kinds(kind, option, base)
    count = seeds or (SEEDS if transfer is None else TRANSFER_SEEDS)
    drawn = range(seed, seed + count)
    note = show.line if verbose else _silent
    if transfer is None:
        _refuse_pilot(pilot)
        judged = training.judge(asked, kinds, saved or (), drawn, note, kinds if tell_task else ())
    else:
        other = training.Data((transfer,), model, fields, limit)
        pilots = tuple(sorted(set(pilot or PILOTS)))
        judged = training.judge_transfer(asked, other, kinds, saved or (), pilots, drawn, note)
    show.say(*judged.notes, "", table_of(judged.evaluation))
    show.say(*remarks(judged.evaluation, is_transfer=transfer is not None))
    show.document({**asdict(judged.evaluation), "notes": judged.notes})


@predictor.command("list")
def list_(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR]...", help="Trained predictors to describe.", show_default=False
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Which predictors there are, and what trained ones have learnt from.

    Example: uellm predictor list
    """
    from uellm_cli.profiler.learning.saved import read_description
    from uellm_cli.profiler.offered import offered

    saved = [(folder, read_description(folder)) for folder in folders or ()]
    show = Output(json, quiet)
    kinds = offered()
    show.say(_kinds_table(kinds), HOW_TO_TRAIN)
    for folder, about in saved:
        show.say(*_described(folder, about))
    show.document(
        {
            "kinds": [asdict(each) for each in kinds],
            "saved": [{"folder": str(folder), **_content(about)} for folder, about in saved],
        }
    )


# --- What is asked -------------------------------------------------------------------------------


def _fields(
    answer: str | None,
    tokens: str | None,
    censored: str | None,
    task: str | None,
    censored_from: int | None,
) -> Fields:
    from uellm_cli.profiler.learning.answered import Fields

    return Fields(answer, tokens, censored, task, censored_from)


def _kinds(names: Sequence[str] | None, pairs: list[str] | None, base: str | None) -> list[Choice]:
    from uellm_cli.errors import UsageError

    chosen = tuple(dict.fromkeys(names or KINDS))
    if pairs and len(chosen) > 1:
        raise UsageError("--option is for one --kind; there are several")
    if base is not None and "encoder" not in chosen:
        raise UsageError("--base is for --kind encoder")
    return [
        options.choice(name, pairs, base=base if name == "encoder" else None) for name in chosen
    ]


def _refuse_pilot(pilot: list[int] | None) -> None:
    from uellm_cli.errors import UsageError

    if pilot:
        raise UsageError("--pilot needs --transfer OTHER: it is drawn from other answers")


def _silent(_: str) -> None:
    pass


# --- What is shown -------------------------------------------------------------------------------


def table_of(evaluation: Evaluation) -> Table:
    """A row for each predictor, and pilot if there are any; 80 columns wide at most."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from uellm_cli.report.console import visible

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("predictor")
    has_pilots = any(line.pilot is not None for line in evaluation.lines)
    headings = ("pilot",) if has_pilots else ()
    for heading in (*headings, "MAE", "tau", "pinball", "P90 covers", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in in_order(evaluation.lines):
        pilot = () if not has_pilots else (NOTHING if line.pilot is None else f"{line.pilot:,}",)
        name = Text(visible(line.name), no_wrap=True, overflow="ellipsis")
        table.add_row(name, *pilot, *_figures(line))
    return table


def in_order(lines: Iterable[Line]) -> list[Line]:
    """By pilot, and otherwise as they came."""
    return sorted(lines, key=lambda line: -1 if line.pilot is None else line.pilot)


def _figures(line: Line) -> list[str]:
    covers = NOTHING
    if line.coverage is not None:
        covers = f"{line.coverage.mean:.1%} ±{line.coverage.sd * 100:.1f}"
    rows = f"{line.rows:,.0f}" if line.failure is None else NOTHING
    return [_spread(line.mae), _spread(line.tau), _spread(line.pinball), covers, rows]


def _spread(value: Spread | None) -> str:
    return NOTHING if value is None else f"{value.mean:.2f} ±{value.sd:.2f}"


def remarks(evaluation: Evaluation, is_transfer: bool) -> list[str]:
    """What the columns are, what was left out, and why a predictor has no figures."""
    from uellm_cli.profiler.learning.evaluate import AS_IT_IS

    of = "the best constant for these rows" if is_transfer else "the constant"
    mae, pinball = evaluation.reference_mae.mean, evaluation.reference_pinball.mean
    cut = ""
    if evaluation.censored:
        cut = (
            f"; {evaluation.censored:,} were cut, {evaluation.test_censored:.1f} of a test: they "
            "are in no error, and P90's share allows for them (Kaplan-Meier)"
        )
    lines = [
        f"Means over {len(evaluation.seeds)} seeds ± their standard deviation, tests of "
        f"{evaluation.test_rows:,.0f} of {evaluation.rows:,} answers{cut}.",
        f"MAE of the median and pinball loss at 0.9 are over those of {of}, {mae:,.1f} and "
        f"{pinball:,.1f} tokens; tau is Kendall's tau-b, which ties flatter; P90 should cover 90%.",
    ]
    if is_transfer:
        lines.append(
            "Pilots are drawn from the other answers; none of these is among those judged on."
        )
    if any(line.name.endswith(AS_IT_IS) for line in evaluation.lines):
        lines.append(
            "What is judged as it is may have learnt from these very answers: then its figures "
            "promise nothing."
        )
    failed = {line.name: line.failure for line in evaluation.lines if line.failure is not None}
    return [*lines, *(f"{name} is out: {why}" for name, why in failed.items())]


def _kinds_table(kinds: Sequence[Offered]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for kind in kinds:
        table.add_row(kind.name, kind.what)
        if kind.options:
            table.add_row("", f"options: {', '.join(kind.options)}")
        if kind.training_options is not None:
            table.add_row("", f"trained; options: {', '.join(kind.training_options) or 'none'}")
    return table


def _described(folder: Path, about: Description) -> list[str]:
    whose = "answers of an unknown model" if about.model is None else f"answers of {about.model}"
    return [
        f"{folder}: {about.kind}, trained {about.trained:%Y-%m-%d} on {_amount(about)}",
        f"  {whose}, from {', '.join(about.data)}; seed {about.seed}",
    ]


def _amount(about: Description) -> str:
    return f"{about.rows:,} answers, {about.censored:,} of them cut"


def _content(about: Description) -> dict[str, Any]:
    import msgspec

    content: dict[str, Any] = msgspec.to_builtins(about)
    return content
