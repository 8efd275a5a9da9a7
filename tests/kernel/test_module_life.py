# SPDX-License-Identifier: Apache-2.0
"""KVM's modules come and go under the agent. Only where they are modules and nobody needs them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.hooks import HOOKS, KVM, Backend, HookStatus, Question
from ebpf.session import Session
from probes.host.hypervisors import HypervisorType
from tests.support.kernel_node import Node
from tests.support.kernel_world import DEADLINE_S, KvmLoad, Qemu, wait_for

VENDORS = ("kvm_amd", "kvm_intel")


def modules_loaded() -> set[str]:
    return {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}


def vendor() -> str:
    """KVM's vendor module; skips where KVM is built in."""
    found = modules_loaded() & set(VENDORS)
    if not found or "kvm" not in modules_loaded():
        pytest.skip("KVM is built into this kernel")
    return found.pop()


def modprobe(*arguments: str) -> int:
    return subprocess.run(["modprobe", *arguments], check=False).returncode


@pytest.fixture
def module() -> Iterator[str]:
    """The vendor module, loaded again afterwards whatever happens."""
    if os.environ.get("HVPROBE_MODULE_TESTS") != "1":
        pytest.skip("unloads KVM: only in a machine of its own (HVPROBE_MODULE_TESTS=1)")
    name = vendor()
    yield name
    modprobe(name)
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")


def of_kvm(session: Session) -> list[HookStatus]:
    return [it for it in session.hooks if it.hook.driver == KVM]


def attached(session: Session) -> set[str]:
    return {it.hook.name for it in of_kvm(session) if it.attached}


def test_kvm_loaded_after_the_agent(
    module: str, kvmload: Path, new_node: Callable[[], Node]
) -> None:
    """Without KVM its hooks are inactive; at the first look after it is loaded they count."""
    assert modprobe("-r", module) == 0
    node = new_node()
    assert all(it.inactive and not it.attached for it in of_kvm(node.session))
    with Qemu("lab_beta", accel=("tcg",)) as tcg:
        node.wait_for_verdict(tcg.tgid, HypervisorType.TCG, verified=True)
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is there")
    node.report()
    assert attached(node.session) == {it.hook.name for it in of_kvm(node.session)}
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
    """The daily case, ``modprobe -r kvm_amd; modprobe kvm_amd nested=…``, works at once.

    The agent holds kvm.ko, not the vendor module; counting goes on exactly, nothing is doubled.
    """
    node = new_node()
    before = attached(node.session)
    assert modprobe("-r", module) == 0
    assert modprobe(module) == 0
    wait_for(Path("/dev/kvm").exists, "/dev/kvm is back")
    node.report()
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
    """Once the vendor module is gone, one look lets kvm.ko go; the look after its return attaches.

    That look counts as an attachment more for each hook, and what is counted is not doubled.
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
    assert attached(node.session) == wanted
    assert {it.attached_total for it in of_kvm(node.session)} == {2}
    with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
        wait_for(
            lambda: node.session.read().entries[load.tgid].counters["userspace_exits"] >= 1009,
            "all exits",
        )
        entry = node.session.read().entries[load.tgid]
        assert (entry.counters["runs"], entry.counters["userspace_exits"]) == (1009, 1009)


@pytest.mark.every_kernel
def test_a_kprobe_gone_dead_is_attached_again(module: str, kvmload: Path) -> None:
    """kvm.ko unloaded and loaded between two looks: a kprobe there is dead, without any error.

    Only kprobes are attached here, which do not hold the module. The look after it notices.
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
            assert load.tgid not in session.read().entries, "the kprobes were dead until this look"
            assert {it.attached_total for it in of_kvm(session)} == {2}
        with KvmLoad(kvmload, "--userspace-exits", "1009").finish_counted_part() as load:
            assert session.read().entries[load.tgid].counters["runs"] == 1009


def is_kprobe(backend: Backend) -> bool:
    return backend is Backend.KPROBE


def test_hooks_of_the_kernel_proper_stay(module: str, new_node: Callable[[], Node]) -> None:
    """KVM's coming and going leaves the hooks on processes alone."""
    node = new_node()
    assert modprobe("-r", module) == 0
    node.report()
    assert node.has(Question.EXECUTES)
    assert node.has(Question.ENDS)
