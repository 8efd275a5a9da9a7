# SPDX-License-Identifier: Apache-2.0
"""Reports with fixed values for the live view's tests: a node in motion, second by second."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ebpf.hooks import KVM_DEV_IOCTL
from probes.host.hypervisors import HypervisorType
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict
from probes.render.live.frame_data import FrameData
from probes.render.live.history import History
from probes.report.model import NodeReport, ProcessReport, ProcessState
from tests.support.facts import ALL_HOOKS, COUNTER_NAMES, counted, hooks, trusts
from tests.support.rich_report import (
    ALLOWED,
    KVM,
    NONE,
    PAUSED,
    PROBE,
    TCG,
    process,
    rich_report,
    vmi,
)

BEGAN_UNIX_S = 1700000000.0
LIAR = Verdict(
    type=HypervisorType.KVM,
    verified=True,
    reasons=(Reason.USERSPACE_EXITS_RECORDED, Reason.CONTRADICTS_COMMAND_LINE),
)
RUNNING = Verdict(
    type=HypervisorType.KVM, verified=True, reasons=(Reason.VM_EXITS_RECORDED, Reason.GUEST_TIME)
)


def guest(tgid: int, verdict: Verdict, name: str | None = None, **changes: Any) -> ProcessReport:  # noqa: ANN401 - any field
    """A QEMU; with a name it is that VM of namespace default."""
    counters = {name: changes.pop(name) for name in COUNTER_NAMES if name in changes}
    plain = process(tgid, verdict, name=name)._replace(counters=counted(**counters), vcpus=2)
    return plain._replace(**changes)


def report(seconds: float, *processes: ProcessReport, **changes: Any) -> NodeReport:  # noqa: ANN401 - any field
    """What is seen so many seconds after the beginning."""
    plain = rich_report()
    return replace(
        plain,
        taken_unix_s=BEGAN_UNIX_S + seconds,
        processes=processes,
        vmis=(),
        health=replace(plain.health, hooks=hooks(), trusts=trusts()),
        **changes,
    )


def scene(*reports: NodeReport) -> FrameData:
    """The last of these reports, the others remembered."""
    history = History()
    for one in reports:
        history.add(one)
    return FrameData(report=reports[-1], history=history)


def busy_node() -> Sequence[NodeReport]:
    """Forty seconds of a node that has a case of everything."""
    return [_busy(second) for second in range(41)]


def _busy(second: int) -> NodeReport:
    exits = 1000 * second + 40 * second**2
    processes = (
        guest(812, PROBE, state=ProcessState.PROBE, comm="qemu-kvm", vcpus=None),
        guest(
            4711,
            RUNNING,
            "alpha",
            runs=200 * second,
            userspace_exits=190 * second,
            exits=exits,
            exits_source=ExitSource.KVM_STATISTICS,
        ),
        guest(4800, TCG, "beta", vcpus=4, cause=ALLOWED),
        guest(4900, PAUSED, guest_name="lab paused", state=ProcessState.UNATTRIBUTED, runs=0),
        guest(
            5000,
            LIAR,
            "liar",
            runs=7,
            userspace_exits=7,
            exits=9,
            exits_source=ExitSource.TRACEPOINT,
        ),
        guest(
            4194301,
            RUNNING,
            comm="kvm\x1b[2J\u202eevil\n",
            guest_name="日本語の仮想マシン\u0301 and a long tail that no column holds",
            runs=31 * second,
            userspace_exits=0,
            exits=123456 * second,
            exits_source=ExitSource.TRACEPOINT,
            started_unix_s=BEGAN_UNIX_S - 90000,
        ),
    )
    seen = report(second, *processes)
    return replace(
        seen,
        health=replace(
            seen.health,
            ledger_dropped_total=3,
            hooks=hooks(ALL_HOOKS - {KVM_DEV_IOCTL}),
        ),
        vmis=(
            vmi("alpha", RUNNING),
            vmi("beta", TCG, fallback=True, vmm=processes[2].vmm, cause=ALLOWED),
            vmi("liar", LIAR, vmm=processes[4].vmm),
            vmi("zeta", NONE, vmm=None),
        ),
    )


__all__ = ["KVM", "LIAR", "RUNNING", "busy_node", "guest", "report", "scene"]
