# SPDX-License-Identifier: Apache-2.0
"""Loading and unloading of KVM's modules while the agent runs.

The tests run only where KVM is a module and no other process needs it.
"""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.errors import BpfUnavailableError
from ebpf.hook_status import HookStatus
from ebpf.hooks import HOOKS, KVM, SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT, Backend
from ebpf.session import Session
from probes.host.accelerators import Accelerators
from probes.host.device_age import DeviceAge
from probes.host.emulation_facts import EmulationReader
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.kvm_support_reader import KvmSupportReader
from probes.host.node import Accelerator
from probes.host.node import Cause as Problem
from probes.host.reader import Host
from probes.judge.accelerator_absence import Absence, absence_of
from probes.judge.cause import Cause
from tests.support.kernel_ledger import of_form
from tests.support.kernel_node import Node
from tests.support.kernel_pods import why
from tests.support.kernel_world import DEADLINE_S, KvmLoad, Qemu, wait_for

ROOT = Path(__file__).resolve().parents[2]
VENDORS = ("kvm_amd", "kvm_intel")


def modules_loaded() -> set[str]:
    return {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}


def vendor() -> str:
    """KVM's vendor module. Skips the test where KVM is built into the kernel."""
    found = modules_loaded() & set(VENDORS)
    if not found or "kvm" not in modules_loaded():
        pytest.skip("KVM is built into this kernel")
    return found.pop()


def modprobe(*arguments: str) -> int:
    return subprocess.run(["modprobe", *arguments], check=False).returncode


@pytest.fixture
def module() -> Iterator[str]:
    """The vendor module, which is loaded again after the test even if it fails."""
    if os.environ.get("HVPROBE_MODULE_TESTS") != "1":
        pytest.skip("unloads KVM: only in a machine of its own (HVPROBE_MODULE_TESTS=1)")
    name = vendor()
    yield name
    modprobe(name)
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")


def of_kvm(session: Session) -> list[HookStatus]:
    return [status for status in session.hooks if status.hook.driver == KVM]


def attached(session: Session) -> set[str]:
    return {status.hook.name for status in of_kvm(session) if status.attached}


def test_kvm_loaded_after_the_agent(
    module: str, kvmload: Path, new_node: Callable[[], Node]
) -> None:
    """KVM's hooks are inactive without KVM, and count from the first refresh after it is loaded."""
    assert modprobe("-r", module) == 0
    node = new_node()
    assert all(status.inactive and not status.attached for status in of_kvm(node.session))
    with Qemu("lab_beta", accel=("tcg",)) as tcg:
        node.wait_for_verdict(tcg.tgid, HypervisorType.TCG, verified=True)
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is there")
    node.report()
    node.count_exits()
    assert attached(node.session) == {status.hook.name for status in of_kvm(node.session)}
    with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
        wait_for(
            lambda: node.session.read().entries[load.tgid].counters["userspace_exits"] >= 1009,
            "all exits",
        )
        entry = node.session.read().entries[load.tgid]
        assert (entry.counters["runs"], entry.counters["userspace_exits"]) == (1009, 1009)


@pytest.mark.every_kernel
def test_vendor_module_reloaded_under_the_agent(
    module: str, kvmload: Path, new_node: Callable[[], Node]
) -> None:
    """The usual ``modprobe -r kvm_amd; modprobe kvm_amd nested=…`` succeeds at once.

    The agent holds kvm.ko, not the vendor module. Counts stay exact, and nothing counts twice.
    """
    node = new_node()
    before = attached(node.session)
    assert modprobe("-r", module) == 0
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
    node.report()
    node.count_exits()
    assert attached(node.session) == before
    with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
        wait_for(
            lambda: node.session.read().entries[load.tgid].counters["userspace_exits"] >= 1009,
            "all exits",
        )
        entry = node.session.read().entries[load.tgid]
        assert (entry.counters["runs"], entry.counters["userspace_exits"]) == (1009, 1009)


