"""The constants of the predictors `constant` and `prompt-length`, from public traces.

    python -m benchmarks.length_baselines --data FOLDER

FOLDER (or UELLM_BENCH_DATA) holds `traces/traces.parquet` with the columns trace, in_tokens and
out_tokens; the trace `azure2023_conv` (Azure LLM inference 2023, CC BY 4.0) is the one used.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from uellm_cli.bench.machine import describe_machine
from uellm_cli.profiler.lengths.prompt_length import fit
from uellm_cli.types import QUANTILE_LEVELS

TRACE = "azure2023_conv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("UELLM_BENCH_DATA"))
    folder: Path | None = parser.parse_args().data
    path = Path(folder) / "traces" / "traces.parquet" if folder else None
    if path is None or not path.is_file():
        print("length_baselines: skipped, no --data with traces/traces.parquet")
        return
    rows = [row for row in pq.read_table(path).to_pylist() if row["trace"] == TRACE]
    prompts = [row["in_tokens"] for row in rows]
    outputs = [row["out_tokens"] for row in rows]
    quantiles = np.quantile(outputs, QUANTILE_LEVELS).round().tolist()
    line = fit(prompts, outputs)
    residuals = [round(residual, 3) for residual in line.residuals]
    print(f"{len(rows):,} conversations of {TRACE}")
    print(f"constant       {quantiles}")
    print(f"prompt-length  intercept {line.intercept:.3f}, slope {line.slope:.4f}, {residuals}")
    print(
        json.dumps(
            {
                "benchmark": "length_baselines",
                "quantiles": quantiles,
                "intercept": line.intercept,
                "slope": line.slope,
                "residuals": residuals,
                "machine": describe_machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
