# SPDX-License-Identifier: Apache-2.0
"""A VM that has ended leaves no series in /metrics and nothing in the collector's memory."""

import asyncio
import os
from collections.abc import Collection, Iterable, Mapping, Sequence

import pytest

from ebpf.hooks import Hook
from ebpf.ledger import KernelSnapshot
from probes.host.hypervisors import Hypervisor, HypervisorType
from probes.host.kvm_stats import NO_STATISTICS, StatisticsReading
from probes.host.node import Accelerator, NodeVirtualization
from probes.host.process import Inspections, Scan, VmmId, VmmProcess
from probes.report.collector import NodeCollector
from probes.report.ports import HostEdges
from probes.serve import refresh
from probes.serve.endpoints import Endpoints
from probes.serve.refresh import RefreshCache
from probes.serve.routes import Request
from tests.support.doubles import Pods
from tests.support.facts import INTEL_HOST, KVM_AVAILABLE, entry, kernel, kvm_process, tcg_process

VMS = 1000
FIRST_TGID = 4_000_000
"""Above any real process: PID_MAX_LIMIT is 4194304, the default far lower."""


class ChangingNode:
    """A node whose VMs the test replaces. It serves as all three inputs of a collector."""

    def __init__(self) -> None:
        self.machine = "x86_64"
        self.kernel = "6.12.0-test"
        self.bcc_version = "0.26.0"
        self.running: dict[int, VmmProcess] = {}
        self.born: set[int] = set()

    def run(self, processes: Iterable[VmmProcess]) -> None:
        """Replace the running processes."""
        self.running = {process.vmm.tgid: process for process in processes}
        self.born |= self.running.keys()

    def read(self) -> KernelSnapshot:
        entries = (
            entry(
                tgid,
                first_ns=self.start_monotonic_ns(process.vmm) + 1,
                runs=7,
                userspace_exits=7,
                exits=9,
            )
            for tgid, process in self.running.items()
            if process.fds.any
        )
        return kernel(*entries)

    def need(self, hooks: Collection[Hook]) -> None:
        pass

    def read_statistics(
        self, wanted: Sequence[tuple[VmmId, int]], *, new_threads: Collection[int] | None
    ) -> Mapping[int, StatisticsReading]:
        return {vmm.tgid: StatisticsReading(NO_STATISTICS, None) for vmm, _ in wanted}

    def read_guest_times(self, vmms: Iterable[VmmId]) -> Mapping[int, float]:
        return {}

    def new_lives(self) -> frozenset[int]:
        born, self.born = frozenset(self.born), set()
        return born

    def forget(self, tgid: int, first_ns: int) -> None:
        raise AssertionError("the agent removed a record that the kernel's hook removes")

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        return vmm.start_ticks * 10_000_000

    def tgids(self) -> frozenset[int]:
        return frozenset(self.running)

    def scan(self, tgids: Collection[int], *, every_fd: bool) -> Scan:
        return Scan(found={tgid: self.running[tgid].vmm for tgid in tgids})

    def identify(self, tgid: int) -> VmmId | None:
        if tgid == os.getpid():
            return VmmId(tgid=tgid, start_ticks=1)
        process = self.running.get(tgid)
        return process.vmm if process else None

    def inspect(self, vmms: Collection[VmmId]) -> Inspections:
        return Inspections(processes={vmm: self.running[vmm.tgid] for vmm in vmms})

    def try_hypervisor(self, hypervisor: Hypervisor) -> Accelerator | None:
        return KVM_AVAILABLE if hypervisor.type is HypervisorType.KVM else None

    def virtualization(self) -> NodeVirtualization:
        return INTEL_HOST


def generation(number: int) -> list[VmmProcess]:
    """A thousand VMs. Generations share the PIDs and differ in names and start times."""
    make = (kvm_process, tcg_process)
    return [
        make[index % 2](
            VmmId(tgid=FIRST_TGID + index, start_ticks=10_000 + number),
            guest_name=f"default_vm-{number}-{index}",
        )
        for index in range(VMS)
    ]


def series(endpoints: Endpoints) -> list[str]:
    """The current series of /metrics, without values."""

    async def scrape() -> bytes:
        request = Request(path="/metrics")
        return (await endpoints.routes["/metrics"](request)).body

    text = asyncio.run(scrape()).decode()
    return [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]


def test_a_thousand_vms_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three generations of 1000 VMs the series are the same as before the first."""
    monkeypatch.setattr(refresh, "SHARED_FOR_S", 0.0)
    node = ChangingNode()
    collector = NodeCollector(
        node="node-1",
        version="test",
        ledger=node,
        ledger_error=None,
        host=HostEdges(processes=node, virtualization=node, emulation=Pods(), device=Pods()),
    )
    endpoints = Endpoints(RefreshCache(collector.refresh))
    before = series(endpoints)
    assert len(set(before)) == len(before)
    for number in range(3):
        node.run(generation(number))
        found = [line for line in series(endpoints) if line.startswith("kubevirt_vmi_")]
        assert all(f'name="vm-{number}-' in line for line in found)
        infos = [line for line in found if "hypervisor_info" in line]
        assert len(set(infos)) == len(infos) == VMS
    node.run(())
    assert series(endpoints) == before
    assert collector._tracker._memory.known == {}
    assert collector._tracker._memory.others == {}
