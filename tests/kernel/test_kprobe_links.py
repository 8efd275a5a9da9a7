# SPDX-License-Identifier: Apache-2.0
"""Kprobes where perf_event_open is denied: links of type kprobe_multi, if the kernel has them."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ebpf.errors import BpfUnavailableError
from ebpf.hooks import (
    KVM_DEV_IOCTL,
    KVM_USERSPACE_EXIT,
    KVM_VCPU_IOCTL,
    KVM_VM_IOCTL,
    Hook,
)
from ebpf.session import Session
from probes.host.hypervisors import HypervisorType
from tests.support.kernel_agent import Agent, samples_of
from tests.support.kernel_ledger import entry_with, of_form
from tests.support.kernel_world import EMULATED, KvmLoad, Qemu, Started, of_this_run, wait_for

ROOT = Path(__file__).resolve().parents[2]
FILTER = ROOT / "tests/support/without_perf_events.py"
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
KPROBES = (KVM_DEV_IOCTL, KVM_VM_IOCTL, KVM_VCPU_IOCTL)
NAMES = {hook.name for hook in KPROBES}
WITHOUT_PERF_EVENTS = (sys.executable, "-I", str(FILTER))
CAPABILITIES = "-all,+cap_39,+cap_38,+sys_ptrace,+dac_read_search,+sys_resource"
"""Those of the capabilities variant. bpf and perfmon by number: Debian 12's setpriv does not know
their names."""
CALLS = 20011
CALLING_KVM = """
import fcntl, os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
kvm = os.open("/dev/kvm", os.O_RDWR)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    try:
        fcntl.ioctl(kvm, 0xAE01, 0x7FFFFFFF)  # KVM_CREATE_VM of a type that does not exist
    except OSError:
        pass
print("done", flush=True)
sys.stdin.read()
"""
CALLING_MAPS = """
import ctypes, os, struct, sys
sys.path.insert(0, sys.argv[1])
from ebpf.bpf_syscall import Command, bpf, map_element
os.sched_setaffinity(0, {int(sys.argv[2])})
size = 1 << 20
array = struct.pack("=IIII", 2, 4, size, 1)  # BPF_MAP_TYPE_ARRAY with one value
fd = bpf(0, ctypes.create_string_buffer(array, len(array)))  # BPF_MAP_CREATE
key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(size)
print("ready", flush=True)
while True:
    map_element(Command.MAP_LOOKUP_ELEM, fd, ctypes.addressof(key), ctypes.addressof(value))
"""


def only_links() -> list[Hook]:
    """KVM's kprobes with no other point than the link."""
    return [of_form(hook, by_link=True) for hook in KPROBES]


@pytest.fixture(scope="module")
def no_links(kernel_required: None) -> str | None:
    """Why this kernel attaches no kprobe by a link; None: it does."""
    try:
        Session(hooks=only_links()).close()
    except BpfUnavailableError as err:
        return str(err)
    return None


@pytest.fixture
def links(no_links: str | None) -> None:
    """Skips the test on a kernel without such links."""
    if no_links:
        pytest.skip(no_links)


