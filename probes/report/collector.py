# SPDX-License-Identifier: Apache-2.0
"""Refreshes the report of a node: reads the edges, remembers what is final, builds the report.

Owns what has to be remembered between two refreshes, and the order in which the edges are read.
Must not know what reports are for (server, live view, command line).
"""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping

from ebpf import clock
from ebpf.errors import LedgerReadError
from ebpf.hook_status import unattached
from ebpf.hooks import KVM_EXIT, KVM_VM_IOCTL
from ebpf.ledger import KernelSnapshot
from probes.host.hypervisors import (
    HYPERVISORS,
    Hypervisor,
    HypervisorType,
    entries_are_seen,
)
from probes.host.node import Accelerator
from probes.judge.emulation_tracker import EmulationTracker
from probes.judge.exit_counts import (
    ExitAccount,
    accounts_after,
    statistics_failed,
    statistics_wanted,
)
from probes.judge.exit_hook import exit_hook_needed
from probes.judge.guest_time import GuestTime, guest_times_after
from probes.judge.ports import Ledger
from probes.judge.tracked import TrackedProcess, Tracking
from probes.judge.tracker import ProcessTracker
from probes.report.builder import NodeRefresh, node_report
from probes.report.hook_history import HookHistory
from probes.report.model import NodeReport, Source
from probes.report.ports import HostEdges, Virtualization, VmiSource
from probes.vmi.attribution import Attributions, by_guest_name, by_pod
from probes.vmi.model import Vmi, VmiIndex, WatchStatus

TRIAL_INTERVAL_S = 60.0
"""The shortest time between two trials of the node's accelerator, which create an empty VM."""


class NodeCollector:
    """Refreshes the report of one node repeatedly. Not for use by two threads at once."""

    def __init__(
        self,
        *,
        node: str,
        version: str,
        ledger: Ledger | None,
        ledger_error: str | None,
        ledger_refused: bool = False,
        host: HostEdges,
        vmis: VmiSource | None = None,
    ) -> None:
        """Compose the collector from its edges.

        ledger_error says in one line why there is no ledger. ledger_refused says whether the kernel
        denied a permission. vmis names VMs in a cluster; None: standalone, libvirt's domain names
        do.
        """
        self._node = node
        self._version = version
        self._host = host.processes
        self._virtualization = host.virtualization
        self._vmis = vmis
        self._ledger = ledger
        self._ledger_error = ledger_error
        self._ledger_refused = ledger_refused
        self._dropped_total = 0
        self._tracker = ProcessTracker(host.processes, ledger)
        self._emulation = EmulationTracker(host.emulation, host.device)
        self._names = _NameCache(node)
        self._hooks = HookHistory()
        self._accounts: Mapping[int, ExitAccount] = {}
        """Accounts of exits, by tgid."""
        self._guest_times: Mapping[int, GuestTime] = {}
        """CPU time in guest code, by tgid; empty if it is not wanted."""
        self._trials = _AcceleratorTrials(host.virtualization)
        self._failed_refreshes = dict.fromkeys((Source.EBPF, Source.PROC, Source.KVM_STATISTICS), 0)
        """Refreshes in which a source failed."""
        if vmis is not None:
            self._failed_refreshes[Source.KUBE] = 0
        if ledger is not None:
            ledger.need([KVM_EXIT])

    def refresh(self) -> NodeReport:
        """Read everything now and report it.

        VMIs come first. A VMI is Running only after its process has started, so processes are read
        after VMIs and a new one cannot be missed.
        """
        index, watch = self._read_vmis()
        kernel, tracking = self._read_processes()
        self._count_exits(kernel, tracking)
        self._follow_guest_times(tracking)
        self._emulation.refresh(tracking.processes)
        attributions = self._names.of(tracking.processes, index)
        self._hooks = self._hooks.after(kernel)
        accelerators = self._trials.of(tracking.processes)
        return node_report(self._put_together(kernel, tracking, attributions, accelerators, watch))

    def _count_exits(self, kernel: KernelSnapshot, tracking: Tracking) -> None:
        """Read KVM's statistics of the processes that have them, and keep the accounts.

        The hook at kvm_exit is attached while a process needs it, for which it counts from then on.
        """
        wanted = statistics_wanted(self._accounts, tracking)
        sees_vcpus = any(hook.attached for hook in kernel.hooks if hook.is_of(KVM_VM_IOCTL))
        new_threads = frozenset[int]() if sees_vcpus else tracking.new_threads
        readings = self._host.read_statistics(wanted, new_threads=new_threads)
        self._accounts = accounts_after(self._accounts, tracking, readings)
        if statistics_failed(self._accounts, readings):
            self._failed_refreshes[Source.KVM_STATISTICS] += 1
        if self._ledger is not None:
            needed = exit_hook_needed(
                self._accounts, tracking, entries_are_seen=entries_are_seen(kernel.hooks)
            )
            self._ledger.need([KVM_EXIT] if needed else [])

    def _follow_guest_times(self, tracking: Tracking) -> None:
        """Read the CPU time that the processes on KVM spent in guest code, if it is wanted."""
        on_kvm = (
            process.vmm
            for process in tracking.processes
            if process.verdict.type is HypervisorType.KVM
        )
        readings = self._host.read_guest_times(on_kvm)
        if readings or self._guest_times:
            everyone = (process.vmm for process in tracking.processes)
            self._guest_times = guest_times_after(self._guest_times, everyone, readings)

    def _read_vmis(self) -> tuple[VmiIndex | None, WatchStatus | None]:
        """Read the VMIs of a cluster's node; (None, None): standalone."""
        if self._vmis is None:
            return None, None
        index, watch = self._vmis.index(), self._vmis.status()
        if watch.error is not None:
            self._failed_refreshes[Source.KUBE] += 1
        return index, watch

    def _read_processes(self) -> tuple[KernelSnapshot, Tracking]:
        """Read the ledger and the processes, in the order in which no change is missed.

        Marks come before the ledger and /proc, so a later mark is noticed by the next refresh.
        """
        lives = self._new_lives()
        kernel = self._read_ledger()
        return kernel, self._tracker.refresh(kernel, lives)

    def _new_lives(self) -> frozenset[int] | None:
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
                self._failed_refreshes[Source.EBPF] += 1
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
            hooks=unattached(error, refused=self._ledger_refused),
            error=error,
        )

    def _put_together(
        self,
        kernel: KernelSnapshot,
        tracking: Tracking,
        attributions: Attributions,
        accelerators: tuple[Accelerator, ...],
        watch: WatchStatus | None,
    ) -> NodeRefresh:
        """Put together what this refresh found out."""
        proc_readable = self._host.identify(os.getpid()) is not None
        if not proc_readable or tracking.pending:
            self._failed_refreshes[Source.PROC] += 1
        return NodeRefresh(
            version=self._version,
            node=self._node,
            kernel=self._host.kernel,
            machine=self._host.machine,
            taken_unix_s=time.time(),
            ledger=kernel,
            bcc_version=self._ledger.bcc_version if self._ledger else None,
            trusts=self._hooks.trusts(kernel),
            tracking=tracking,
            accounts=self._accounts,
            guest_times=self._guest_times,
            emulation=self._emulation.known,
            attributions=attributions,
            accelerators=accelerators,
            virtualization=self._virtualization.virtualization(),
            vmi_watch=watch,
            proc_readable=proc_readable,
            errors_total=dict(self._failed_refreshes),
        )


