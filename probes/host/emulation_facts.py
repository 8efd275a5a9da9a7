# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads why a process emulates its guest, as far as the process and its pod show it.

Owns the order of the steps and their bounds. Must not judge. The caller asks only for processes
that emulate.

The process and its pod may be hostile. Every step runs in a watched reader, because a FUSE file
system in the pod can block a look-up in /dev, and the readers are not those of the verdict: a pod
that blocks these loses its cause and nothing else.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import psutil

from probes.host.emulation import (
    LAUNCHERS,
    EmulationFacts,
    Finding,
    accelerators_asked_for,
    allows_emulation,
    is_first_of_namespace,
    plain,
    unknown,
)
from probes.host.hypervisors import BY_TYPE, Hypervisor, HypervisorType
from probes.host.pod_device import look_at_device
from probes.host.process import Unread, VmmId
from probes.host.process_folder import MAX_FILE_BYTES, ProcessFolder
from probes.host.process_reader import read_stat
from probes.host.procfs import is_qemu_name, qemu_architecture, split_arguments
from probes.host.watched_reads import WatchedReads

MAX_READ_S = 1.0
"""How long all processes of one call may take together. The caller asks again for the others."""
MAX_ANCESTORS = 16
"""The most ancestors among which virt-launcher is searched."""
_KVM_NUMBER = os.makedev(10, 232)
"""MISC_MAJOR and KVM_MINOR (include/linux/miscdevice.h)."""
_WHY = {
    Unread.BLOCKED: "a read of its pod's files does not return",
    Unread.TOO_MANY: "reading its pod's files took too long",
    Unread.NO_TIME: "there was no time to read its pod's files",
}


class EmulationReader:
    """Reads the facts of processes that emulate, from a given /proc and /sys.

    They hardly ever change, so the caller keeps what is known of a process and asks again only for
    processes of which something is unknown.
    """

    def __init__(
        self,
        *,
        hypervisor: Hypervisor = BY_TYPE[HypervisorType.KVM],
        proc_root: Path = Path("/proc"),
        sys_root: Path = Path("/sys"),
    ) -> None:
        self._proc = proc_root
        self._device = hypervisor.driver.device
        self._registration = sys_root / "class/misc" / self._device / "dev"
        self._reads = WatchedReads(proc_root, effect="Why it is emulated stays unknown")

    def read(self, vmms: Collection[VmmId]) -> Mapping[VmmId, EmulationFacts]:
        """Read these processes. What could not be read says why; one that has ended is left out."""
        # The library reads another /proc only by this global.
        psutil.PROCFS_PATH = str(self._proc)
        number = self._device_number()
        wanted = {vmm.tgid: vmm for vmm in sorted(vmms)}
        drafts: dict[int, _Draft] = {}

        def read(tgid: int, folder: ProcessFolder) -> None:
            drafts[tgid] = draft = _Draft(
                vmm=wanted[tgid],
                folder=folder,
                proc=self._proc,
                device=self._device,
                number=number,
            )
            draft.read()

        unread = self._reads.run(list(wanted), read, until=time.monotonic() + MAX_READ_S)
        found: dict[VmmId, EmulationFacts] = {}
        for tgid, vmm in wanted.items():
            draft, why = drafts.get(tgid), unread.get(tgid)
            if draft is not None and not draft.ended:
                found[vmm] = draft.facts if why is None else draft.facts_until(_WHY[why])
            elif draft is None and why is not None:
                found[vmm] = EmulationFacts.unread(_WHY[why])
        return found

    def _device_number(self) -> int:
        """Return the number of the accelerator's device; without a registration that of KVM's."""
        with contextlib.suppress(OSError, ValueError):
            major, minor = self._registration.read_text().split(":")
            return os.makedev(int(major), int(minor))
        return _KVM_NUMBER


_NOTHING = EmulationFacts.unread("not read yet")
_STEPS = tuple(field.name for field in fields(EmulationFacts))


