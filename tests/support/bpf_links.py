# SPDX-License-Identifier: Apache-2.0
"""The kernel's list of BPF links: which programs are attached to a raw tracepoint."""

import contextlib
import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from ebpf.bpf_syscall import bpf

_OBJ_GET_INFO_BY_FD, _LINK_GET_FD_BY_ID, _LINK_GET_NEXT_ID = 15, 30, 31
"""Commands of bpf(2) (``enum bpf_cmd``), the last two since Linux v5.8."""
_RAW_TRACEPOINT = 1
"""BPF_LINK_TYPE_RAW_TRACEPOINT."""
_INFO_BYTES, _NAME_BYTES = 128, 64


def raw_tracepoint_links(name: str) -> set[int]:
    """Return the ids of all links of this machine at a raw tracepoint."""
    return {link for link in _links() if _raw_tracepoint(link) == name}


def own_links() -> set[int]:
    """Return the ids of the links that this process holds."""
    found: set[int] = set()
    for fd in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            text = fd.read_text()
            if match := re.search(r"^link_id:\s*(\d+)", text, re.MULTILINE):
                found.add(int(match[1]))
    return found


def _links() -> Iterator[int]:
    link = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=III", link, 0, 0))
        try:
            bpf(_LINK_GET_NEXT_ID, attributes)
        except FileNotFoundError:
            return
        link = struct.unpack_from("=II", attributes)[1]
        yield link


def _raw_tracepoint(link: int) -> str | None:
    """Return the name of the raw tracepoint of a link; None: it is another link, or gone."""
    try:
        fd = bpf(_LINK_GET_FD_BY_ID, ctypes.create_string_buffer(struct.pack("=III", link, 0, 0)))
    except OSError as err:
        if err.errno == errno.ENOENT:
            return None
        raise
    name = ctypes.create_string_buffer(_NAME_BYTES)
    info = ctypes.create_string_buffer(_INFO_BYTES)
    # struct bpf_link_info: type, id, prog_id, then tp_name and tp_name_len of a raw tracepoint
    struct.pack_into("=IIIIQI", info, 0, 0, 0, 0, 0, ctypes.addressof(name), _NAME_BYTES)
    wanted = struct.pack("=IIQ", fd, _INFO_BYTES, ctypes.addressof(info))
    try:
        bpf(_OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(wanted, len(wanted)))
    finally:
        os.close(fd)
    return name.value.decode() if struct.unpack_from("=I", info)[0] == _RAW_TRACEPOINT else None