class _NameCache:
    """Remembers which process is which VM, until processes or VMIs change."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._attributions = Attributions.of({})
        self._processes: tuple[TrackedProcess, ...] = ()
        self._vmis: Mapping[tuple[str, str], Vmi] | None = None

    def of(self, processes: tuple[TrackedProcess, ...], index: VmiIndex | None) -> Attributions:
        """Name these processes. index holds the VMIs of a cluster; None: standalone."""
        vmis = index.vmis if index else None
        if processes != self._processes or vmis != self._vmis:
            if index is None:
                self._attributions = Attributions.of(by_guest_name(processes))
            else:
                self._attributions = Attributions.of(by_pod(processes, index, node=self._node))
            self._processes, self._vmis = processes, vmis
        return self._attributions


class _AcceleratorTrials:
    """Remembers the result of rare trials of the node's accelerators."""

    def __init__(self, virtualization: Virtualization) -> None:
        self._virtualization = virtualization
        self._last: dict[HypervisorType, Accelerator | None] = {}
        self._tried_at_s: dict[HypervisorType, float] = {}

    def of(self, processes: Iterable[TrackedProcess]) -> tuple[Accelerator, ...]:
        """Return the accelerators of the node.

        An accelerator on which a verified VM runs is available without a trial.
        """
        running = {process.verdict.type for process in processes if process.verdict.verified}
        found = (
            Accelerator(type=hypervisor.type, available=True)
            if hypervisor.type in running
            else self._tried(hypervisor)
            for hypervisor in HYPERVISORS
        )
        return tuple(accelerator for accelerator in found if accelerator is not None)

    def _tried(self, hypervisor: Hypervisor) -> Accelerator | None:
        """Return the outcome of the last trial, or of a new one if that was long ago.

        None: this node does not have the hypervisor.
        """
        kind, now_s = hypervisor.type, time.monotonic()
        if kind not in self._last or now_s - self._tried_at_s[kind] >= TRIAL_INTERVAL_S:
            self._last[kind] = self._virtualization.try_hypervisor(hypervisor)
            self._tried_at_s[kind] = now_s
        return self._last[kind]
