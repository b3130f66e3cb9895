"""`uellm profile`: how long the prompts are and the answers will be, and what that takes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from uellm_cli.cli import options
from uellm_cli.cli.output import BUNDLED_MODEL_NOTE, Output
from uellm_cli.config import Choice, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uellm_cli.profiling import Profiling
    from uellm_cli.report.histogram import LengthBin


def profile(
    requests: options.RequestFiles,
    slo_file: options.SloFile = None,
    model: options.Model = None,
    predictor: options.Predictor = options.PREDICTOR,
    predictor_option: options.PredictorOptions = None,
    topology: options.TopologyFile = None,
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
    """Prompt tokens, predicted output lengths, memory and seconds of every request. Loads no model.

    Example: uellm profile sample_data/requests.jsonl -o profile.parquet
    """
    from uellm_cli import profiling
    from uellm_cli.clock import SystemClock
    from uellm_cli.profiler.resources import predicted_quantiles
    from uellm_cli.profiler.table import write_profile
    from uellm_cli.report.histogram import length_bins

    options.refuse_overwriting(output, requests)
    settings = Settings(
        predictor=options.choice(predictor, predictor_option),
        scheduler=Choice(options.SCHEDULER),
        placement=Choice(options.ALGORITHM),
        engine=Choice(options.ENGINE),
        requests=tuple(requests),
        slo_file=slo_file,
        model=model,
        topology=topology,
        max_tokens=max_tokens,
        limit=limit,
        strict=strict,
        truncate_prompt=truncate_prompt,
        trust_remote_code=trust_remote_code,
    )
    found = profiling.profile(settings, SystemClock().wall())
    bins = length_bins(predicted_quantiles(found.profiled.requests))
    show = Output(json, quiet)
    if model is None:
        show.say(BUNDLED_MODEL_NOTE)
    if output is not None:
        write_profile(output, found.profiled.profile, found.resources)
    show.say(*found.profiled.notes)
    if not quiet:
        _say(show, found, bins)
    if output is not None:
        show.say(f"Wrote {output}.")
    show.line(f"Next: {_next(settings)}")
    if json:
        show.document(_document(found, bins))


def _say(show: Output, found: Profiling, bins: Sequence[LengthBin]) -> None:
    from uellm_cli.cli import profile_view as view
    from uellm_cli.report.histogram import LengthBars

    profiled, resources = found.profiled, found.resources
    show.say(*view.headline(profiled), "")
    show.say("Answers by predicted length, in tokens", LengthBars(bins), "")
    show.say(view.facts(profiled, resources, found.trust), "")
    show.say(view.memory_table(resources.memory, resources.origin), "")
    show.say(view.heaviest_table(profiled.requests), "")


def _next(settings: Settings) -> str:
    """The command that plans the same requests for the same model and machine."""
    words = ["uellm", "plan", *settings.requests]
    for flag, value in (
        ("--slo-file", settings.slo_file),
        ("--model", settings.model),
        ("--topology", settings.topology),
        ("--max-tokens", settings.max_tokens),
        ("--limit", settings.limit),
    ):
        words += [] if value is None else [flag, str(value)]
    if settings.predictor.name != options.PREDICTOR:
        words += ["--predictor", settings.predictor.name]
    for key, value in settings.predictor.options.items():
        words += ["--predictor-option", f"{key}={value}"]
    return shlex.join(words)


def _document(found: Profiling, bins: Sequence[LengthBin]) -> dict[str, object]:
    """All that is shown, and every request."""
    from msgspec.structs import asdict

    from uellm_cli.cli.profile_view import heaviest

    profiled, resources = found.profiled, found.resources
    time = resources.time
    seconds = time.requests if time else [None] * len(profiled.requests)
    return {
        "model": profiled.model.name,
        "prompt_tokens_source": profiled.profile.token_source,
        "tokens": resources.tokens,
        "lengths": bins,
        "kv_bytes": sum(request.kv_bytes for request in profiled.requests),
        "kv_bytes_source": resources.kv_source,
        "machine": resources.origin,
        "memory": resources.memory,
        "time": time
        and {
            "rows": time.rows,
            "one_by_one_s": time.one_by_one_s,
            "together_s": time.together_s,
            "source": time.source,
        },
        "time_problem": resources.problem,
        "trust": found.trust,
        "heaviest": [request.custom_id for request in heaviest(profiled.requests)],
        "requests": [
            {
                **asdict(request),
                "prefill_s": each and each.prefill_s,
                "decode_s_p50": each and each.decode_s,
            }
            for request, each in zip(profiled.requests, seconds, strict=True)
        ],
        "invalid": profiled.invalid,
    }
