# SPDX-License-Identifier: Apache-2.0
"""libvirt's domain name shows which process is which VM."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess
from probes.judge.verdict import Verdict
from probes.vmi.attribution import Attribution, Attributions, VmName, by_guest_name, vm_name
from tests.support.facts import IS_A_PROBE, VMM, tracked

KVM = Verdict(type=HypervisorType.KVM, verified=True, reasons=(Reason.USERSPACE_EXITS_RECORDED,))
PAUSED = Verdict(type=HypervisorType.KVM, verified=False, reasons=(Reason.HOLDS_VCPUS,))
NOTHING = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_VCPU_THREADS,))
ALPHA = VmName(namespace="default", name="alpha")
PLAIN = tracked()


@pytest.mark.parametrize(
    ("guest_name", "vm"),
    [
        ("default_alpha", ("default", "alpha")),
        ("lab-1_beta.example.org", ("lab-1", "beta.example.org")),
        ("0_1", ("0", "1")),
        ("a" * 63 + "_" + "b" * 253, ("a" * 63, "b" * 253)),
        # KubeVirt does not make these.
        (None, None),
        ("", None),
        ("alpha", None),
        ("_alpha", None),
        ("default_", None),
        ("_", None),
        ("default_al_pha", None),
        ("Default_alpha", None),
        ("default_Alpha", None),
        ("-default_alpha", None),
        ("default-_alpha", None),
        ("default_-alpha", None),
        ("default_alpha-", None),
        ("default_al..pha", None),
        ("default_.alpha", None),
        ("de.fault_alpha", None),
        ("a" * 64 + "_alpha", None),
        ("default_" + "b" * 254, None),
        ("default_alpha\n", None),
        ("default\n_alpha", None),
        ('default_alpha"}', None),
        ("default_alphä", None),
        ("default_١", None),  # noqa: RUF001 - digits, but not ASCII ones
        ("default_a b", None),
        ("../../etc_passwd", None),
    ],
)
def test_vm_name(guest_name: str | None, vm: tuple[str, str] | None) -> None:
    """Only ``<namespace>_<name>``, with names that Kubernetes permits, names a VMI."""
    found = vm_name(guest_name)
    assert (found and (found.namespace, found.name)) == vm


@given(st.text())
def test_any_guest_name_has_an_answer(guest_name: str) -> None:
    """No domain name is an error, and a VMI's name from it is plain ASCII."""
    found = vm_name(guest_name)
    if found is not None:
        assert f"{found.namespace}_{found.name}" == guest_name
        assert guest_name.isascii()
        assert not set(guest_name) & set('"\\\n{},')


def test_one_vm() -> None:
    """A QEMU whose domain name has KubeVirt's form is that VM."""
    assert by_guest_name([PLAIN]) == {ALPHA: Attribution(vm=ALPHA, vmm=VMM, architecture="x86_64")}


@pytest.mark.parametrize(
    "candidate",
    [
        replace(PLAIN, guest_name=None),
        replace(PLAIN, guest_name="unnamed"),
        replace(PLAIN, named_like_qemu=False),
        replace(PLAIN, verdict=IS_A_PROBE),
    ],
)
def test_no_vm(candidate: TrackedProcess) -> None:
    """A process without such a name, one that is not QEMU, or a capability probe is no VM."""
    assert by_guest_name([candidate]) == {}


@pytest.mark.parametrize(
    ("program", "architecture"),
    [("qemu-system-aarch64", "aarch64"), ("qemu-kvm", None), (None, None), ("qemu-system-", None)],
)
def test_guest_architecture(program: str | None, architecture: str | None) -> None:
    """QEMU's program name gives the guest's architecture; any other name leaves it the node's."""
    found = by_guest_name([replace(PLAIN, program=program)])
    assert found[ALPHA].architecture == architecture


OLD, YOUNG = VmmId(tgid=900, start_ticks=10), VmmId(tgid=100, start_ticks=20)
LATE = VmmId(tgid=101, start_ticks=20)


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ((OLD, KVM), (YOUNG, PAUSED), OLD),
        ((OLD, KVM), (YOUNG, NOTHING), OLD),
        ((OLD, PAUSED), (YOUNG, NOTHING), OLD),
        ((OLD, NOTHING), (YOUNG, PAUSED), YOUNG),
        ((OLD, KVM), (YOUNG, KVM), YOUNG),
        ((OLD, NOTHING), (YOUNG, NOTHING), YOUNG),
        ((YOUNG, KVM), (LATE, KVM), LATE),
    ],
)
def test_several_processes_of_one_name(
    first: tuple[VmmId, Verdict], second: tuple[VmmId, Verdict], chosen: VmmId
) -> None:
    """The process with the better proof is the VM; among equals it is the youngest, in any order.

    A process that only has the name does not displace a VM that was seen to run.
    """
    candidates = [replace(PLAIN, vmm=vmm, verdict=verdict) for vmm, verdict in (first, second)]
    for order in (candidates, candidates[::-1]):
        assert by_guest_name(order)[ALPHA].vmm == chosen


def test_different_names_are_different_vms() -> None:
    """Processes with different names are different VMs."""
    other = replace(PLAIN, vmm=YOUNG, guest_name="lab_alpha")
    found = by_guest_name([PLAIN, other])
    assert {vm: attribution.vmm for vm, attribution in found.items()} == {
        ALPHA: VMM,
        VmName(namespace="lab", name="alpha"): YOUNG,
    }


# order


def test_naming_is_in_order_and_goes_both_ways() -> None:
    """VMs are sorted by namespace, then name, so that outputs do not jump between scrapes.

    The names by process contain only VMs that have a process.
    """
    names = [VmName(namespace=ns, name=name) for ns, name in ("ba", "ab", "aa")]
    found = {
        vm: Attribution(
            vm=vm,
            vmm=VmmId(tgid=number, start_ticks=1) if number else None,
            architecture=None,
        )
        for number, vm in enumerate(names)
    }
    naming = Attributions.of(found)
    assert [attribution.vm for attribution in naming.vms] == sorted(names)
    assert naming.names == {
        VmmId(tgid=1, start_ticks=1): names[1],
        VmmId(tgid=2, start_ticks=1): names[2],
    }
