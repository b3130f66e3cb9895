"""The order in which an entrant is handed its requests, and answers put back from it. Pure.

Whoever knows beforehand how long answers get may begin with the longest. The bench does, since it
forces the lengths; so anyone's engine can be given that order, and is compared within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from msgspec import structs

from uellm_cli.bench.serve import Job
from uellm_cli.bench.workers import Entrant, Round

T = TypeVar("T")


def order_for(entrant: Entrant, job: Job) -> list[int]:
    """The places in `job` of the requests in the order of handing over."""
    if entrant.is_longest_first:
        return longest_first(job.output_tokens)
    return list(range(len(job.output_tokens)))


def longest_first(output_tokens: Sequence[int]) -> list[int]:
    """Positions by falling output length; the order that wastes least at the end."""
    return sorted(range(len(output_tokens)), key=lambda i: -output_tokens[i])


def arranged(job: Job, order: Sequence[int]) -> Job:
    """The job with its requests in that order."""
    return replace(
        job,
        prompts=[job.prompts[i] for i in order],
        output_tokens=[job.output_tokens[i] for i in order],
    )


def put_back(told: Round, order: Sequence[int]) -> Round:
    """A round over an arranged job as if it had not been: one answer for each of `order`."""
    return structs.replace(
        told,
        output_tokens=_put_back(told.output_tokens, order),
        ttft_s=told.ttft_s and _put_back(told.ttft_s, order),
        tokens=told.tokens and _put_back(told.tokens, order),
        texts=told.texts and _put_back(told.texts, order),
    )


def _put_back(values: Sequence[T], order: Sequence[int]) -> list[T]:
    return [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]
