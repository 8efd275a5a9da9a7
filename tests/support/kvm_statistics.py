# SPDX-License-Identifier: Apache-2.0
"""KVM's binary statistics, as the kernel writes them."""

import struct

NAME_BYTES = 48


def statistics(values: dict[str, int], *, gap: int = 0) -> bytes:
    """A statistics file as the kernel writes it: header, id, descriptors, data."""
    descriptors_at = 24 + NAME_BYTES
    data_at = descriptors_at + len(values) * (16 + NAME_BYTES) + gap
    header = struct.pack("=6I", 0, NAME_BYTES, len(values), 24, descriptors_at, data_at)
    identity = b"kvm-4711/vcpu-0".ljust(NAME_BYTES, b"\0")
    descriptors = b"".join(
        struct.pack("=IhHII", 0, 0, 1, 8 * index, 0) + name.encode().ljust(NAME_BYTES, b"\0")
        for index, name in enumerate(values)
    )
    data = struct.pack(f"={len(values)}Q", *values.values())
    return (header + identity + descriptors).ljust(data_at, b"\0") + data
