"""Memory bandwidth and dense half-precision FLOP/s of well-known GPUs, by their NVML name.

Peaks of NVIDIA's data sheets, without sparsity; bf16 with fp32 accumulation, fp16 where a GPU has
no bf16 (V100, T4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uellm_cli.types import Source

# FLOP per byte of memory bandwidth of a GPU that is in no table: between the 76 of an RTX 3090 and
# the 295 of an H100.
ASSUMED_FLOP_PER_BYTE = 150
ASSUMED_BANDWIDTH_BYTES_PER_S = 500e9


@dataclass(frozen=True, slots=True)
class GpuRates:
    bandwidth_bytes_per_s: float
    flops_per_s: float
    source: Source


# (pattern, GB/s, TFLOP/s); the first that is found in the name counts, so special ones come first.
_KNOWN: tuple[tuple[str, float, float], ...] = (
    (r"\bB200\b", 8000, 2250),  # HGX B200 data sheet
    (r"\bH200 NVL\b", 4800, 835),  # H200 data sheet, NVL column
    (r"\bH200\b", 4800, 989),  # H200 data sheet, SXM column
    (r"\bH100 NVL\b", 3900, 835),  # H100 NVL data sheet
    (r"\bH100 PCIe\b", 2000, 756),  # H100 data sheet, PCIe column
    (r"\bH100\b", 3350, 989),  # H100 data sheet, SXM column
    (r"\bA100.PCIE.80GB\b|\bA100 80GB PCIe\b", 1935, 312),  # A100 80GB data sheet, PCIe column
    (r"\bA100.*80GB\b", 2039, 312),  # A100 80GB data sheet, SXM column
    (r"\bA100\b", 1555, 312),  # A100 40GB data sheet
    (r"\bA10G\b", 600, 70),  # AWS EC2 G5, NVIDIA A10G data sheet
    (r"\bA10\b", 600, 125),  # A10 data sheet
    (r"\bL40S\b", 864, 362),  # L40S data sheet
    (r"\bL4\b", 300, 121),  # L4 data sheet
    (r"\bRTX 4090\b", 1008, 165),  # Ada GPU architecture whitepaper, appendix A
    (r"\bRTX 3090\b(?! Ti)", 936, 71),  # GA102 whitepaper, appendix A
    (r"\bV100.PCIE\b", 900, 112),  # V100 data sheet, PCIe column (fp16)
    (r"\bV100\b", 900, 125),  # V100 data sheet, SXM2 column (fp16)
    (r"\bT4\b", 320, 65),  # T4 data sheet (fp16)
)


def known_rates(name: str) -> GpuRates | None:
    """The data sheet's peaks for a GPU by its name; None for one that is not in the table."""
    for pattern, gigabytes, teraflops in _KNOWN:
        if re.search(pattern, name, re.IGNORECASE):
            return GpuRates(gigabytes * 1e9, teraflops * 1e12, Source.SPECIFIED)
    return None


def estimated_rates(memory_clock_mhz: int | None, bus_width_bits: int | None) -> GpuRates:
    """Rates of an unknown GPU: two transfers a clock over its bus, and FLOP/s in proportion."""
    bandwidth = ASSUMED_BANDWIDTH_BYTES_PER_S
    if memory_clock_mhz and bus_width_bits:
        bandwidth = 2 * memory_clock_mhz * 1e6 * bus_width_bits / 8
    return GpuRates(bandwidth, bandwidth * ASSUMED_FLOP_PER_BYTE, Source.ASSUMED)