def test_kvm_itself_reloaded_under_the_agent(
    module: str, kvmload: Path, new_node: Callable[[], Node]
) -> None:
    """The first refresh without the vendor module releases kvm.ko, so that it can be unloaded.

    The first refresh after its return attaches each hook a second time, and nothing counts twice.
    """
    node = new_node()
    wanted = attached(node.session)
    assert modprobe("-r", module) == 0
    node.report()
    assert attached(node.session) == set()
    wait_for(
        lambda: "kvm" not in modules_loaded() or modprobe("-r", "kvm") == 0, "kvm.ko is unloaded"
    )
    assert "kvm" not in modules_loaded()
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
    node.report()
    node.count_exits()
    assert attached(node.session) == wanted
    assert {status.attached_total for status in of_kvm(node.session)} == {2}
    with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
        wait_for(
            lambda: node.session.read().entries[load.tgid].counters["userspace_exits"] >= 1009,
            "all exits",
        )
        entry = node.session.read().entries[load.tgid]
        assert (entry.counters["runs"], entry.counters["userspace_exits"]) == (1009, 1009)


@pytest.mark.every_kernel
def test_a_dead_kprobe_is_attached_again(module: str, kvmload: Path) -> None:
    """A kprobe dies without an error when kvm.ko is reloaded between two reads of the ledger.

    Only kprobes, which do not hold the module, are attached here. The next read attaches them.
    """
    kprobes = [hook for hook in HOOKS if hook.driver == KVM and is_kprobe(hook.points[0].backend)]
    with Session(hooks=kprobes) as session:
        if not attached(session):
            pytest.skip("this kernel has no kprobes")
        assert modprobe("-r", module) == 0
        wait_for(
            lambda: "kvm" not in modules_loaded() or modprobe("-r", "kvm") == 0,
            "kvm.ko is unloaded",
            DEADLINE_S,
        )
        assert modprobe(module) == 0
        wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
        with KvmLoad(kvmload, "--userspace-exits", "13").finish_counted_part() as load:
            assert load.tgid not in session.read().entries, "the kprobes were dead until this read"
            assert {status.attached_total for status in of_kvm(session)} == {2}
        with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
            assert session.read().entries[load.tgid].counters["runs"] == 1009


def is_kprobe(backend: Backend) -> bool:
    return backend is Backend.KPROBE


def users_of_kvm() -> int:
    """How many hold kvm.ko: the vendor module, and what is attached to kvm.ko and keeps it."""
    return int(Path("/sys/module/kvm/refcnt").read_text())


@pytest.mark.every_kernel
def test_links_release_kvm(module: str, kvmload: Path) -> None:
    """Kprobes attached by links hold kvm.ko, as tracepoints do, until the vendor module is gone.

    The vendor module can be reloaded under them at once. Without it the next read of the ledger
    releases kvm.ko, which can then be unloaded, and after its return they count exactly.
    """
    kprobes = [hook for hook in HOOKS if hook.driver == KVM and is_kprobe(hook.points[0].backend)]
    before = users_of_kvm()
    try:
        session = Session(hooks=[of_form(hook, by_link=True) for hook in kprobes])
    except BpfUnavailableError as err:
        pytest.skip(str(err))
    with session:
        wanted = attached(session)
        assert wanted == {hook.name for hook in kprobes}
        assert users_of_kvm() == before + len(kprobes)
        assert modprobe("-r", module) == 0
        assert modprobe(module) == 0
        wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
        session.read()
        assert {status.attached_total for status in of_kvm(session)} == {1}
        assert modprobe("-r", module) == 0
        assert modprobe("-r", "kvm") != 0, "the links hold it"
        session.read()
        assert attached(session) == set()
        wait_for(
            lambda: "kvm" not in modules_loaded() or modprobe("-r", "kvm") == 0,
            "kvm.ko is unloaded",
            DEADLINE_S,
        )
        assert modprobe(module) == 0
        wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
        session.read()
        assert attached(session) == wanted
        assert {status.attached_total for status in of_kvm(session)} == {2}
        with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
            assert session.read().entries[load.tgid].counters["runs"] == 1009


def test_hooks_of_the_kernel_proper_stay(module: str, new_node: Callable[[], Node]) -> None:
    """The hooks on processes stay attached when KVM is unloaded."""
    node = new_node()
    assert modprobe("-r", module) == 0
    node.report()
    assert node.has(SCHED_PROCESS_EXEC)
    assert node.has(SCHED_PROCESS_EXIT)


