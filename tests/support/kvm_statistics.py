# SPDX-License-Identifier: Apache-2.0
"""KVM's binary statistics, as the kernel writes them."""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probes.host.kvm_stats import Kind, Unit

NAME_BYTES = 48
CAPTURES = Path(__file__).resolve().parents[1] / "fixtures" / "kvm_stats"


def statistics(
    values: dict[str, int],
    *,
    gap: int = 0,
    kind: int = Kind.CUMULATIVE,
    unit: int = Unit.NONE,
    units: Mapping[str, tuple[int, int]] | None = None,
) -> bytes:
    """A statistics file as the kernel writes it: header, id, descriptors, data.

    units has unit and exponent of the statistics that differ from unit.
    """
    described = dict.fromkeys(values, (unit, 0)) | dict(units or {})
    descriptors_at = 24 + NAME_BYTES
    data_at = descriptors_at + len(values) * (16 + NAME_BYTES) + gap
    header = struct.pack("=6I", 0, NAME_BYTES, len(values), 24, descriptors_at, data_at)
    identity = b"kvm-4711/vcpu-0".ljust(NAME_BYTES, b"\0")
    descriptors = b"".join(
        struct.pack("=IhHII", kind | described[name][0] << 4, described[name][1], 1, 8 * index, 0)
        + name.encode().ljust(NAME_BYTES, b"\0")
        for index, name in enumerate(values)
    )
    data = struct.pack(f"={len(values)}Q", *values.values())
    return (header + identity + descriptors).ljust(data_at, b"\0") + data


NANOSECONDS = (int(Unit.SECONDS), -9)
ARM64 = {
    "halt_poll_success_ns": 1_500_000_000,
    "halt_poll_fail_ns": 250_000_000,
    "hvc_exit_stat": 3,
    "wfe_exit_stat": 5,
    "wfi_exit_stat": 7,
    "mmio_exit_user": 11,
    "mmio_exit_kernel": 13,
    "signal_exits": 17,
    "exits": 100,
}
"""Some statistics of a vCPU on arm64 (arch/arm64/kvm/guest.c), in the kernel's order."""


def arm64_statistics(**changes: int) -> bytes:
    """A statistics file of arm64."""
    nanoseconds = {name: NANOSECONDS for name in ARM64 if name.endswith("_ns")}
    return statistics(ARM64 | changes, units=nanoseconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedStatistics:
    """The statistics file of a real vCPU."""

    exits: int
    """VM exits that the vCPU had made when it was captured."""
    file: bytes


def captured_statistics(machine: str) -> CapturedStatistics:
    """Return the captured file of an architecture."""
    capture = json.loads((CAPTURES / f"{machine}.json").read_text())
    file = zlib.decompress(base64.b64decode(capture["file"]))
    return CapturedStatistics(exits=capture["exits"], file=file)
