# SPDX-License-Identifier: Apache-2.0
"""A ledger with little room, on a machine that may run other VMs: their slots are not counted on.

Knows the insides of ebpf.tables and ebpf.ledger_arrays. The room is made small by taking free slots
away.
"""

import contextlib
import ctypes
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ebpf.bpf_syscall import map_element
from ebpf.hooks import HOOKS, KVM_EXIT, AttachPoint, Hook
from ebpf.ledger import ACTIVITY_WORDS, RECORD_WORDS, RELEASED, LedgerEntry, owner_of
from ebpf.session import Session
from ebpf.tables import EXIT_PLACES, Tables
from tests.support.kernel_world import wait_for

OTHERS_S = 0.5
"""In this time other VMs of the machine that do anything at all get their records."""
FREED_AFTER_S = 0.1
"""Time in which the kernel frees a process that has ended: an RCU grace period (call_rcu)."""
MAP_LOOKUP_AND_DELETE_ELEM = 21
"""Command of bpf(2) that pops from a stack (``enum bpf_cmd``)."""
COMMON, RESERVED = "free_slots", "reserved_slots"


@contextlib.contextmanager
def exits_counted(
    *, capacity: int | None = None, exit_places: int = EXIT_PLACES
) -> Iterator[Session]:
    """A session whose hook at kvm_exit is attached, as it is while a process needs it."""
    with Session(capacity=capacity, exit_places=exit_places) as session:
        session.need([KVM_EXIT])
        yield session


def tables(session: Session) -> Tables:
    return session._tables


def wait_for_removal(session: Session, *tgids: int) -> None:
    """Wait until the kernel has removed the records of processes that have ended.

    It skips the program that does so while another process is in a call on a map on its CPU; the
    agent then removes the record at its next refresh. The test has no agent, so it does not read
    the ledger while the process is freed.
    """
    time.sleep(FREED_AFTER_S)
    wait_for(lambda: not set(tgids) & set(session.read().entries), "the records are removed")


def take_slots(session: Session, *, common: int, reserved: int) -> list[int]:
    """Take free slots away until so many are left; those that are left."""
    time.sleep(OTHERS_S)
    kept: list[int] = []
    for name, room in ((COMMON, common), (RESERVED, reserved)):
        free = []
        while (slot := _pop(session, name)) is not None:
            free.append(slot)
        for slot in reversed(free[:room]):
            tables(session)._stack(slot).push(slot)
        kept += free[:room]
    return kept


def free_slots(session: Session) -> list[int]:
    """Take all free slots away."""
    return [
        slot for name in (COMMON, RESERVED) for slot in iter(partial(_pop, session, name), None)
    ]


def slot_of(session: Session, tgid: int) -> int:
    """The slot that the process's record is in."""
    key = tgid.to_bytes(4, "little")
    return int.from_bytes(tables(session)._slots.get(key) or b"", "little")


def fill_with_rubbish(session: Session, tgid: int) -> int:
    """Every number of a process's record becomes one that is not 0; its slot.

    The marks are among them, and the process owns its place on each CPU where that is free.
    """
    slot = slot_of(session, tgid)
    arrays = tables(session)._arrays
    for word in range(2, RECORD_WORDS):
        arrays._records.write(slot, word, 1)
    for word in range(ACTIVITY_WORDS):
        arrays._activity.write(slot, word, 1)
    place = tgid % arrays._places_per_cpu
    for cpu, owner in enumerate(arrays._places.across(place, 0)):
        arrays._cpu_activity.write(slot, 0, 1, block=cpu)
        if owner in {0, RELEASED}:
            arrays._places.write(place, 1, 1, block=cpu)
            arrays._places.write(place, 0, owner_of(tgid, slot), block=cpu)
    return slot


def rubbish_left(session: Session, tgid: int, slot: int) -> int:
    """The sum of all that a slot and its places hold, without whose it was."""
    arrays = tables(session)._arrays
    owners = arrays._places.across(tgid % arrays._places_per_cpu, 0)
    return (
        sum(arrays._records.word(slot, word) for word in range(RECORD_WORDS) if word != 1)
        + sum(arrays._activity.word(slot, word) for word in range(ACTIVITY_WORDS))
        + sum(arrays._cpu_activity.across(slot, 0))
        + owners.count(owner_of(tgid, slot))
    )


def only(hook: Hook, *points: AttachPoint) -> Sequence[Hook]:
    """Return all hooks, this one with these attach points alone; without it if there are none."""
    wanted = [replace(hook, points=points) if known is hook else known for known in HOOKS]
    return [known for known in wanted if known.points]


def stated_bytes(session: Session) -> int:
    """Kernel memory of all tables as the kernel states it, which is too much before Linux 6.4."""
    found = 0
    for fd in session._programs._loaded.maps.values():
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        line = re.search(r"^memlock:\s*(\d+)$", text, re.MULTILINE)
        assert line is not None, text
        found += int(line[1])
    return found


def of_form(hook: Hook, *, by_link: bool) -> Hook:
    """The hook at a kernel function with one form of kprobe alone: a link, or a perf event."""
    return replace(hook, points=tuple(p for p in hook.points if p.by_link is by_link))


def entry_with(session: Session, tgid: int, returns: int) -> LedgerEntry | None:
    """The process's record once so many returns of KVM_RUN are in it."""
    entry = session.read().entries.get(tgid)
    return entry if entry is not None and entry.counters["userspace_exits"] >= returns else None


def _pop(session: Session, name: str) -> int | None:
    value = ctypes.c_uint32()
    fd = session._programs.map_fd(name)
    try:
        map_element(MAP_LOOKUP_AND_DELETE_ELEM, fd, 0, ctypes.addressof(value))
    except FileNotFoundError:
        return None
    return value.value
