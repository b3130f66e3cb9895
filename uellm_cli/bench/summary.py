"""From rounds to the table's rows. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from uellm_cli.bench.agreement import Decode, Reference, agreement
from uellm_cli.bench.workers import Entrant, Round
from uellm_cli.engines import DEFAULT_ENGINE

# Whose speed the others' are told in multiples of.
OURS = DEFAULT_ENGINE


@dataclass(slots=True)
class Showing:
    """What an entrant has come to; with a `failure`, it is out from there on.

    `idle_cpu_s` are processor seconds that it took while it had nothing to do, in `idle_s` seconds.
    """

    entrant: Entrant
    versions: dict[str, str] = field(default_factory=dict)
    load_s: float | None = None
    rounds: list[Round] = field(default_factory=list)
    idle_cpu_s: float = 0.0
    idle_s: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One engine in the table; figures are None where it has none.

    `tokens_per_s` is of output tokens, prompts not counted, at the median of `round_s`. `relative`
    is the median over rounds of its speed over that of uellm's own engine, `OURS`, in the same
    order of requests; None where that does not take part. `agreement` is the share of output tokens
    that are the reference's (`agreement.py`). `idle_cpus` is how many processors it kept busy while
    others were measured.
    """

    engine: str
    versions: Mapping[str, str]
    load_s: float | None
    output_tokens: int | None
    round_s: tuple[float, ...]
    median_s: float | None
    least_s: float | None
    most_s: float | None
    tokens_per_s: float | None
    times_floor: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    relative: float | None
    agreement: float | None
    idle_cpus: float | None
    failure: str | None


def fault(told: Round, output_tokens: Sequence[int], forced: bool) -> str | None:
    """What is wrong with a round that was to answer `output_tokens`; None when it counts."""
    lists = (told.output_tokens, told.ttft_s, told.tokens, told.texts)
    if any(len(values) != len(output_tokens) for values in lists if values is not None):
        return f"answered {len(told.output_tokens)} of {len(output_tokens)} requests"
    for i, (made, asked) in enumerate(zip(told.output_tokens, output_tokens, strict=True)):
        if made > asked or (forced and made != asked):
            return f"made {made} tokens for request {i}, where {asked} were asked for"
    if not told.seconds > 0:
        return f"took {told.seconds} s"
    return None


def summarise(
    showings: Sequence[Showing], floor_s: float | None, reference: Reference, decode: Decode
) -> list[Row]:
    """Rows in the order of `showings`; `decode` makes a text of token ids."""
    return [
        _row(
            showing,
            floor_s,
            _ours_beside(showing, showings),
            agreement(showing.rounds, reference, decode),
        )
        for showing in showings
    ]


def _row(
    showing: Showing, floor_s: float | None, ours: Showing | None, agreement: float | None
) -> Row:
    rounds = showing.rounds
    seconds = tuple(each.seconds for each in rounds)
    median_s = statistics.median(seconds) if rounds else None
    ttft_s = sorted(s for each in rounds for s in each.ttft_s or ())
    speeds = [_tokens_per_s(each) for each in rounds]
    return Row(
        engine=showing.entrant.name,
        versions=showing.versions,
        load_s=showing.load_s,
        output_tokens=sum(rounds[-1].output_tokens) if rounds else None,
        round_s=seconds,
        median_s=median_s,
        least_s=min(seconds, default=None),
        most_s=max(seconds, default=None),
        tokens_per_s=statistics.median(speeds) if rounds else None,
        times_floor=median_s / floor_s if median_s is not None and floor_s else None,
        ttft_p50_s=_quantile(ttft_s, 0.5),
        ttft_p99_s=_quantile(ttft_s, 0.99),
        relative=_relative(rounds, ours.rounds) if ours is not None else None,
        agreement=agreement,
        idle_cpus=showing.idle_cpu_s / showing.idle_s if showing.idle_s else None,
        failure=showing.failure,
    )


def _tokens_per_s(told: Round) -> float:
    return sum(told.output_tokens) / told.seconds


def _ours_beside(showing: Showing, showings: Sequence[Showing]) -> Showing | None:
    """uellm's engine in the order of requests that `showing` had, if it went all the way."""
    same_order = showing.entrant.is_longest_first
    return next(
        (
            other
            for other in showings
            if other.entrant.engine == OURS
            and not other.entrant.is_peer
            and other.entrant.is_longest_first == same_order
            and other.failure is None
        ),
        None,
    )


def _relative(rounds: Sequence[Round], ours: Sequence[Round]) -> float | None:
    """Round by round, so that a busy moment of the machine counts against neither."""
    pairs = zip(rounds, ours, strict=False)
    ratios = [_tokens_per_s(one) / _tokens_per_s(other) for one, other in pairs]
    return statistics.median(ratios) if ratios else None


def _quantile(values: Sequence[float], level: float) -> float | None:
    """The smallest of sorted `values` that so large a share of them does not exceed."""
    return values[max(0, math.ceil(level * len(values)) - 1)] if values else None