@dataclass(slots=True, kw_only=True)
class _Draft:
    """One process while it is read."""

    vmm: VmmId
    folder: ProcessFolder
    proc: Path
    device: str
    number: int
    ended: bool = False
    """Whether it ended while it was read, or another process has its number."""
    facts: EmulationFacts = _NOTHING

    def facts_until(self, why: str) -> EmulationFacts:
        """Return what was read before a step that did not return, and why the rest is unknown."""
        missing = [name for name in _STEPS if getattr(self.facts, name) is getattr(_NOTHING, name)]
        return replace(self.facts, **dict.fromkeys(missing, unknown(why)))

    def read(self) -> None:
        """Read everything, what can block last, and check that it is still the same process."""
        if not self._is_alive():
            self.ended = True
            return
        self.facts = replace(self.facts, architecture=self._architecture())
        self.facts = replace(self.facts, asked_for=self._asked_for())
        self.facts = replace(self.facts, emulation_allowed=self._emulation_allowed())
        in_pod, accessible = look_at_device(self.folder, self.device, self.number)
        self.facts = replace(self.facts, device_in_pod=in_pod, device_accessible=accessible)
        self.ended = not self._is_alive()

    def _is_alive(self) -> bool:
        found = read_stat(self.folder, "stat")
        return found is not None and not found.ended and found.start_ticks == self.vmm.start_ticks

    def _architecture(self) -> Finding[str]:
        program = _program(self.folder)
        if program is None:
            return unknown("QEMU's program cannot be read")
        seen = f"QEMU's program is {plain(program)}"
        if not is_qemu_name(program):
            return unknown(f"{seen}, which names no architecture")
        return Finding(value=qemu_architecture(program) or "", text=seen)

    def _asked_for(self) -> Finding[tuple[str, ...]]:
        raw = self.folder.read("cmdline")
        if not raw or len(raw) >= MAX_FILE_BYTES:
            return unknown(f"QEMU's command line {'is too long' if raw else 'cannot be read'}")
        names = accelerators_asked_for(split_arguments(raw))
        return Finding(value=names, text=f"QEMU was asked for {plain(', '.join(names))}")

    # virt-launcher

    def _emulation_allowed(self) -> Finding[bool]:
        """Search the ancestors for virt-launcher, up to PID 1 of the container.

        A process whose parent has ended becomes a child of an ancestor or of that PID 1, so PID 1
        is always among the ancestors of a process that the container started.
        """
        if is_first_of_namespace(_text(self.folder.read("status"))):
            return Finding(value=False, text="no virt-launcher started the process")
        unreadable = ""
        try:
            for ancestor in self._ancestors():
                with ProcessFolder(f"{self.proc}/{ancestor}", self.folder.at) as folder:
                    program = _program(folder)
                    if program in LAUNCHERS:
                        return self._allowed_by(ancestor, program, folder)
                    if program is None:
                        unreadable = f"the program of its ancestor {ancestor} cannot be read"
                    if is_first_of_namespace(_text(folder.read("status"))):
                        break
            else:
                unreadable = unreadable or "its nearest ancestors are others"
        except psutil.Error:
            unreadable = "its ancestors cannot be read"
        if unreadable:
            return unknown(f"virt-launcher's command line is not known: {unreadable}")
        return Finding(value=False, text="no virt-launcher started the process")

    def _ancestors(self) -> Iterator[int]:
        """Iterate over its ancestors, the nearest first, at most MAX_ANCESTORS.

        psutil takes no process for a parent that started after its child, so a reused number does
        not count.
        """
        self.folder.at("its ancestors")
        process = psutil.Process(self.vmm.tgid)
        for _ in range(MAX_ANCESTORS):
            self.folder.at("its ancestors")
            parent = process.parent()
            if parent is None:
                return
            yield parent.pid
            process = parent

    def _allowed_by(self, number: int, program: str, folder: ProcessFolder) -> Finding[bool]:
        raw = folder.read("cmdline")
        if not raw or len(raw) >= MAX_FILE_BYTES:
            what = "is too long" if raw else "cannot be read"
            return unknown(f"the command line of {program} (process {number}) {what}")
        allowed = allows_emulation(split_arguments(raw))
        return Finding(
            value=allowed,
            text=f"{program} (process {number}) was started with{'' if allowed else 'out'} "
            "--allow-emulation",
        )


def _program(folder: ProcessFolder) -> str | None:
    """Return the base name of a process's executable file; None: it cannot be read."""
    with contextlib.suppress(OSError):
        return folder.target("exe").removesuffix(" (deleted)").rpartition("/")[2]
    return None


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")
