"""`uellm profile`: how long the prompts are and the answers will be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uellm_cli.cli import options
from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output, amount
from uellm_cli.config import Choice, Settings

if TYPE_CHECKING:
    from rich.table import Table

    from uellm_cli.pipeline import Profiled
    from uellm_cli.types import ProfiledRequest

HEAVIEST = 10


def profile(
    requests: options.RequestFiles,
    slo_file: options.SloFile = None,
    model: options.Model = None,
    predictor: options.Predictor = options.PREDICTOR,
    predictor_option: options.PredictorOptions = None,
    max_tokens: options.MaxTokens = None,
    limit: options.Limit = None,
    strict: options.Strict = False,
    output: options.OutputFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    truncate_prompt: options.TruncatePrompt = False,
    trust_remote_code: options.TrustRemoteCode = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """Prompt tokens, predicted output lengths and memory of every request. Loads no model.

    Example: uellm profile sample_data/requests.jsonl -o profile.parquet
    """
    from uellm_cli import pipeline
    from uellm_cli.clock import SystemClock
    from uellm_cli.profiler.table import write_profile

    options.refuse_overwriting(output, requests)
    settings = Settings(
        predictor=options.choice(predictor, predictor_option),
        scheduler=Choice(options.SCHEDULER),
        placement=Choice(options.ALGORITHM),
        engine=Choice(options.ENGINE),
        requests=tuple(requests),
        slo_file=slo_file,
        model=model,
        max_tokens=max_tokens,
        limit=limit,
        strict=strict,
        truncate_prompt=truncate_prompt,
        trust_remote_code=trust_remote_code,
    )
    profiled = pipeline.profile(settings, SystemClock().wall())
    show = Output(json, quiet)
    if model is None:
        show.say(BUNDLED_MODEL_NOTE)
    if output is not None:
        write_profile(output, profiled.profile)
    show.say(*profiled.notes)
    show.say(*_summary(profiled), _heaviest(profiled.requests))
    if output is not None:
        show.say(f"Wrote {output}. Next: uellm plan {' '.join(requests)}")
    show.document(_document(profiled))


def _summary(profiled: Profiled) -> list[str]:
    requests = profiled.requests
    prompts = sum(request.prompt_tokens for request in requests)
    low, middle, high = (
        sum(request.output.at(level) for request in requests) for level in (0.05, 0.5, 0.95)
    )
    lines = [
        f"{len(requests):,} requests for {profiled.model.name}, {len(profiled.invalid):,} invalid",
        f"prompt tokens: {prompts:,} ({profiled.profile.token_source}, longest "
        f"{max(request.prompt_tokens for request in requests):,})",
        f"output tokens, predicted: {middle:,.0f} if all are at their median; {low:,.0f} and "
        f"{high:,.0f} at p05 and p95",
        f"KV cache of all at p90: {amount(sum(request.kv_bytes for request in requests))}",
    ]
    lines += [
        f"invalid: {invalid.source}: {invalid.field}: {invalid.reason}"
        for invalid in profiled.invalid[:5]
    ]
    return lines


def _heaviest(requests: list[ProfiledRequest]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from uellm_cli.report.console import visible

    table = Table(title=f"The {min(HEAVIEST, len(requests))} heaviest", title_justify="left")
    table.add_column("request", overflow="fold")
    for name in ("prompt", "p50", "p90", "cap", "KV at p90"):
        table.add_column(name, justify="right")
    for request in sorted(requests, key=lambda r: (-r.kv_bytes, r.custom_id))[:HEAVIEST]:
        table.add_row(
            Text(visible(request.custom_id)),
            f"{request.prompt_tokens:,}",
            f"{request.output.p50:,.0f}",
            f"{request.output.p90:,.0f}",
            f"{request.max_tokens:,}",
            amount(request.kv_bytes),
        )
    return table


def _document(profiled: Profiled) -> dict[str, object]:
    return {
        "model": profiled.model.name,
        "prompt_tokens_source": profiled.profile.token_source,
        "requests": profiled.requests,
        "invalid": profiled.invalid,
    }
