# SPDX-License-Identifier: Apache-2.0
"""VMMs that are not QEMU, and QEMUs that are not KubeVirt's, on a node where VMIs run.

Debian has no package of them. So each is a program that runs a real guest on KVM under the name,
the command line and the names of vCPU threads that the VMM has.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_world import QEMU, KvmLoad, Qemu, Started, of_this_run, wait_for

pytestmark = pytest.mark.host_only
Json = dict[str, Any]
SANDBOX = "3f2a9c0d" * 8
"""A sandbox of Kata, named as containerd names pods."""


@dataclass(frozen=True, kw_only=True)
class Vmm:
    """A VMM: what its process looks like."""

    name: str
    comm: str
    """The name of its program, cut as the kernel cuts it."""
    arguments: tuple[str, ...]
    threads: str
    """Names of its vCPU threads, without their number."""


VMMS = (
    Vmm(
        name="Firecracker",
        comm="firecracker",
        arguments=("--id", "lab_fire", "--api-sock", "/run/firecracker.socket"),
        threads="fc_vcpu ",
    ),
    Vmm(
        name="cloud-hypervisor",
        comm="cloud-hyperviso",
        arguments=(
            *("--api-socket", "/run/ch.sock", "--kernel", "vmlinux", "--cpus", "boot=1"),
            *("--memory", "size=64M", "--disk", "path=lab_cloud.raw"),
        ),
        threads="vcpu",
    ),
    Vmm(
        name="crosvm",
        comm="crosvm",
        arguments=("run", "--name", "lab_crosvm", "--cpus", "1", "--mem", "64", "vmlinux"),
        threads="crosvm_vcpu",
    ),
    Vmm(
        name="kvmtool",
        comm="lkvm",
        arguments=("run", "--name", "lab_kvmtool", "-c", "1", "-m", "64", "-k", "bzImage"),
        threads="kvm-vcpu-",
    ),
    Vmm(
        name="Kata with its own VMM",
        comm="containerd-shim",
        arguments=("-namespace", "k8s.io", "-publish-binary", "containerd", "-id", SANDBOX),
        threads="vcpu",
    ),
)
PROGRAMS = {
    "cloud-hyperviso": "cloud-hypervisor",
    "containerd-shim": "containerd-shim-kata-v2",
}
"""Names of programs that the kernel cuts."""


@pytest.fixture(scope="module")
def running(
    kvmload: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Started]]:
    """All of them, and Kata's QEMU, beside a VM that libvirt has named."""
    folder = tmp_path_factory.mktemp("vmms")
    started: dict[str, Started] = {}
    for vmm in VMMS:
        program = folder / PROGRAMS.get(vmm.comm, vmm.comm)
        shutil.copy(kvmload, program)
        # A halted guest: its thread stays in KVM_RUN, which proves it to who comes later, too.
        options = ("--userspace-exits", "1009", "--then", "halt", "--threads", vmm.threads)
        started[vmm.name] = KvmLoad(program, *vmm.arguments, options=(*options, "--tenant"))
    for process in started.values():
        assert isinstance(process, KvmLoad)
        process.finish_counted_part()
    started["Kata with QEMU"] = Qemu(f"sandbox-{SANDBOX}")
    started["libvirt"] = Qemu(f"lab_{of_this_run('vmi')}")
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture(scope="module")
def agent(kernel_required: None) -> Iterator[Agent]:
    """An agent that is there first."""
    with Agent("--standalone", "--node", "test-node") as serving:
        yield serving


@pytest.fixture(scope="module")
def report(agent: Agent, running: dict[str, Started]) -> Json:
    """The agent's report, once it has seen each of them run."""

    def all_verified() -> Json | None:
        found: Json = json.loads(agent.get("/snapshot"))
        sure = {process["tgid"] for process in found["processes"] if process["verified"]}
        return found if {process.tgid for process in running.values()} <= sure else None

    return wait_for(all_verified, "all are verified")


COMMS = {**{vmm.name: vmm.comm for vmm in VMMS}, "Kata with QEMU": QEMU[:15]}
NAMES = tuple(COMMS)


@pytest.mark.parametrize("name", NAMES)
def test_shown_with_the_right_type(
    report: Json,
    running: dict[str, Started],
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """The VMM is shown under its own name as running on KVM, verified, and is no VMI."""
    tgid = running[name].tgid
    (process,) = [found for found in report["processes"] if found["tgid"] == tgid]
    assert process["comm"] == COMMS[name]
    assert (process["hypervisor_type"], process["verified"]) == ("kvm", True)
    assert (process["state"], process["namespace"], process["name"]) == ("unattributed", None, None)
    assert tgid not in {vmi["tgid"] for vmi in report["vmis"]}
    record_property("comm", process["comm"])
    record_property("verdict", f"kvm, verified: {process['reasons'][0]}")
    record_property("state", process["state"])


def test_counted_as_unattributed(agent: Agent, report: Json, running: dict[str, Started]) -> None:
    """``hvprobe_processes`` counts them as unattributed, and only libvirt's VM as attributed.

    Other VMMs of this machine are counted as well, so the metric is compared with a report.
    """
    states = {process["tgid"]: process["state"] for process in report["processes"]}
    ours = {name: states[process.tgid] for name, process in running.items()}
    assert ours == {**dict.fromkeys(NAMES, "unattributed"), "libvirt": "attributed"}

    def counted() -> bool:
        shown: Json = json.loads(agent.get("/snapshot"))
        now = [process["state"] for process in shown["processes"]]
        metric = agent.samples("hvprobe_processes")
        return all(count == now.count(dict(state)["state"]) for state, count in metric.items())

    assert wait_for(counted, "metric and report agree")


def test_live_names_them(report: Json, running: dict[str, Started]) -> None:
    """``hvprobe live`` shows each of them by its program and number, as kvm."""
    shown = subprocess.run(
        [sys.executable, "-m", "probes", "live", "--standalone", "--once"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in NAMES:
        tgid = str(running[name].tgid)
        (line,) = [line for line in shown.splitlines() if tgid in line.split()]
        assert "kvm" in line.split(), line
        assert COMMS[name] in line.split()
