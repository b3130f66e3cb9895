"""The least weight that is late, exactly, for a dozen requests: what heuristics are checked with.

Mixed-integer programmes solved by HiGHS. A step takes the same time whatever is in it, and lengths
are known, so that times are counted in steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from uellm_cli.columns import Floats, Ints


def least_late_in_flight(tokens: Ints, due_steps: Floats, weight: Floats, seats: int) -> float:
    """The least weight that ends after its due step, with `seats` requests at a time.

    One binary a request and seat: whether it is in time there. A seat's requests that are in time
    can be done in order of their due steps, so for each due step those due by then have to fit.
    """
    requests = len(tokens)
    if not requests:
        return 0.0
    earlier = (due_steps[None, :] <= due_steps[:, None]).astype(float) * tokens
    fits = np.kron(np.eye(seats), earlier)
    once = np.kron(np.ones((1, seats)), np.eye(requests))
    solved = _solved(
        -np.tile(weight, seats),
        [
            LinearConstraint(fits, ub=np.tile(due_steps, seats)),
            LinearConstraint(once, ub=np.ones(requests)),
        ],
        integers=requests * seats,
        most=np.ones(requests * seats),
    )
    return float(weight.sum() + solved)


def least_late_static(tokens: Ints, due_steps: Floats, weight: Floats, rows: int) -> float:
    """The least weight that ends after its due step, in static batches of at most `rows`.

    Binaries: whether request i is in batch k, whether i is late. A batch takes as many steps as its
    longest member, and ends when it and all before it are done.
    """
    requests = len(tokens)
    if not requests:
        return 0.0
    batches, pairs = requests, requests * requests
    # Variables: x[i, k] in batch, then late[i], then steps[k].
    size = pairs + requests + batches
    never = float(tokens.sum())
    in_one = np.zeros((requests, size))
    in_one[:, :pairs] = np.kron(np.eye(requests), np.ones((1, batches)))
    room = np.zeros((batches, size))
    room[:, :pairs] = np.kron(np.ones((1, requests)), np.eye(batches))
    longest = np.zeros((pairs, size))
    ends = np.zeros((pairs, size))
    for i in range(requests):
        for k in range(batches):
            pair = i * batches + k
            longest[pair, pair] = tokens[i]
            longest[pair, pairs + requests + k] = -1.0
            ends[pair, pairs + requests : pairs + requests + k + 1] = 1.0
            ends[pair, pair] = never
            ends[pair, pairs + i] = -never
    solved = _solved(
        np.concatenate([np.zeros(pairs), weight, np.zeros(batches)]),
        [
            LinearConstraint(in_one, lb=np.ones(requests), ub=np.ones(requests)),
            LinearConstraint(room, ub=np.full(batches, float(rows))),
            LinearConstraint(longest, ub=np.zeros(pairs)),
            LinearConstraint(ends, ub=np.repeat(due_steps, batches) + never),
        ],
        integers=pairs + requests,
        most=np.concatenate([np.ones(pairs + requests), np.full(batches, never)]),
    )
    return float(solved)


def _solved(
    cost: Floats, constraints: list[LinearConstraint], integers: int, most: NDArray[np.float64]
) -> float:
    """The least cost with every variable from 0 to `most`, the first `integers` of them whole."""
    integrality = np.zeros(len(cost))
    integrality[:integers] = 1
    found = milp(cost, constraints=constraints, integrality=integrality, bounds=Bounds(0.0, most))
    if not found.success:
        raise ValueError(f"no exact solution: {found.message}")
    return float(found.fun)
