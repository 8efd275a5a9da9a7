"""One look at the node: reads the edges, remembers what is final, gives a NodeReport.

Owns what has to be remembered between two looks, and the order in which the edges are read. Must
not know who is looking (server, live view, command line).
"""

import contextlib
import logging
import os
import time
from collections import Counter

from ebpf import clock
from ebpf.errors import LedgerReadError
from ebpf.hooks import unattached
from ebpf.ledger import KernelSnapshot
from probes.assemble import (
    FiredHook,
    TrackedProcess,
    counter_trusts,
    hooks_fired,
    missed_exits,
    process_reports,
    vmi_reports,
)
from probes.identity import Candidate, Naming, by_guest_name, by_pod
from probes.node import Accelerator
from probes.report import NodeReport, ProbeHealth, Source
from probes.sources import Ledger, Processes, Virtualization, VmiSource
from probes.tracker import ProcessTracker
from probes.vmi import VmiIndex
from probes.vmm import HypervisorType

log = logging.getLogger(__name__)

TRIAL_INTERVAL_S = 60.0
"""How often at most the node's accelerator is tried by creating an empty VM."""


class Observer:
    """Looks at one node, again and again. Not for use by two threads at once."""

    def __init__(
        self,
        *,
        node: str,
        version: str,
        ledger: Ledger | None,
        ledger_error: str | None,
        processes: Processes,
        virtualization: Virtualization,
        vmis: VmiSource | None = None,
    ) -> None:
        """Give ledger_error where there is no ledger: one line that says why.

        vmis names VMs in a cluster; None: standalone, libvirt's domain names do.
        """
        self._node = node
        self._version = version
        self._ledger = ledger
        self._ledger_error = ledger_error
        self._host = processes
        self._virtualization = virtualization
        self._vmis = vmis
        self._tracker = ProcessTracker(processes, ledger)
        self._naming = Naming.of({})
        self._named: tuple[object, object] = (None, None)
        """The processes and the VMIs that self._naming was made of."""
        self._fired: frozenset[FiredHook] = frozenset()
        self._exits_missed = False
        self._errors: Counter[Source] = Counter({Source.EBPF: 0, Source.PROC: 0})
        self._dropped_total = 0
        self._trial: Accelerator | None = None
        self._tried_at_s = -TRIAL_INTERVAL_S

    def look(self) -> NodeReport:
        """Read everything now and report it.

        The VMIs first: the process of one that is Running has started before the API server says
        so, hence a process read later is not missed for being young.
        """
        index = self._vmis.index() if self._vmis else None
        watch = self._vmis.status() if self._vmis else None
        if watch is not None:
            self._errors[Source.KUBE] += watch.error is not None
        lives = self._new_lives()
        kernel = self._read_ledger()
        self._fired |= hooks_fired(kernel)
        known = self._tracker.refresh(kernel, lives)
        naming = self._names(known, index)
        self._exits_missed = self._exits_missed or missed_exits(kernel)
        trusts = counter_trusts(kernel, fired=self._fired, exits_missed=self._exits_missed)
        processes = process_reports(known, entries=kernel.entries, names=naming.names)
        accelerators = self._accelerators(known)
        proc_readable = self._host.identify(os.getpid()) is not None
        self._errors[Source.PROC] += not proc_readable or self._tracker.pending > 0
        return NodeReport(
            version=self._version,
            node=self._node,
            kernel=self._host.kernel,
            machine=self._host.machine,
            taken_unix_s=time.time(),
            accelerators=accelerators,
            virtualization=self._virtualization.virtualization(),
            health=ProbeHealth(
                hooks=kernel.hooks,
                exits_trust=trusts.exits,
                userspace_exits_trust=trusts.userspace_exits,
                ledger_entries=len(kernel.entries),
                ledger_capacity=kernel.capacity,
                ledger_dropped_total=kernel.dropped_total,
                ledger_error=kernel.error,
                bcc_version=self._ledger.bcc_version if self._ledger else None,
                errors_total=dict(self._errors),
                vmi_watch=watch,
                processes_pending=self._tracker.pending,
            ),
            proc_readable=proc_readable,
            processes=processes,
            vmis=vmi_reports(
                naming.vms,
                processes,
                accelerators=accelerators,
                machine=self._host.machine,
                pending=self._tracker.pending,
            ),
        )

    def _new_lives(self) -> frozenset[int] | None:
        """Marks come before the ledger and /proc: what is marked later is seen next time."""
        if self._ledger is not None:
            with contextlib.suppress(LedgerReadError):  # reading the ledger fails as well
                return self._ledger.new_lives()
        return None

    def _read_ledger(self) -> KernelSnapshot:
        error = self._ledger_error or "there is no ledger"
        if self._ledger is not None:
            try:
                read = self._ledger.read()
            except LedgerReadError as err:
                self._errors[Source.EBPF] += 1
                error = str(err)
            else:
                self._dropped_total = read.dropped_total
                return read
        return KernelSnapshot(
            taken_ns=clock.monotonic_ns(),
            attached_ns=None,
            entries={},
            capacity=0,
            dropped_total=self._dropped_total,
            hooks=unattached(error),
            error=error,
        )

    def _names(self, known: tuple[TrackedProcess, ...], index: VmiIndex | None) -> Naming:
        """Which process is which VM; asked again when processes or VMIs have changed."""
        vmis = index.vmis if index else None
        if self._named[0] is not known or self._named[1] is not vmis:
            candidates = [
                Candidate(
                    vmm=process.vmm,
                    named_like_qemu=process.named_like_qemu,
                    program=process.program,
                    guest_name=process.guest_name,
                    capability_probe=process.capability_probe,
                    verdict=process.verdict,
                    pod=process.pod,
                    parent_tgid=process.parent_tgid,
                    command_line_unread=process.command_line_unread,
                )
                for process in known
            ]
            self._naming = Naming.of(
                by_guest_name(candidates)
                if index is None
                else by_pod(candidates, index, node=self._node)
            )
            self._named = (known, vmis)
        return self._naming

    def _accelerators(self, known: tuple[TrackedProcess, ...]) -> tuple[Accelerator, ...]:
        """KVM is there when a VM is seen to run on it; otherwise it is tried, rarely."""
        for process in known:
            if process.verdict.type is HypervisorType.KVM and process.verdict.verified:
                return (Accelerator(type=HypervisorType.KVM, available=True, reason=None),)
        now_s = time.monotonic()
        if self._trial is None or now_s - self._tried_at_s >= TRIAL_INTERVAL_S:
            self._trial = self._virtualization.try_kvm()
            self._tried_at_s = now_s
        return (self._trial,)
