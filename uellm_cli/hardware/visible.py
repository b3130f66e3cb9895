"""Which GPUs a process may use: CUDA_VISIBLE_DEVICES, by index or by UUID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uellm_cli.types import Device

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"


def visible_gpus(
    devices: Sequence[Device], environment: Mapping[str, str]
) -> tuple[list[Device], list[str]]:
    """The devices that CUDA would show, in its order, and notes on what was left out or assumed.

    Entries are indexes (`gpu<index>` here) or UUIDs, which may be shortened. As in CUDA, an entry
    that names no GPU hides itself and all after it.
    """
    value = environment.get(VARIABLE)
    notes = _order_notes(value, devices, environment)
    if value is None:
        return list(devices), notes
    kept: list[Device] = []
    notes.insert(0, f"{VARIABLE}={value} is honoured")
    for entry in (part.strip() for part in value.split(",")):
        device = _named(entry, devices)
        if device is None or device in kept:
            if entry not in ("", "-1"):
                notes.append(f"{VARIABLE}: {entry!r} names no usable GPU; it and all after it hide")
            break
        kept.append(device)
    return kept, notes


def _named(entry: str, devices: Sequence[Device]) -> Device | None:
    if entry.isdecimal():
        return next((d for d in devices if d.id == f"gpu{int(entry)}"), None)
    matches = [d for d in devices if entry.startswith("GPU-") and (d.uuid or "").startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _order_notes(
    value: str | None, devices: Sequence[Device], environment: Mapping[str, str]
) -> list[str]:
    """A note where CUDA may number the GPUs otherwise: it counts the fastest first, NVML by PCI."""
    by_index = value is None or any(part.strip().isdecimal() for part in value.split(","))
    in_pci_order = environment.get(ORDER_VARIABLE) == "PCI_BUS_ID"
    if not by_index or in_pci_order or len({device.name for device in devices}) < 2:
        return []
    return [f"the GPUs differ and are numbered in PCI order here: set {ORDER_VARIABLE}=PCI_BUS_ID"]
