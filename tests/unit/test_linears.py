"""Packed linear layers give what plain ones give, and stand in only where they pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import nn

from uellm_cli.engines.inflight import linears
from uellm_cli.engines.inflight.linears import PackedLinear, Packing, Timer, shortest_s

Calls = Callable[[], torch.Tensor]


def can_pack() -> bool:
    return Packing(times(1.0, 1.0)).linear(torch.ones(8, 8), None) is not None


def times(plain_s: float, packed_s: float) -> Timer:
    """A timer of which the second call always takes `packed_s`."""

    def timer(*calls: Calls) -> Sequence[float]:
        assert len(calls) == 2
        return [plain_s, packed_s]

    return timer


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


with_packing = pytest.mark.skipif(not can_pack(), reason="this torch packs no weights here")


@with_packing
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 257])
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 96), (129, 33), (1000, 17)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_gives_what_the_plain_one_gives(
    dtype: torch.dtype, has_bias: bool, shape: tuple[int, int], rows: int
) -> None:
    weight, given = drawn(*shape, dtype=dtype), drawn(rows, shape[1], dtype=dtype)
    bias = drawn(shape[0], dtype=dtype) if has_bias else None
    packed = Packing(times(1.0, 1.0)).linear(weight, bias)
    if packed is None:
        assert dtype == torch.bfloat16  # not every processor has it
        return
    with torch.inference_mode():
        found = packed(given)
        # [1, rows, in], as a model hands it over.
        assert torch.equal(packed(given[None])[0], found)
    exact = F.linear(given.double(), weight.double(), None if bias is None else bias.double())
    unit = 1e-6 if dtype == torch.float32 else 2**-8
    scale = (given.double().abs() @ weight.double().abs().T) + (0 if bias is None else bias.abs())
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= 2 * unit * scale + 1e-30).all()


@with_packing
def test_a_packed_layer_tells_its_type_and_shape_and_spoils_what_computes_with_its_weight() -> None:
    weight, bias = drawn(5, 3, dtype=torch.bfloat16), drawn(5, dtype=torch.bfloat16)
    packed = PackedLinear(nn.Parameter(weight), nn.Parameter(bias))
    assert packed.weight.dtype == torch.bfloat16
    assert packed.weight.device == weight.device
    assert packed.weight.shape == (5, 3)
    assert packed.weight.untyped_storage().nbytes() == 2  # one number
    assert packed.weight.isnan().all()
    assert packed.bias is not None
    assert torch.equal(packed.bias, bias)
    assert (packed.in_features, packed.out_features) == (3, 5)


@with_packing
@pytest.mark.parametrize(
    ("packed_s", "stays"), [(0.5, False), (1.0, False), (1.14, False), (1.16, True), (9.0, True)]
)
def test_the_plain_layer_stays_where_the_packed_one_is_clearly_slower(
    packed_s: float, stays: bool
) -> None:
    packed = Packing(times(1.0, packed_s)).linear(drawn(6, 4), None)
    assert (packed is None) is stays


@with_packing
def test_each_shape_is_timed_once() -> None:
    timed = 0

    def timer(*calls: Calls) -> Sequence[float]:
        nonlocal timed
        timed += 1
        return [1.0] * len(calls)

    packing = Packing(timer)
    once = len(linears.TIMED_ROWS)
    for weight in (drawn(6, 4), drawn(6, 4), drawn(6, 4) + 1):
        assert packing.linear(weight, None) is not None
    assert timed == once
    packing.linear(drawn(4, 6), None)
    assert timed == 2 * once
    packing.linear(drawn(6, 4), drawn(6))
    assert timed == 3 * once


def test_the_plain_layer_stays_where_torch_has_no_such_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert Packing(times(1.0, 0.1)).linear(drawn(6, 4), None) is None


def test_the_plain_layer_stays_where_the_operation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(linears, "_product", broken)
    assert Packing(times(1.0, 0.1)).linear(drawn(6, 4), None) is None


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_the_plain_layer_stays_where_the_operation_is_wrong(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "_pack", lambda weight: weight * wrong)
    monkeypatch.setattr(linears, "_product", F.linear)
    assert Packing(times(1.0, 0.1)).linear(drawn(6, 4), None) is None


@pytest.mark.parametrize(
    "weight",
    [drawn(6, 4).half(), drawn(6, 4).double(), drawn(2, 6, 4), torch.ones(3, device="meta")],
)
def test_the_plain_layer_stays_where_weights_are_of_another_kind(weight: torch.Tensor) -> None:
    assert Packing(times(1.0, 0.1)).linear(weight, None) is None


def test_the_shortest_time_of_each_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two calls in turns, five times; each clock reading begins or ends one of them.
    took = [(3.0, 8.0), (1.0, 9.0), (2.0, 7.0), (5.0, 7.5), (4.0, 20.0)]
    readings = [0.0]
    for pair in took:
        for seconds in pair:
            readings += [readings[-1] + seconds] * 2
    clock = iter(readings)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert shortest_s(*[lambda: torch.ones(1)] * 2) == [1.0, 7.0]
