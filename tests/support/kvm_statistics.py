# SPDX-License-Identifier: Apache-2.0
"""KVM's binary statistics, as the kernel writes them."""

import base64
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from probes.host.kvm_stats import Kind, Unit

NAME_BYTES = 48
CAPTURES = Path(__file__).resolve().parents[1] / "fixtures" / "kvm_stats"


def statistics(
    values: dict[str, int], *, gap: int = 0, kind: int = Kind.CUMULATIVE, unit: int = Unit.NONE
) -> bytes:
    """A statistics file as the kernel writes it: header, id, descriptors, data."""
    descriptors_at = 24 + NAME_BYTES
    data_at = descriptors_at + len(values) * (16 + NAME_BYTES) + gap
    header = struct.pack("=6I", 0, NAME_BYTES, len(values), 24, descriptors_at, data_at)
    identity = b"kvm-4711/vcpu-0".ljust(NAME_BYTES, b"\0")
    descriptors = b"".join(
        struct.pack("=IhHII", kind | unit << 4, 0, 1, 8 * index, 0)
        + name.encode().ljust(NAME_BYTES, b"\0")
        for index, name in enumerate(values)
    )
    data = struct.pack(f"={len(values)}Q", *values.values())
    return (header + identity + descriptors).ljust(data_at, b"\0") + data


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
