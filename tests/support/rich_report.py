# SPDX-License-Identifier: Apache-2.0
"""One report that has a case of everything, for the renderers' tests."""

from dataclasses import replace

from ebpf.hooks import KVM_USERSPACE_EXIT, KVM_VCPU_IOCTL, SCHED_PROCESS_FREE
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator, Problem
from probes.host.node import Cause as ProblemCause
from probes.host.process import VmmId
from probes.judge.cause import Cause, CauseFound
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict
from probes.report.model import (
    CounterTrust,
    NodeReport,
    ProcessReport,
    ProcessState,
    Source,
    VcpuStatistics,
    VmiReport,
)
from probes.vmi.attribution import VmName
from tests.support.facts import ALL_HOOKS, INTEL_HOST, VMM, counted, health, hooks, trusts

KVM = Verdict(
    type=HypervisorType.KVM,
    verified=True,
    reasons=(Reason.VM_EXITS_RECORDED, Reason.USERSPACE_EXITS_RECORDED),
)
PAUSED = Verdict(type=HypervisorType.KVM, verified=False, reasons=(Reason.HOLDS_VCPUS,))
TCG = Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES,))
MSHV = Verdict(type=HypervisorType.MSHV, verified=True, reasons=(Reason.INSIDE_MSHV_RUN,))
NONE = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_PROCESS,))
PROBE = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.CAPABILITY_PROBE,))


ALLOWED = CauseFound(
    cause=Cause.EMULATION_ALLOWED,
    detail="virt-launcher-monitor (process 4790) was started with --allow-emulation",
)
UNREAD = CauseFound(
    cause=Cause.UNKNOWN, detail="QEMU's program is <b>, which names no architecture"
)


def vmi(
    name: str,
    verdict: Verdict,
    *,
    vmm: VmmId | None = VMM,
    fallback: bool | None = False,
    exits: tuple[int | None, int | None] = (None, None),
    source: ExitSource | None = None,
    cause: CauseFound | None = None,
) -> VmiReport:
    """A VM in namespace default; exits: to user space, all; source: what counts them."""
    return VmiReport(
        vm=VmName(namespace="default", name=name),
        verdict=verdict,
        fallback=fallback,
        vmm=vmm,
        counters=counted(userspace_exits=exits[0], exits=exits[1]),
        exits_source=source,
        cause=cause,
    )


def process(
    tgid: int,
    verdict: Verdict,
    *,
    state: ProcessState = ProcessState.ATTRIBUTED,
    name: str | None = None,
    source: ExitSource | None = None,
    cause: CauseFound | None = None,
) -> ProcessReport:
    """A QEMU; one with a name is that VM of namespace default. source: what counts its exits."""
    return ProcessReport(
        vmm=VmmId(tgid=tgid, start_ticks=6000),
        comm="qemu-system-x86",
        guest_name=f"default_{name}" if name else None,
        vm=VmName(namespace="default", name=name) if name else None,
        state=state,
        verdict=verdict,
        vcpus=2 if name else None,
        started_unix_s=1700000000.25,
        counters=counted(runs=3, userspace_exits=2, exits=41) if verdict is KVM else {},
        exits_source=source,
        cause=cause,
    )


def rich_report() -> NodeReport:
    """Every type, known and unknown counters, attached and missing hooks, errors."""
    return NodeReport(
        version="0.1.0",
        node="node-1",
        kernel="6.12.0-test",
        machine="x86_64",
        taken_unix_s=1700000100.5,
        accelerators=(
            Accelerator(type=HypervisorType.KVM, available=True),
            Accelerator(
                type=HypervisorType.MSHV,
                available=False,
                problem=Problem(cause=ProblemCause.DEVICE_ABSENT, detail="/dev/mshv: not here"),
            ),
        ),
        virtualization=INTEL_HOST,
        health=health(
            hooks=tuple(
                replace(status, missed_total=4) if status.is_of(KVM_USERSPACE_EXIT) else status
                for status in hooks(ALL_HOOKS - {KVM_VCPU_IOCTL, SCHED_PROCESS_FREE})
            ),
            trusts=trusts(exits=CounterTrust.BLIND),
            ledger_entries=3,
            ledger_dropped_total=17,
            errors_total={Source.EBPF: 1, Source.PROC: 0, Source.KVM_STATISTICS: 2},
        ),
        proc_readable=True,
        processes=(
            process(90, PROBE, state=ProcessState.PROBE),
            process(VMM.tgid, KVM, name="alpha", source=ExitSource.KVM_STATISTICS),
            process(4800, TCG, name="beta", cause=ALLOWED),
            process(4900, PAUSED, state=ProcessState.UNATTRIBUTED, source=ExitSource.TRACEPOINT),
        ),
        vmis=(
            vmi("alpha", KVM, exits=(2, 41), source=ExitSource.KVM_STATISTICS),
            vmi("beta", TCG, fallback=True, cause=ALLOWED),
            vmi("delta", MSHV, exits=(0, None)),
            vmi("epsilon", TCG, fallback=None, cause=UNREAD),
            vmi("gamma", PAUSED, exits=(0, 0), source=ExitSource.TRACEPOINT),
            vmi("zeta", NONE, vmm=None),
        ),
    )


def well_report() -> NodeReport:
    """A node with KVM alone, on which nothing needs attention."""
    plain = rich_report()
    return replace(
        plain,
        accelerators=plain.accelerators[:1],
        health=health(hooks=hooks(), trusts=trusts()),
        vmis=(vmi("alpha", KVM, exits=(2, 41)), vmi("gamma", PAUSED, exits=(0, 0))),
        processes=(),
    )


MEASURED = VcpuStatistics(
    counts={
        "halt": 900,
        "io": 340,
        "mmio": 5,
        "irq": 20,
        "hypercall": 0,
        "success": 1.5,
        "fail": 0.25,
        "nested": 12,
    },
    guest_cpu_s=86.5,
)
"""Statistics with a case of every count."""
MEASURED_ARM64 = VcpuStatistics(
    counts={"halt": 12, "mmio": 24, "hypercall": 3, "success": 1.5, "fail": 0.25}, guest_cpu_s=None
)
"""Statistics of a kernel that lacks some counts, and does not account guest time."""
UNCOUNTED = VcpuStatistics(counts={}, guest_cpu_s=3.5)
"""What is known of a VM whose exits the hook counts."""


def measured_report() -> NodeReport:
    """The rich report with all that is read on request, of VMs on KVM."""
    plain = rich_report()
    found = {"alpha": MEASURED, "gamma": MEASURED_ARM64}
    return replace(
        plain,
        processes=tuple(
            each._replace(vcpu_statistics=MEASURED if each.verdict is KVM else UNCOUNTED)
            if each.verdict.type is HypervisorType.KVM
            else each
            for each in plain.processes
        ),
        vmis=tuple(each._replace(vcpu_statistics=found.get(each.vm.name)) for each in plain.vmis),
    )