@pytest.mark.every_kernel
def test_module_loaded_after_a_guest_started(module: str) -> None:
    """The cause of the guest's emulation is that its node's accelerator is younger."""
    age = DeviceAge(BY_TYPE[HypervisorType.KVM])
    assert modprobe("-r", module) == 0
    with Qemu("lab_early", accel=("tcg",)) as guest:
        vmm = wait_for(lambda: Host().identify(guest.tgid), "the guest is there")
        time.sleep(0.02)  # more than a clock tick, to which its start time is rounded
        assert age.observe() is None
        assert modprobe(module) == 0
        wait_for(Path("/dev/kvm").exists, "/dev/kvm is there")
        registered = age.observe()
        reader = EmulationReader()
        wait_for(
            lambda: (
                why(vmm, reader.read([vmm])[vmm], registered).cause is Cause.ACCELERATOR_ADDED_LATER
            ),
            "the cause is known, as soon as there is time to read the guest",
        )


def availability(dev_root: Path) -> Accelerator:
    """KVM as an agent finds it whose container has this /dev."""
    found = Accelerators(dev_root=dev_root).try_hypervisor(BY_TYPE[HypervisorType.KVM])
    assert found is not None
    return found


def doctor_on_kvm() -> str:
    """The doctor's line about KVM."""
    ran = subprocess.run(
        [sys.executable, "-m", "probes", "doctor", "--standalone"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = [line for line in ran.stdout.splitlines() if line[6:].startswith("KVM: ")]
    return line


@pytest.mark.every_kernel
def test_doctor_says_that_the_module_is_not_loaded(module: str) -> None:
    """Without the module the line about KVM names it and the command that loads it."""
    assert modprobe("-r", module) == 0
    line = doctor_on_kvm()
    assert line.startswith("fail  KVM: ")
    assert f"{module} is not loaded" in line
    assert f"; modprobe {module}, and name it in /etc/modules-load.d/kvm.conf" in line
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
    assert doctor_on_kvm().startswith("ok    KVM: works")


@pytest.mark.every_kernel
def test_kvm_is_available_without_a_device_file(module: str, tmp_path: Path) -> None:
    """An agent without /dev/kvm knows by sysfs whether KVM can be used, loaded or not."""
    assert modprobe("-r", module) == 0
    absent = availability(tmp_path)
    assert (absent.available, absent.problem and absent.problem.cause) == (
        False,
        Problem.DEVICE_ABSENT,
    )
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is there")
    found = availability(tmp_path)
    assert (found.available, found.problem and found.problem.cause) == (
        True,
        Problem.DEVICE_NOT_MOUNTED,
    )
    assert availability(Path("/dev")) == Accelerator(type=HypervisorType.KVM, available=True)


def test_a_device_file_without_a_driver(module: str, tmp_path: Path) -> None:
    """The file that systemd makes in advance opens nothing, and KVM is absent."""
    number = Path("/dev/kvm").stat().st_rdev
    assert modprobe("-r", module) == 0
    os.mknod(tmp_path / "kvm", 0o600 | stat.S_IFCHR, number)
    absent = availability(tmp_path)
    assert (absent.available, absent.problem and absent.problem.cause) == (
        False,
        Problem.DEVICE_ABSENT,
    )


@pytest.mark.every_kernel
def test_modprobe_is_forbidden_to_load_the_module(module: str) -> None:
    """The reason names the file in modprobe.d and its line, which modprobe obeys."""
    assert absence_of(KvmSupportReader().read()).reason is Absence.MODULE_FAILED, "it is loaded"
    rules = Path("/run/modprobe.d/hvprobe-test.conf")
    assert modprobe("-r", module) == 0
    assert absence_of(KvmSupportReader().read()).reason is Absence.NOT_LOADED
    rules.parent.mkdir(exist_ok=True)
    rules.write_text(f"install {module} /bin/false\n")
    try:
        found = absence_of(KvmSupportReader().read())
        refused = modprobe(module)
    finally:
        rules.unlink()
    assert refused != 0
    assert found.reason is Absence.FORBIDDEN
    assert f"{rules} keeps {module} from being loaded: `install {module} /bin/false`" in (
        found.sentence
    )
