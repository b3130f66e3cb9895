"""A profile as a Parquet table: one row per request, one column per length quantile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uellm_cli.atomic import replace_file
from uellm_cli.profiler.profile import Profile
from uellm_cli.profiler.resources import Resources
from uellm_cli.types import QUANTILE_LEVELS, ProfiledRequest

# Stated, since a column of nulls alone has no type of its own; all others are fractions.
_COLUMN_TYPES: dict[str, type] = {
    "custom_id": str,
    "slo_class": str,
    "prompt_tokens": int,
    "prompt_tokens_source": str,
    "max_tokens": int,
    "output_source": str,
    "kv_bytes_p90": int,
    "kv_bytes_source": str,
    "seconds_source": str,
}


def write_profile(path: Path, profile: Profile, resources: Resources | None = None) -> None:
    """Writes `path`, whole or not at all; OutputError when it cannot be written.

    Seconds are of a request alone, at its median length; they are null where they are not known.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(profile.requests, profile.token_source)
    columns |= _resource_columns(len(profile.requests), resources)
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types[_COLUMN_TYPES.get(name, float)]) for name in columns])
    table = pa.table(columns, schema=schema)
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    replace_file(path, content.getvalue().to_pybytes())


def _columns(requests: Sequence[ProfiledRequest], token_source: str) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {
        "custom_id": [request.custom_id for request in requests],
        "slo_class": [request.slo.name for request in requests],
        "deadline_s": [request.finish_by_s for request in requests],
        "prompt_tokens": [request.prompt_tokens for request in requests],
        "prompt_tokens_source": [token_source for _ in requests],
        "max_tokens": [request.max_tokens for request in requests],
    }
    for i, level in enumerate(QUANTILE_LEVELS):
        columns[quantile_column(level)] = [request.output.tokens[i] for request in requests]
    columns["output_source"] = [request.output.source for request in requests]
    columns["kv_bytes_p90"] = [request.kv_bytes for request in requests]
    return columns


def _resource_columns(rows: int, resources: Resources | None) -> dict[str, list[object]]:
    time = resources.time if resources else None
    each = time.requests if time else [None] * rows
    return {
        "kv_bytes_source": [resources.kv_source if resources else None] * rows,
        "prefill_s": [seconds and seconds.prefill_s for seconds in each],
        "decode_s_p50": [seconds and seconds.decode_s for seconds in each],
        "seconds_source": [time.source if time else None] * rows,
    }


def quantile_column(level: float) -> str:
    return f"output_tokens_p{round(level * 100):02d}"
