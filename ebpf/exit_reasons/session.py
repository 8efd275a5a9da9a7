# SPDX-License-Identifier: Apache-2.0
"""EDGE: counts the VM exits of chosen processes by reason, while a live view shows them.

Owns one program on tracepoint kvm:kvm_exit, separate from the ledger's. Must not know why a process
was chosen. The tracepoint keeps KVM's module loaded until close().
"""

import contextlib
import struct
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from ebpf.errors import AttachError, BpfUnavailableError
from ebpf.exit_reasons.reasons import ReasonCount, ReasonLayout, layout_from, reason_count
from ebpf.hooks import AttachPoint, Backend
from ebpf.maps import HashMap, MappedArray
from ebpf.programs import Programs, possible_cpus
from ebpf.tracefs import Tracefs

CHOSEN_CAPACITY = 4096
REASONS_CAPACITY = 16384
"""Pairs of process and reason. A guest has about ten different reasons."""
_POINT = AttachPoint(backend=Backend.TRACEPOINT, target="kvm:kvm_exit")
"""The classic form, because the kernel describes the layout of its record in tracefs."""
_PROGRAM = "on_kvm_exit_reason"
_KEY = struct.Struct("=4I")
"""Mirror of ``struct reason_key``: tgid, isa, reason, detail."""


class ReasonsSession:
    """Keeps the counting program attached until close()."""

    def __init__(self, *, sys_root: Path = Path("/sys")) -> None:
        """Compile the program for this kernel's layout and attach it.

        Raises BpfUnavailableError when that fails; nothing stays loaded then.
        """
        self._layout = _layout(sys_root)
        flags = (
            f"-DCHOSEN_CAPACITY={CHOSEN_CAPACITY}",
            f"-DREASONS_CAPACITY={REASONS_CAPACITY}",
            *self._layout.flags,
        )
        self._watched: frozenset[int] = frozenset()
        with contextlib.ExitStack() as opened:
            self._programs = Programs(
                ("exit_reasons/exit_reasons.bpf.c",),
                flags,
                maps=("chosen", "reasons", "lost"),
                loadable=[(_PROGRAM, _POINT.kind)],
                sys_root=sys_root,
            )
            opened.callback(self._programs.close)
            fd = self._programs.map_fd
            self._chosen = HashMap(
                fd("chosen"), key_bytes=4, value_bytes=4, capacity=CHOSEN_CAPACITY
            )
            try:
                self._reasons = HashMap(
                    fd("reasons"),
                    key_bytes=_KEY.size,
                    value_bytes=8 * len(possible_cpus(sys_root)),
                    capacity=REASONS_CAPACITY,
                )
                self._lost = MappedArray(fd("lost"), words=1, block_records=1, blocks=1)
                opened.callback(self._lost.close)
                self._programs.attach(_POINT, _PROGRAM)
            except AttachError as err:
                raise BpfUnavailableError(
                    f"exit reasons are unavailable: {err}", refused=err.refused
                ) from err
            except (OSError, ValueError) as err:
                raise BpfUnavailableError(f"exit reasons are unavailable: {err}") from err
            self._opened = opened.pop_all()

    def choose(self, tgids: Collection[int]) -> None:
        """Count these processes from now on and no others.

        Processes that were chosen before keep their counts.
        """
        wanted = frozenset(sorted(tgids)[:CHOSEN_CAPACITY])
        for tgid in wanted - self._watched:
            self._chosen.set(_tgid_key(tgid), _tgid_key(1))
        for tgid in self._watched - wanted:
            self._chosen.delete(_tgid_key(tgid))
        for key in self._reasons:
            if _KEY.unpack(key)[0] not in wanted:
                self._reasons.delete(key)
        self._watched = wanted

    def read(self) -> Mapping[int, tuple[ReasonCount, ...]]:
        """Return the counts by tgid, the most frequent reason first."""
        found: dict[int, list[ReasonCount]] = defaultdict(list)
        for key, value in self._reasons.items():
            tgid, isa, reason, detail = _KEY.unpack(key)
            total = sum(memoryview(value).cast("Q"))
            found[tgid].append(
                reason_count(self._layout, isa=isa, reason=reason, detail=detail, total=total)
            )
        return {
            tgid: tuple(sorted(counts, key=lambda count: (-count.total, count.name)))
            for tgid, counts in found.items()
        }

    @property
    def lost_total(self) -> int:
        """Exits that were not counted because the table was full."""
        return self._lost.word(0, 0)

    def close(self) -> None:
        """Detach the program. May be called again."""
        self._opened.close()


def _tgid_key(tgid: int) -> bytes:
    return tgid.to_bytes(4, sys.byteorder)


def _layout(sys_root: Path) -> ReasonLayout:
    description = Tracefs(sys_root).description(_POINT.target)
    if description is None:
        raise BpfUnavailableError(
            f"exit reasons are unavailable: no description of tracepoint {_POINT.target} below "
            f"{sys_root}; load the KVM module, mount tracefs at /sys/kernel/tracing, "
            "and run as root"
        )
    found = layout_from(description.offsets)
    if found is None:
        raise BpfUnavailableError(
            f"exit reasons are unavailable: the fields of {_POINT.target} in {description.file} "
            "are not those of x86 or arm64; use live without --reasons"
        )
    return found
