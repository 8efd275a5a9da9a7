# SPDX-License-Identifier: Apache-2.0
"""Parses the binary statistics of a KVM vCPU (KVM_GET_STATS_FD). Pure: bytes in, numbers out.

Layout: include/uapi/linux/kvm.h, struct kvm_stats_header and struct kvm_stats_desc; the data are
unsigned 64-bit numbers. Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. Since Linux cb082bfab59a
("KVM: stats: Add fd-based API to read binary stats data") and ce55c049459c ("KVM: stats: Support
binary stats retrieval for a VCPU") (v5.14).
"""

import struct

_HEADER = struct.Struct("=6I")
"""flags, name_size, num_desc, id_offset, desc_offset, data_offset (offsets in the file)."""
_DESCRIPTOR = struct.Struct("=IhHII")
"""flags, exponent, size, offset from data_offset, bucket_size; then the name."""
_VALUE = struct.Struct("=Q")

MAX_BYTES = 64 * 1024
"""More than any kernel's statistics of a vCPU take."""


def statistic(raw: bytes, name: str) -> int | None:
    """Return the value of a statistic by name; None: it is missing, or the data are malformed."""
    try:
        _, name_bytes, count, _, descriptors, data = _HEADER.unpack_from(raw)
        for index in range(count):
            at = descriptors + index * (_DESCRIPTOR.size + name_bytes)
            _, _, _, offset, _ = _DESCRIPTOR.unpack_from(raw, at)
            begin = at + _DESCRIPTOR.size
            if raw[begin : begin + name_bytes].split(b"\0", 1)[0] == name.encode():
                return int(_VALUE.unpack_from(raw, data + offset)[0])
    except struct.error:
        return None
    return None
