# SPDX-License-Identifier: Apache-2.0
"""The node as hvprobe sees it, in this process: real hooks, real /proc, the real collector."""

from typing import Self

from ebpf.hooks import KVM_EXIT, Hook
from ebpf.loader_process import LoaderProcess
from ebpf.session import Session
from probes.host.accelerators import Accelerators
from probes.host.device_age import DeviceAge
from probes.host.emulation_facts import EmulationReader
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.reader import Host
from probes.host.vcpu_counts import STATISTICS
from probes.report.collector import NodeCollector
from probes.report.model import NodeReport, ProcessReport
from probes.report.ports import HostEdges
from tests.support.kernel_statistics import open_statistics
from tests.support.kernel_world import wait_for


class Node:
    """A session and a collector, and the questions that tests ask about them."""

    def __init__(self, *, vcpu_statistics: bool = False, in_memory: bool = True) -> None:
        """in_memory says whether statistics may be read in the kernel's memory."""
        counts = 1 + len(STATISTICS) * vcpu_statistics
        with LoaderProcess() as loader:
            self.session = Session(loader=loader)
            self.statistics = open_statistics(counts=counts, loader=loader) if in_memory else None
        self.collector = NodeCollector(
            node="test",
            version="test",
            ledger=self.session,
            ledger_error=None,
            host=HostEdges(
                processes=Host(vcpu_statistics=vcpu_statistics, memory=self.statistics),
                virtualization=Accelerators(),
                emulation=EmulationReader(),
                device=DeviceAge(BY_TYPE[HypervisorType.KVM]),
            ),
        )

    def close(self) -> None:
        self.session.close()
        if self.statistics is not None:
            self.statistics.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, hook: Hook) -> bool:
        """Return whether this kernel let the hook be attached."""
        return any(status.attached for status in self.session.hooks if status.is_of(hook))

    def count_exits(self) -> None:
        """Attach the hook at kvm_exit until a refresh finds that no process needs it."""
        self.session.need([KVM_EXIT])

    def report(self) -> NodeReport:
        """Refresh and return the report."""
        return self.collector.refresh()

    def process(self, tgid: int) -> ProcessReport | None:
        """Refresh and return one process's report; None: the process is not shown."""
        return next(
            (process for process in self.report().processes if process.vmm.tgid == tgid), None
        )

    def verdict(self, tgid: int, kind: HypervisorType) -> tuple[HypervisorType, bool] | None:
        """Refresh and return type and verified of a process that really is of the given kind.

        None: the process is not shown yet. Raises AssertionError when the type is wrong: before it
        is known, it may only be unknown.
        """
        process = self.process(tgid)
        if process is None:
            return None
        verdict = process.verdict
        assert verdict.type in (kind, HypervisorType.UNKNOWN), f"wrong verdict: {process}"
        return verdict.type, verdict.verified

    def wait_for_verdict(self, tgid: int, kind: HypervisorType, *, verified: bool) -> None:
        """Refresh until the verdict is the expected one."""
        wait_for(
            lambda: self.verdict(tgid, kind) == (kind, verified),
            f"{tgid} is {kind}, verified: {verified}",
        )