def doctor(before: Sequence[str]) -> dict[str, str]:
    """The doctor's lines by label, run by a command."""
    ran = subprocess.run(
        [*before, sys.executable, "-m", "probes", "doctor", "--standalone"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line[6:].partition(": ") for line in ran.stdout.splitlines()]
    return {label: finding for label, _, finding in lines}


@contextlib.contextmanager
def paranoid(level: int) -> Iterator[None]:
    """The machine with another kernel.perf_event_paranoid."""
    before = PARANOID.read_text()
    PARANOID.write_text(f"{level}\n")
    try:
        yield
    finally:
        PARANOID.write_text(before)


def check_activity(found: str, no_links: str | None, denied: str) -> None:
    """Compare what the doctor says of KVM's activity where perf events are denied.

    denied is what it says of the denial.
    """
    if no_links is None:
        assert f"{KVM_VCPU_IOCTL.name} (kprobe_multi)" in found
        assert "links replace the usual kprobes: kprobe kvm_vcpu_ioctl: not permitted" in found
        assert denied in found
    else:
        assert f"detected by {KVM_USERSPACE_EXIT.name} (raw_tracepoint)" in found
        assert denied in found or "CONFIG_KPROBES" in found
        assert "kprobe_multi kvm_vcpu_ioctl: this kernel has no such links" in found


@pytest.mark.every_kernel
def test_a_filter_denies_perf_events(no_links: str | None) -> None:
    """With a seccomp filter like the runtimes', kprobes are attached by links, or the log says why.

    A guest is KVM, verified, either way. The doctor names the form and the filter.
    """
    denied, name = "the seccomp filter in force denies", of_this_run("linked")
    with Agent("--standalone", before=WITHOUT_PERF_EVENTS) as agent, Qemu(f"lab_{name}"):
        attached = {
            dict(labels)["hook"]: dict(labels)["backend"]
            for labels, value in agent.samples("hvprobe_hook_attached").items()
            if value == 1.0
        }
        kprobes = {hook for hook, backend in attached.items() if backend == "kprobe"}
        assert kprobes == (set() if no_links else NAMES)
        assert attached[KVM_USERSPACE_EXIT.name] == "raw_tracepoint"

        def verified_as() -> str | None:
            text = agent.get("/metrics")
            verified = samples_of(text, "kubevirt_vmi_hypervisor_verified")
            if not any(dict(labels)["name"] == name and verified[labels] for labels in verified):
                return None
            (kind,) = [
                dict(labels)["hypervisor_type"]
                for labels in samples_of(text, "kubevirt_vmi_hypervisor_info")
                if dict(labels)["name"] == name
            ]
            return kind

        assert wait_for(verified_as, "the guest is verified") == HypervisorType.KVM.value
        log = "".join(agent.log)
        checks = json.loads(agent.get("/doctor"))["checks"]
    assert ("kprobe_multi kvm_vcpu_ioctl: this kernel has no such links" in log) is bool(no_links)
    (activity,) = [each["finding"] for each in checks if each["question"] == "KVM activity"]
    check_activity(activity, no_links, denied)


@pytest.mark.every_kernel
@pytest.mark.skipif(not EMULATED, reason="changes a setting of the machine: only in a guest")
def test_debians_level_denies_perf_events(no_links: str | None) -> None:
    """With the capabilities variant's capabilities and Debian's level links are used as well.

    The doctor names the level and the capability.
    """
    with paranoid(3):
        before = ("setpriv", f"--bounding-set={CAPABILITIES}", "--")
        activity = doctor(before)["KVM activity"]
    check_activity(activity, no_links, "CAP_SYS_ADMIN is missing, which kernel.perf_event_paranoid")


@pytest.mark.every_kernel
def test_links_count_exactly(links: None, kvmload: Path) -> None:
    """Every KVM_RUN, VM and vCPU is counted, once."""
    vcpus = 8
    with Session(hooks=[*only_links(), KVM_USERSPACE_EXIT]) as session:
        assert {status.form for status in session.hooks if status.hook.name in NAMES} == {
            "kprobe_multi"
        }
        load = KvmLoad(kvmload, "--vcpus", str(vcpus), "--userspace-exits", "10007")
        with load.finish_counted_part():
            made = load.totals["kvm_run"]
            entry = wait_for(lambda: entry_with(session, load.tgid, made), "all are counted")
            assert (entry.vms_created, entry.vcpus_created) == (1, vcpus)
            assert entry.counters["runs"] == made
        assert {status.missed_total for status in session.hooks} <= {0, None}


@pytest.mark.parametrize(
    "form", ["kprobe", pytest.param("kprobe_multi", marks=pytest.mark.every_kernel)]
)
def test_each_call_is_counted_or_missed(
    form: str, record_property: Callable[[str, object], None]
) -> None:
    """What a kprobe of either form does not count, the kernel counts as missed.

    A process beside it calls BPF maps without a pause. While that one is preempted in a call, the
    kernel skips the program.
    """
    cpu = str(max(os.sched_getaffinity(0)))
    with contextlib.ExitStack() as world:
        try:
            wanted = of_form(KVM_DEV_IOCTL, by_link=form == "kprobe_multi")
            session = world.enter_context(Session(hooks=[wanted]))
        except BpfUnavailableError as err:
            pytest.skip(str(err))
        if session.read().hooks[0].missed_total is None:
            pytest.skip("this kernel does not count the runs that it skips")
        maps = [sys.executable, "-c", CALLING_MAPS, str(ROOT), cpu]
        calls = [sys.executable, "-c", CALLING_KVM, cpu, str(CALLS)]
        assert world.enter_context(Started(maps, stderr=None)).line() == "ready\n"
        caller = world.enter_context(Started(calls, stderr=None))
        assert caller.line() == "ready\n"
        caller.say("\n")
        assert caller.line() == "done\n"
        snapshot = session.read()
        entry = snapshot.entries.get(caller.tgid)
        counted = entry.vms_created if entry is not None else 0
        missed = snapshot.hooks[0].missed_total
        record_property("calls", f"{counted} counted, {missed} missed of {CALLS}")
        assert counted + (missed or 0) == CALLS
