"""From requests to a workload, from a placement to a budget, and the roofline's seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.deployer_cases import BARE, ONE_ROW, a_gpu, a_machine, a_model
from uellm_cli.deployer import PLACEMENTS
from uellm_cli.deployer.budget import plan_budget, workload_of
from uellm_cli.deployer.memory import MemoryRules
from uellm_cli.timing.roofline import stage_decode_s, step_times, weight_read_bytes
from uellm_cli.types import (
    QUANTILE_LEVELS,
    DeviceKind,
    LayerSpec,
    LengthEstimate,
    ProfiledRequest,
    Source,
    Workload,
)

RULES = MemoryRules(margin=0.0, cuda_overhead_gib=0.0)


def profiled(prompt: int, output: float, max_tokens: int = 10_000) -> ProfiledRequest:
    lengths = LengthEstimate((output,) * len(QUANTILE_LEVELS), "test")
    return ProfiledRequest(f"{prompt}-{output}", prompt, max_tokens, lengths, 0)


def test_a_workload_is_the_size_of_nine_in_ten_requests_and_of_the_longest() -> None:
    # Ten requests of 100 + 10, 20, … 100 tokens: the ninth is 190, the longest 200.
    requests = [profiled(100, 10.0 * i) for i in range(10, 0, -1)]
    assert workload_of(requests, 4) == Workload(4, 190, 200)


def test_a_workload_has_no_more_sequences_than_requests_and_no_output_beyond_the_cap() -> None:
    assert workload_of([profiled(100, 50.5, max_tokens=20)], 8) == Workload(1, 120, 120)


@pytest.mark.parametrize("sequences", [0, 1])
def test_a_workload_of_nothing_is_refused(sequences: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        workload_of([] if sequences else [profiled(1, 1)], sequences)


def test_a_budget_is_what_the_device_leaves_beside_the_rest() -> None:
    # 10,000 free - 4 layers of 1,000 - embedding and head of 100 - activations of 2·10·1·11 = 220
    # - 4 bytes of logits = 5,576 for KV.
    model, machine = a_model(), a_machine((10_000,))
    placement = PLACEMENTS.build("he", BARE).place(model, machine, ONE_ROW)
    assert plan_budget(model, machine, placement, RULES).kv_bytes == 5576
    assert plan_budget(model, machine, placement, RULES).max_sequences == 1


def test_the_stage_with_the_least_room_for_its_share_decides() -> None:
    # 4 layers, half on each device; the first has 3,000 - 2,100 - 220 = 680 for half the cache,
    # so 1,360 in all, whatever the second has.
    model, machine = a_model(), a_machine((3000, 3100))
    placement = PLACEMENTS.build("he", BARE).place(model, machine, ONE_ROW)
    assert [s.last_layer - s.first_layer for s in placement.replicas[0].stages] == [2, 2]
    first = placement.replicas[0].stages[0].device_id
    room = {"g0": 680 if first == "g0" else 676, "g1": 780 if first == "g1" else 776}
    assert plan_budget(model, machine, placement, RULES).kv_bytes == 2 * min(room.values())


def test_a_stage_with_full_attention_counts_at_its_share_of_long_sequences() -> None:
    # A window of 10 tokens in the first layer: of 1,000 tokens the second layer holds 1,000 of
    # 1,010 bytes. Its device has 2,324 - 1,100 - 220 - 4 = 1,000 left, which allow 1,010 in all.
    windowed = LayerSpec(1000, 1000, 1, kv_window_tokens=10)
    model = replace(a_model((1000, 1000)), layers=(windowed, LayerSpec(1000, 1000, 1)))
    machine = a_machine((2324, 2324))
    placement = PLACEMENTS.build("he", BARE).place(model, machine, ONE_ROW)
    assert len(placement.device_ids) == 2
    assert plan_budget(model, machine, placement, RULES).kv_bytes == 1010


def test_a_model_without_a_cache_has_an_empty_budget() -> None:
    model, machine = a_model(kv_bytes_per_token=0), a_machine((10_000,))
    placement = PLACEMENTS.build("he", BARE).place(model, machine, ONE_ROW)
    assert plan_budget(model, machine, placement, RULES).kv_bytes == 0


def test_a_decode_step_is_bound_by_bytes_or_by_flops() -> None:
    # One layer of 2,000 bytes (1,000 weights) and a head of 200 bytes; no cache. At 1 MB/s:
    # 2,200 bytes = 2.2 ms, and 60 µs for launching the layer.
    model = a_model((2000,), kv_bytes_per_token=0, head=200)
    reading = a_gpu("g", 10**6, bandwidth=1e6, flops=1e12)
    assert stage_decode_s(model, reading, 0, 1, 1, 0) == pytest.approx(2.2e-3 + 60e-6)
    # 2 FLOPs · 1,000 weights · 50 rows + 2 · 50 rows · vocabulary 1 · hidden 1 = 100,100 FLOPs at
    # 1 MFLOP/s.
    computing = a_gpu("g", 10**6, bandwidth=1e12, flops=1e6)
    assert stage_decode_s(model, computing, 0, 1, 50, 0) == pytest.approx(100.1e-3 + 60e-6)


def test_a_cpu_layer_takes_longer_to_launch() -> None:
    model = a_model((2000,), kv_bytes_per_token=0, head=200)
    cpu = replace(a_gpu("cpu", 10**6, bandwidth=1e12), kind=DeviceKind.CPU)
    assert stage_decode_s(model, cpu, 0, 1, 1, 0) == pytest.approx(350e-6, rel=1e-3)


def test_more_rows_read_more_experts() -> None:
    # A quarter of 1,000 bytes is active: one row reads 250, two read 250 + 0.25·750 = 437.5.
    layer = LayerSpec(weight_bytes=1000, active_bytes=250, kv_bytes_per_token=0)
    assert weight_read_bytes(layer, 1) == 250
    assert weight_read_bytes(layer, 2) == 437.5
    assert weight_read_bytes(layer, 1000) == pytest.approx(1000)
    assert weight_read_bytes(LayerSpec(1000, 1000, 0), 7) == 1000


def test_step_times_give_back_the_placements_own_step() -> None:
    model, machine = a_model(kv_bytes_per_token=0), a_machine((3000, 3100))
    placement = PLACEMENTS.build("lr", BARE).place(model, machine, Workload(2, 10, 10))
    times = step_times(model, machine, placement)
    assert times.decode_s(placement.rows, 10, 1) == pytest.approx(placement.step_s)
    assert times.source is Source.SPECIFIED


def test_cached_and_prefilled_tokens_have_their_price() -> None:
    # 4 layers of 1 KV byte a token at 1 GB/s; 4 · 500 weights · 2 FLOPs at 10**15 FLOP/s.
    model, machine = a_model(), a_machine((10_000,))
    placement = PLACEMENTS.build("lr", BARE).place(model, machine, ONE_ROW)
    times = step_times(model, machine, placement)
    assert times.per_cached_token_s == pytest.approx(4e-9)
    assert times.per_prefill_token_s == pytest.approx(4000e-15)
    assert times.fixed_s > 0
