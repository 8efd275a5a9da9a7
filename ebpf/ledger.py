"""The ledger's records as Python values. Pure: decodes what session.py reads.

Owns the ctypes mirror of ledger.h and the immutable types made from it. Must not know how the
table is reached, nor anything of pods, VMIs or metrics.
"""

import ctypes
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ebpf.hooks import HookStatus


class ProcessRecord(ctypes.Structure):
    """Mirror of ``struct ledger_process``."""

    _fields_ = (
        ("first_ns", ctypes.c_uint64),
        ("exec_ns", ctypes.c_uint64),
        ("leader_exit_ns", ctypes.c_uint64),
        ("vms_created", ctypes.c_uint64),
        ("vcpus_created", ctypes.c_uint64),
        ("slot", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )

    @staticmethod
    def slot_of(raw: bytes) -> int:
        """The slot in a record as the kernel keeps it."""
        return int(_RECORD.unpack(raw)[5])


class ActivityRecord(ctypes.Structure):
    """Mirror of ``struct ledger_activity``, one a slot and CPU."""

    _fields_ = (
        ("runs", ctypes.c_uint64),
        ("userspace_exits", ctypes.c_uint64),
        ("exits", ctypes.c_uint64),
        ("mshv_runs", ctypes.c_uint64),
    )


_RECORD = struct.Struct("=5QI4x")
"""ProcessRecord, for reading many at once."""
_COUNTERS = ctypes.sizeof(ActivityRecord) // 8


class Total(IntEnum):
    """Mirror of ``enum ledger_total``: index of each total that belongs to no process."""

    DROPPED = 0
    DEPARTED = 1


class LedgerEntry(NamedTuple):
    """What the kernel recorded of one process since it began, or since the hooks were attached.

    Counters of a hook that is not attached stay 0: whether 0 means anything is for the reader to
    tell from the hooks' status.
    """

    tgid: int
    """Thread group id in the initial PID namespace."""
    first_ns: int
    """CLOCK_MONOTONIC, when the process first came to the ledger's notice."""
    exec_ns: int | None
    """CLOCK_MONOTONIC, when it executed a program named like a VMM; None: not seen to."""
    leader_exit_ns: int | None
    """CLOCK_MONOTONIC, when its main thread ended; None: it has not."""
    vms_created: int
    """KVM_CREATE_VM calls."""
    vcpus_created: int
    """KVM_CREATE_VCPU calls."""
    runs: int
    """KVM_RUN calls entered."""
    userspace_exits: int
    """Returns of KVM_RUN to the VMM."""
    exits: int
    """VM exits."""
    mshv_runs: int = 0
    """MSHV_RUN_VP calls entered."""

    @property
    def ran_kvm(self) -> bool:
        """Whether any hook saw this process run a vCPU of KVM."""
        return bool(self.runs or self.userspace_exits or self.exits)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSnapshot:
    """The ledger at one moment, with what is known of the hooks that fill it."""

    taken_ns: int
    """CLOCK_MONOTONIC at the time of reading."""
    attached_ns: int | None
    """CLOCK_MONOTONIC from which on every attached hook was counting; None: none ever was."""
    entries: Mapping[int, LedgerEntry]
    """By tgid."""
    capacity: int
    """Processes that the table has room for."""
    dropped_total: int
    """Events that found no room."""
    departed_total: int
    """Processes that executed a VMM and have ended since the hooks were attached."""
    hooks: tuple[HookStatus, ...]
    """One a wanted hook, in the order of hooks.HOOKS."""
    error: str | None = None
    """Why there is no ledger at all, one line; None: there is."""


def entries_from(
    before: Iterable[tuple[bytes, bytes]],
    after: Iterable[tuple[bytes, bytes]],
    activity: Sequence[int],
) -> dict[int, LedgerEntry]:
    """Join records with the counters of their slots, by tgid.

    before and after: pairs of tgid and record as the kernel keeps them, read before and after the
    counters; only records that are in both count. activity: the counters slot by slot, in the
    order of ActivityRecord, all CPUs added up.
    """
    stood = {(key, raw[:8]) for key, raw in before}
    entries: dict[int, LedgerEntry] = {}
    for key, raw in after:
        if (key, raw[:8]) not in stood:
            continue
        tgid = int.from_bytes(key, sys.byteorder)
        first_ns, exec_ns, leader_exit_ns, vms_created, vcpus_created, slot = _RECORD.unpack(raw)
        at = slot * _COUNTERS
        entries[tgid] = LedgerEntry(
            tgid,
            first_ns,
            exec_ns or None,
            leader_exit_ns or None,
            vms_created,
            vcpus_created,
            *activity[at : at + _COUNTERS],
        )
    return entries
