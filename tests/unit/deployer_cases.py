"""Small models and machines in round numbers for the tests of placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from uellm_cli.types import (
    Device,
    DeviceKind,
    LayerSpec,
    Link,
    ModelSpec,
    Source,
    Topology,
    Workload,
)

MIB = 2**20
GB = 10**9

# No overhead and no margin: what is free is what can be used.
BARE = {"margin": 0.0, "cuda_overhead_gib": 0.0}


def a_model(
    layers: Sequence[int] = (1000,) * 4,
    kv_bytes_per_token: int = 1,
    embedding: int = 100,
    head: int = 100,
    norm: int = 0,
) -> ModelSpec:
    """Layers of the given weight bytes; hidden size 1 keeps activations at 22 bytes a token."""
    return ModelSpec(
        name="small",
        architecture="LlamaForCausalLM",
        dtype_bytes=2,
        hidden_size=1,
        vocab_size=1,
        context_tokens=1000,
        layers=tuple(LayerSpec(size, size, kv_bytes_per_token) for size in layers),
        embedding_bytes=embedding,
        head_bytes=head,
        norm_bytes=norm,
        weight_source=Source.SPECIFIED,
        num_kv_heads=1,
    )


def a_gpu(name: str, free: int, bandwidth: float = 1e9, flops: float = 1e15) -> Device:
    return Device(name, "GPU", DeviceKind.CUDA, free, free, bandwidth, flops, Source.SPECIFIED)


def a_machine(
    free: Sequence[int],
    gb_s: Mapping[tuple[int, int], float] | None = None,
    default_gb_s: float = 10.0,
) -> Topology:
    """GPUs g0, g1, … of the given free bytes, all linked, by default at 10 GB/s and 10 µs."""
    pairs = [(i, j) for j in range(len(free)) for i in range(j)]
    links = tuple(
        Link(
            f"g{i}", f"g{j}", "PIX", (gb_s or {}).get((i, j), default_gb_s) * 1e9, 1e-5,
            Source.SPECIFIED,
        )
        for i, j in pairs
    )  # fmt: skip
    return Topology(tuple(a_gpu(f"g{i}", size) for i, size in enumerate(free)), links, "test")


ONE_ROW = Workload(sequences=1, tokens_per_sequence=10, longest_tokens=10)


@st.composite
def placement_cases(draw: st.DrawFn) -> tuple[ModelSpec, Topology, Workload]:
    """Up to 6 uneven layers on up to 4 uneven GPUs; about half of them fit."""
    layers = draw(st.lists(st.integers(500, 3000), min_size=1, max_size=6))
    model = a_model(layers, draw(st.integers(0, 20)), embedding=draw(st.integers(0, 2000)))
    if draw(st.booleans()):
        model = replace(model, head_bytes=0)
    count = draw(st.integers(1, 4))
    free = [draw(st.sampled_from((2500, 5000, 10_000, 20_000))) for _ in range(count)]
    speeds = {
        (i, j): draw(st.sampled_from((0.001, 0.1, 10.0))) for j in range(count) for i in range(j)
    }
    machine = a_machine(free, speeds)
    devices = tuple(
        replace(d, bandwidth_bytes_per_s=draw(st.sampled_from((1e6, 1e7, 3e7))))
        for d in machine.devices
    )
    workload = Workload(draw(st.integers(1, 9)), draw(st.integers(1, 20)), 20)
    return model, replace(machine, devices=devices), workload
