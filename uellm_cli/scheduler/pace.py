"""Promises on the pace of tokens: fewer rows and shorter steps, so that all come in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from uellm_cli.columns import RequestColumns
from uellm_cli.timing.fluid import fluid
from uellm_cli.types import Budget, Conditions

# Distinct paces that are tried, from the tightest on; and how much of one a step may take on
# average, since steps in which others begin take longer.
TRIED = 3
SHARE = 0.9
FEWEST_STEP_TOKENS = 16


def paced_budgets(columns: RequestColumns, conditions: Conditions) -> list[Budget]:
    """Budgets under which tokens come at a promised pace, as far as the machine can do that."""
    promised = np.unique(columns.tpot_s[np.isfinite(columns.tpot_s)])
    if not len(promised):
        return []
    places = np.unique(np.linspace(0, len(promised) - 1, TRIED).astype(int))
    budgets = [_paced(columns, conditions, pace_s) for pace_s in promised[places].tolist()]
    return [budget for budget in dict.fromkeys(budgets) if budget != conditions.budget]


def _paced(columns: RequestColumns, conditions: Conditions, pace_s: float) -> Budget:
    """The most rows whose steps take no longer than the pace on average; one where none is so fast.

    What a step has left goes to prompts that are computed beside.
    """
    rows = conditions.budget.max_sequences
    while rows > 1 and _step_s(columns, conditions, rows) > SHARE * pace_s:
        rows = max(1, rows * 3 // 4)
    step = conditions.step
    left_s = pace_s - step.fixed_s - step.per_sequence_s * rows
    tokens = conditions.most_step_tokens
    if step.per_prefill_token_s > 0:
        affordable = max(FEWEST_STEP_TOKENS, int(left_s / step.per_prefill_token_s))
        tokens = min(tokens, rows + affordable)
    return replace(conditions.budget, max_sequences=rows, prefill_tokens=tokens)


def _step_s(columns: RequestColumns, conditions: Conditions, rows: int) -> float:
    """Seconds of a step on average, with so many rows."""
    budget = replace(conditions.budget, max_sequences=rows)
    return fluid(columns, columns.mean, replace(conditions, budget=budget)).step_s
