"""One look at the node: reads the edges, remembers what is settled, gives a NodeReport.

Owns what has to be remembered between two looks, and the order in which the edges are read. Must
not know who is looking (server, live view, command line).
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ebpf.errors import LedgerReadError
from ebpf.hooks import Question, unattached
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.assemble import (
    JudgedProcess,
    counter_trusts,
    missed_exits,
    process_reports,
    questions_fired,
    vmi_reports,
)
from probes.cgroup import pod_of
from probes.evidence import Evidence, gather, ledger_entry
from probes.identity import Attribution, Candidate, VmName, by_guest_name, by_pod
from probes.node import Accelerator
from probes.report import NodeReport, ProbeHealth, Source
from probes.sources import Ledger, Processes, Virtualization, VmiSource
from probes.verdict import Reason, judge
from probes.vmi import VmiIndex
from probes.vmm import HypervisorType, VmmId

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
        self._known: dict[VmmId, JudgedProcess] = {}
        self._fired: frozenset[Question] = frozenset()
        self._exits_missed = False
        self._errors: Counter[Source] = Counter({Source.EBPF: 0, Source.PROC: 0})
        self._departed_total: int | None = None
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
        kernel = self._read_ledger()
        self._fired |= questions_fired(kernel)
        self._known = {
            process.vmm: process
            for tgid in sorted(self._tgids(kernel))
            if (process := self._judged(tgid, kernel)) is not None
        }
        attributions = self._attributions(index)
        self._exits_missed |= missed_exits(kernel)
        trusts = counter_trusts(kernel, fired=self._fired, exits_missed=self._exits_missed)
        processes = process_reports(self._known.values(), attributions=attributions, trusts=trusts)
        accelerators = self._accelerators()
        proc_readable = self._host.identify(os.getpid()) is not None
        self._errors[Source.PROC] += not proc_readable
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
            ),
            proc_readable=proc_readable,
            processes=processes,
            vmis=vmi_reports(
                attributions, processes, accelerators=accelerators, machine=self._host.machine
            ),
        )

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
            taken_ns=time.monotonic_ns(),
            attached_ns=None,
            entries={},
            capacity=0,
            dropped_total=self._dropped_total,
            departed_total=self._departed_total or 0,
            hooks=unattached(error),
            error=error,
        )

    def _tgids(self, kernel: KernelSnapshot) -> set[int]:
        """Everything that may be a VMM now: the ledger's, those known, and those swept up.

        /proc is swept whole once, for what ran before the hooks; by name each time no hook tells
        of new programs; and by name after a QEMU ended, for one that daemonized itself lives on
        as a child that executed nothing.
        """
        tgids = set(kernel.entries) | {vmm.tgid for vmm in self._known}
        exec_hook = any(
            it.attached for it in kernel.hooks if it.hook.question is Question.BECOMES_VMM
        )
        if self._departed_total != kernel.departed_total or not exec_hook:
            tgids |= self._host.sweep(every_fd=self._departed_total is None)
        self._departed_total = kernel.departed_total
        return tgids - {os.getpid()}

    def _judged(self, tgid: int, kernel: KernelSnapshot) -> JudgedProcess | None:
        """The process with its verdict; a settled one is not looked at again."""
        vmm = self._host.identify(tgid)
        if vmm is None:
            self._forget_ended(tgid, kernel)
            return None
        start_ns = self._host.start_monotonic_ns(vmm)
        entry = ledger_entry(vmm, kernel, start_monotonic_ns=start_ns)
        known = self._known.get(vmm)
        settled = known if known and _still_settled(known, entry, kernel) else None
        if settled and not _vcpus_created(settled.ledger, entry):
            return settled if kernel.error else replace(settled, ledger=entry)
        process = self._host.inspect(vmm)
        if process is None:
            return None
        evidence = gather(process, kernel, start_monotonic_ns=start_ns)
        if not process.named_like_qemu and not _uses_accelerator(evidence):
            return None
        verdict = settled.verdict if settled else judge(evidence)
        return JudgedProcess(
            vmm=vmm,
            comm=process.comm,
            program=process.program,
            guest_name=process.command_line.guest_name,
            pod=pod_of(process.cgroup) if process.cgroup else None,
            named_like_qemu=process.named_like_qemu,
            capability_probe=verdict.reasons[0] is Reason.CAPABILITY_PROBE,
            vcpus=max(evidence.kvm_vcpus, evidence.mshv_vps, evidence.tcg_threads) or None,
            started_unix_s=time.time() - (time.monotonic_ns() - start_ns) / 1e9,
            verdict=verdict,
            ledger=entry,
            ledger_lost_events=evidence.ledger_lost_events,
        )

    def _forget_ended(self, tgid: int, kernel: KernelSnapshot) -> None:
        """Do what the kernel's own hook does where that hook could not be attached."""
        freed_hook = any(
            it.attached for it in kernel.hooks if it.hook.question is Question.IS_FREED
        )
        if self._ledger is not None and tgid in kernel.entries and not freed_hook:
            self._ledger.forget(kernel.entries[tgid])

    def _attributions(self, index: VmiIndex | None) -> Mapping[VmName, Attribution]:
        candidates = [
            Candidate(
                vmm=process.vmm,
                named_like_qemu=process.named_like_qemu,
                program=process.program,
                guest_name=process.guest_name,
                capability_probe=process.capability_probe,
                verdict=process.verdict,
                pod=process.pod,
            )
            for process in self._known.values()
        ]
        if index is None:
            return by_guest_name(candidates)
        return by_pod(candidates, index, node=self._node)

    def _accelerators(self) -> tuple[Accelerator, ...]:
        """KVM is there when a VM is seen to run on it; otherwise it is tried, rarely."""
        for process in self._known.values():
            if process.verdict.type is HypervisorType.KVM and process.verdict.verified:
                return (Accelerator(type=HypervisorType.KVM, available=True, reason=None),)
        now_s = time.monotonic()
        if self._trial is None or now_s - self._tried_at_s >= TRIAL_INTERVAL_S:
            self._trial = self._virtualization.try_kvm()
            self._tried_at_s = now_s
        return (self._trial,)


def _still_settled(known: JudgedProcess, entry: LedgerEntry | None, kernel: KernelSnapshot) -> bool:
    """Whether the verdict stands: the process executed nothing new and the kernel agrees.

    Executing a program ends a record and, if it is a VMM, begins another. A ledger that could not
    be read says nothing of it.
    """
    if kernel.error:
        return known.verdict.settled
    before = known.ledger
    same_program = (
        before.first_ns == (entry.first_ns if entry else None)
        if before
        else entry is None or entry.exec_ns is None
    )
    ran = None if entry is None else _recorded_type(entry)
    contradicted = ran is not None and known.verdict.type is not ran
    return known.verdict.settled and same_program and not contradicted


def _uses_accelerator(evidence: Evidence) -> bool:
    recorded = evidence.ledger is not None and _recorded_type(evidence.ledger) is not None
    return evidence.kvm_fds or evidence.mshv_fds or recorded


def _vcpus_created(before: LedgerEntry | None, now: LedgerEntry | None) -> bool:
    """Whether vCPUs were added since: the process is looked at again, its verdict stands."""
    return now is not None and now.vcpus_created != (before.vcpus_created if before else 0)


def _recorded_type(entry: LedgerEntry) -> HypervisorType | None:
    """The accelerator the kernel saw a process use; None: none."""
    if entry.ran_kvm:
        return HypervisorType.KVM
    return HypervisorType.MSHV if entry.mshv_runs else None
