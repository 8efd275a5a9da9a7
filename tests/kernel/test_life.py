# SPDX-License-Identifier: Apache-2.0
"""Processes that come, go, come back, and pretend: each is judged as what it is."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ebpf.hooks import KVM_VM_IOCTL, SCHED_PROCESS_FORK, SCHED_PROCESS_FREE
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason
from probes.report.model import VmiReport
from tests.support.kernel_agent import ROOT
from tests.support.kernel_ledger import wait_for_removal
from tests.support.kernel_node import Node
from tests.support.kernel_world import (
    MACHINE,
    QEMU,
    KvmLoad,
    Qemu,
    Started,
    machine_arguments,
    of_this_run,
    wait_for,
)

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def qemu_version() -> tuple[int, int]:
    """Return the major and minor version of this machine's QEMU."""
    said = subprocess.run([QEMU, "--version"], capture_output=True, check=True, text=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


def vmi(node: Node, name: str) -> VmiReport | None:
    return next((report for report in node.report().vmis if report.vm.name == name), None)


@pytest.mark.host_only
def test_agent_restarted(kvmload: Path, new_node: Callable[[], Node]) -> None:
    """A restarted agent reaches the same verdicts about the same processes."""
    with (
        Qemu("default_alpha") as kvm,
        Qemu("lab_beta", accel=("tcg",)) as tcg,
        KvmLoad(kvmload, "--userspace-exits", "7", "--then", "halt").finish_counted_part() as load,
    ):
        for _ in range(2):
            node = new_node()
            node.wait_for_verdict(kvm.tgid, HypervisorType.KVM, verified=True)
            node.wait_for_verdict(tcg.tgid, HypervisorType.TCG, verified=True)
            node.wait_for_verdict(load.tgid, HypervisorType.KVM, verified=True)
            node.close()


@pytest.mark.every_kernel
def test_vm_restarted_under_the_same_name(node: Node) -> None:
    """A VM that restarts with another accelerator is judged by the new one."""
    name = of_this_run("again")
    for accel, kind in (("kvm", "kvm"), ("tcg", "tcg"), ("kvm", "kvm")):
        with Qemu(f"default_{name}", accel=(accel,)):
            wait_for(
                lambda: (report := vmi(node, name)) is not None and report.verdict.verified,
                f"the VM is verified as {kind}",
            )
            again = vmi(node, name)
            assert again is not None
            assert again.verdict.type.value == kind
        wait_for(lambda: vmi(node, name) is None, "the VM is gone")


def test_two_processes_with_the_same_guest_name(node: Node) -> None:
    """The VM is the process with the better proof; the other one is reported without a VM."""
    name = of_this_run("twin")
    with Qemu(f"default_{name}", "-S") as paused, Qemu(f"default_{name}") as running:
        node.wait_for_verdict(running.tgid, HypervisorType.KVM, verified=True)
        node.wait_for_verdict(paused.tgid, HypervisorType.KVM, verified=False)
        twins = [report for report in node.report().vmis if report.vm.name == name]
        assert [twin.vmm.tgid for twin in twins if twin.vmm] == [running.tgid]
        shown = {process.vmm.tgid: process.state.value for process in node.report().processes}
        assert (shown[running.tgid], shown[paused.tgid]) == ("attributed", "unattributed")


@pytest.mark.every_kernel
def test_a_vmm_killed_in_mid_run_leaves_no_record(node: Node, kvmload: Path) -> None:
    """After SIGKILL with vCPU threads inside KVM_RUN, the record is gone with the process."""
    with KvmLoad(
        kvmload, "--vcpus", "8", "--userspace-exits", "80", "--then", "spin"
    ).finish_counted_part() as load:
        assert load.tgid in node.session.read().entries
        load.popen.send_signal(signal.SIGKILL)
        load.popen.wait()
    wait_for_removal(node.session, load.tgid)
    assert node.process(load.tgid) is None


@pytest.mark.every_kernel
def test_main_thread_may_end_before_its_vcpus(node: Node, kvmload: Path) -> None:
    """Record, verdict and counts outlive the main thread while vCPU threads still run."""
    with KvmLoad(
        kvmload, "--userspace-exits", "7", "--then", "leave-leader"
    ).finish_counted_part() as load:
        wait_for(
            lambda: node.session.read().entries[load.tgid].leader_exit_ns is not None,
            "the main thread has ended",
        )
        before = node.session.read().entries[load.tgid].counters["userspace_exits"]
        wait_for(
            lambda: node.session.read().entries[load.tgid].counters["userspace_exits"] > before,
            "the vCPU goes on",
        )
        node.wait_for_verdict(load.tgid, HypervisorType.KVM, verified=True)
    wait_for_removal(node.session, load.tgid)


@pytest.mark.every_kernel
def test_pid_used_again_by_another_program(node: Node, kvmload: Path) -> None:
    """An emulated QEMU whose tgid belonged to a user of KVM is judged as emulated."""
    with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
        node.wait_for_verdict(load.tgid, HypervisorType.KVM, verified=True)

    def same_number() -> Qemu | None:
        LAST_PID.write_text(str(load.tgid - 1))
        qemu = Qemu("lab_reused", accel=("tcg",))
        if qemu.tgid == load.tgid:
            return qemu
        qemu.kill()
        return None

    with wait_for(same_number, f"a process gets tgid {load.tgid} again") as qemu:
        node.wait_for_verdict(qemu.tgid, HypervisorType.TCG, verified=True)
        assert qemu.tgid not in node.session.read().entries


@pytest.mark.every_kernel
def test_executing_another_program_begins_a_new_life(node: Node, kvmload: Path) -> None:
    """A process that ran KVM and then executes an emulating QEMU is judged as emulated."""
    qemu = [QEMU, "-accel", "tcg", *machine_arguments("tcg"), "-display", "none", "-nodefaults"]
    naming = ["-name", "guest=lab_executed,debug-threads=on", "-m", "64"]
    with KvmLoad(kvmload, "--userspace-exits", "13", "--", *qemu, *naming) as process:
        process.finish_counted_part()
        node.wait_for_verdict(process.tgid, HypervisorType.KVM, verified=True)
        process.say("go on\n")

        wait_for(
            lambda: process.tgid not in node.session.read().entries,
            "it has executed QEMU, and its record is gone",
        )
        node.wait_for_verdict(process.tgid, HypervisorType.TCG, verified=True)
        assert process.tgid not in node.session.read().entries


@pytest.mark.every_kernel
def test_vcpu_hot_plugged(node: Node, tmp_path: Path) -> None:
    """A hot-plugged vCPU keeps the verdict, and is counted if the VM ioctl's hook is attached."""
    if MACHINE != "x86_64":
        pytest.skip("QEMU's virt machine has no vCPU hot-plug")
    path = tmp_path / "qmp"
    with Qemu(
        "default_growing",
        *("-smp", "1,maxcpus=2", "-machine", "q35"),
        *("-qmp", f"unix:{path},server=on,wait=off"),
    ) as qemu:
        node.wait_for_verdict(qemu.tgid, HypervisorType.KVM, verified=True)
        before = node.process(qemu.tgid)
        assert before is not None
        assert before.vcpus == 1
        hot_plug(path)

        def both_are_shown() -> bool:
            process = node.process(qemu.tgid)
            return process is not None and process.vcpus == 2

        if node.has(KVM_VM_IOCTL):
            wait_for(both_are_shown, "the second vCPU is shown")
        node.wait_for_verdict(qemu.tgid, HypervisorType.KVM, verified=True)


def hot_plug(path: Path) -> None:
    """Ask QEMU over QMP for one more vCPU."""
    with socket.socket(socket.AF_UNIX) as monitor:
        wait_for(path.exists, "QEMU's monitor socket is there")
        monitor.connect(str(path))
        answers = monitor.makefile("r")
        assert "QMP" in json.loads(answers.readline())

        def ask(command: str, **arguments: object) -> object:
            monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            while "event" in (answer := json.loads(answers.readline())):
                continue
            assert "return" in answer, answer
            return answer["return"]

        ask("qmp_capabilities")
        slots = ask("query-hotpluggable-cpus")
        assert isinstance(slots, list)
        free = next(slot for slot in slots if "qom-path" not in slot)
        ask("device_add", driver=free["type"], id="second", **free["props"])


@pytest.mark.host_only
def test_without_bpf_kvm_is_still_proven_and_tcg_inferred(kvmload: Path) -> None:
    """If BPF is not permitted, /proc proves KVM, TCG is inferred, and the report says so."""
    without = ["setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon"]
    with (
        Qemu("lab_beta", accel=("tcg",)) as tcg,
        KvmLoad(kvmload, "--userspace-exits", "7", "--then", "halt").finish_counted_part() as kvm,
    ):

        def seen() -> dict[int, tuple[str, bool]]:
            out = subprocess.run(  # a new hvprobe each time
                [*without, sys.executable, "-m", "probes", "snapshot", "--standalone"],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            )
            assert "no BPF: VMs on KVM are verified only by what /proc shows" in out.stderr
            report = json.loads(out.stdout)
            assert "not permitted" in report["health"]["ledger"]["error"]
            assert {hook["backend"] for hook in report["health"]["hooks"]} == {"none"}
            return {
                process["tgid"]: (process["hypervisor_type"], process["verified"])
                for process in report["processes"]
            }

        expected = {tcg.tgid: ("tcg", False), kvm.tgid: ("kvm", True)}
        wait_for(lambda: expected.items() <= seen().items(), "both are judged without BPF")


@pytest.mark.every_kernel
def test_a_forked_child_is_another_process(node: Node) -> None:
    """A child that inherits KVM's descriptors and cannot use them is not taken for its parent."""
    program = """
import fcntl, os, sys
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)
vcpu = fcntl.ioctl(vm, 0xAE41, 0)
child = os.fork()
if child == 0:
    try:
        fcntl.ioctl(vcpu, 0xAE80, 0)
    except OSError as err:
        os.write(1, b"%d\\n" % err.errno)
    sys.stdin.read()
    os._exit(0)
os.write(1, b"%d\\n" % child)
"""
    with PythonProcessWithLines(program) as parent:
        said = {int(parent.line()) for _ in range(2)}
        said.discard(errno.EIO)
        (child,) = said
        shown = node.process(child)
        os.kill(child, signal.SIGKILL)
        assert shown is None or not shown.counters.get("userspace_exits")
        assert shown is None or not shown.verdict.verified


class PythonProcessWithLines(Started):
    """A Python program whose lines the test reads."""

    def __init__(self, program: str) -> None:
        super().__init__([sys.executable, "-c", program + "\nsys.stdin.read()\n"], stderr=None)


@pytest.mark.every_kernel
def test_needs_no_tracefs(node: Node) -> None:
    """The hooks that need tracefs are attached exactly where tracefs can be read."""
    readable = any(
        (Path(root) / "events/sched/sched_process_free/format").exists()
        for root in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
    )
    assert node.has(SCHED_PROCESS_FREE) == readable
    assert node.has(SCHED_PROCESS_FORK) == readable
    assert (node.session.new_lives() is not None) == readable


@pytest.mark.every_kernel
def test_statistics_that_qemu_holds_open_are_proof(new_node: Callable[[], Node]) -> None:
    """QEMU since 8.1 keeps its vCPUs' statistics open: KVM's own count proves a late VM."""
    if qemu_version() < (8, 1):
        pytest.skip("this QEMU keeps no statistics open")
    with Qemu("default_counted") as qemu:

        def holds_statistics() -> bool:
            links = [str(fd.readlink()) for fd in Path(f"/proc/{qemu.tgid}/fd").iterdir()]
            return any("kvm-vcpu-stats" in link for link in links)

        new_node().wait_for_verdict(qemu.tgid, HypervisorType.KVM, verified=True)
        if not holds_statistics():
            pytest.skip("this QEMU keeps no statistics open")
        shown = new_node().process(qemu.tgid)
        assert shown is not None
        assert Reason.VCPU_STATISTICS in shown.verdict.reasons
