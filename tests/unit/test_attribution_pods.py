# SPDX-License-Identifier: Apache-2.0
"""Attribution of processes to VMs by the pods that the API server lists for each VMI."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.cgroup import PodCgroup, PodUid
from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess
from probes.judge.verdict import Verdict
from probes.vmi.attribution import Attribution, VmName, by_pod
from probes.vmi.model import EMPTY_INDEX, Vmi, VmiIndex, VmiPhase
from tests.support.facts import IS_A_PROBE, VMM, tracked

NODE, OTHER_NODE = "node-a", "node-b"
POD = PodUid("7b4c2f1e-93d5-4a60-8e17-c0ffee12ab34")
SECOND_POD = PodUid("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
FOREIGN_POD = PodUid("11111111-2222-3333-4444-555555555555")
ALPHA = VmName(namespace="default", name="alpha")

KVM = Verdict(type=HypervisorType.KVM, verified=True, reasons=(Reason.USERSPACE_EXITS_RECORDED,))
KVM_PAUSED = Verdict(type=HypervisorType.KVM, verified=False, reasons=(Reason.HOLDS_VCPUS,))
TCG = Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES,))
TCG_IDLE = Verdict(type=HypervisorType.TCG, verified=False, reasons=(Reason.TCG_IDLE,))
NOTHING = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_VCPU_THREADS,))

VMI = Vmi(
    namespace="default",
    name="alpha",
    phase=VmiPhase.RUNNING,
    node_name=NODE,
    active_pods=((POD, NODE),),
    architecture="amd64",
    uid="5a5a",
)
COMPUTE = PodCgroup(uid=POD, conmon=False)
QEMU = tracked(program="qemu-kvm", pod=COMPUTE)
OLDER, YOUNGER = VmmId(tgid=9000, start_ticks=10), VmmId(tgid=100, start_ticks=90_000)
ANONYMOUS = replace(
    QEMU, vmm=YOUNGER, named_like_qemu=False, program="firecracker", guest_name=None
)
"""A process of a sidecar container that runs its own guest."""


def index_of(*vmis: Vmi) -> VmiIndex:
    return VmiIndex.of(vmis)


def named(
    candidates: Sequence[TrackedProcess], *vmis: Vmi, node: str = NODE
) -> dict[str, VmmId | Reason | None]:
    """The process of each VM, or the reason why it has none."""
    found = by_pod(candidates, index_of(*vmis), node=node)
    for vm, attribution in found.items():
        assert vm == attribution.vm
        assert (attribution.vmm is None) == (attribution.unattributed_reason is not None)
    return {
        f"{vm.namespace}/{vm.name}": attribution.vmm or attribution.unattributed_reason
        for vm, attribution in found.items()
    }


def in_pod(uid: PodUid, candidate: TrackedProcess = QEMU) -> TrackedProcess:
    return replace(candidate, pod=replace(COMPUTE, uid=uid))


def test_a_vmi_and_its_process() -> None:
    """The pod's QEMU is the VM. The VMI's architecture is reported by the kernel's name."""
    found = by_pod([QEMU], index_of(VMI), node=NODE)
    assert found == {
        ALPHA: Attribution(vm=ALPHA, vmm=VMM, architecture="x86_64", pods=(POD,), uid="5a5a")
    }


def test_a_vmi_has_its_uid_without_a_process() -> None:
    """A VM without a process keeps the uid of its object."""
    (found,) = by_pod([], index_of(VMI), node=NODE).values()
    assert (found.vmm, found.uid) == (None, "5a5a")


@pytest.mark.parametrize("phase", [phase for phase in VmiPhase if phase is not VmiPhase.RUNNING])
def test_only_running_vmis_are_named(phase: VmiPhase) -> None:
    """A VMI that does not run yet, or no longer, has no series, even if its process exists."""
    assert named([QEMU], replace(VMI, phase=phase)) == {}


@pytest.mark.parametrize("node_name", [OTHER_NODE, None])
def test_only_vmis_of_this_node_are_named(node_name: str | None) -> None:
    """``status.nodeName`` decides, not the node where a pod or a process of the VMI is."""
    assert named([QEMU], replace(VMI, node_name=node_name)) == {}


def test_processes_of_no_vmi() -> None:
    """A process in another pod, or in none, is no VM, whatever name it gives itself."""
    others = [in_pod(FOREIGN_POD), replace(QEMU, pod=None)]
    assert named(others, VMI) == {"default/alpha": Reason.NO_PROCESS}
    assert named(others) == {}


def test_a_name_is_not_proof() -> None:
    """A QEMU in beta's pod that calls itself alpha is beta, and alpha has no process."""
    beta = replace(VMI, name="beta", active_pods=((SECOND_POD, NODE),))
    assert named([in_pod(SECOND_POD)], VMI, beta) == {
        "default/alpha": Reason.NO_PROCESS,
        "default/beta": VMM,
    }


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ((), Reason.NO_POD),
        (((POD, OTHER_NODE),), Reason.NO_POD),
        (((POD, ""),), Reason.NO_POD),
        (((SECOND_POD, NODE),), Reason.NO_PROCESS),
    ],
)
def test_running_without_a_process(pods: tuple[tuple[PodUid, str], ...], reason: Reason) -> None:
    """A VMI that runs here according to the API server is listed with the missing part."""
    assert named([QEMU], replace(VMI, active_pods=pods)) == {"default/alpha": reason}


def test_a_pod_that_two_vmis_claim_names_neither() -> None:
    """A pod cannot belong to two VMIs, so the claim is accepted for neither."""
    thief = replace(VMI, name="thief")
    assert named([QEMU], VMI, thief) == {
        "default/alpha": Reason.POD_CONTESTED,
        "default/thief": Reason.POD_CONTESTED,
    }


@pytest.mark.parametrize(
    ("kubevirt_name", "program", "architecture"),
    [
        ("amd64", "qemu-kvm", "x86_64"),
        ("arm64", "qemu-system-aarch64", "aarch64"),
        ("s390x", "qemu-kvm", "s390x"),
        ("arm64", "qemu-kvm", "aarch64"),
        ("amd64", "qemu-system-aarch64", "x86_64"),
        ("sparc", "qemu-kvm", "sparc"),
        (None, "qemu-kvm", None),
        (None, "qemu-system-aarch64", "aarch64"),
    ],
)
def test_architecture(kubevirt_name: str | None, program: str, architecture: str | None) -> None:
    """The VMI's architecture is reported as ``uname -m`` names it.

    If the VMI has none, the name of QEMU's program gives it.
    """
    candidate = replace(QEMU, program=program)
    named_vmi = replace(VMI, architecture=kubevirt_name)
    found = by_pod([candidate], index_of(named_vmi), node=NODE)
    assert found[ALPHA].architecture == architecture


@pytest.mark.parametrize(
    "name",
    ["alpha", "0", "a.b-c.d", "x" * 63, "x" * 253, "default-alpha"],
)
def test_any_legal_name(name: str) -> None:
    """Names of any length come from the API server, never from a command line."""
    assert named([QEMU], replace(VMI, name=name)) == {f"default/{name}": VMM}


MONITOR = replace(QEMU, vmm=YOUNGER, pod=replace(COMPUTE, conmon=True))
PROBE = replace(QEMU, vmm=YOUNGER, guest_name=None, verdict=IS_A_PROBE)
NESTED = replace(QEMU, vmm=YOUNGER, pod=replace(COMPUTE, nested=True))
IDLE_SIDECAR = replace(ANONYMOUS, verdict=NOTHING)
SLEEPER = replace(QEMU, vmm=YOUNGER, verdict=NOTHING)
"""A program named qemu-kvm that has the domain's name and does nothing."""
EMULATOR = replace(QEMU, vmm=YOUNGER, verdict=TCG)
"""A process with the domain's name whose threads are named like QEMU's and use the CPU."""


@pytest.mark.parametrize(
    ("guest", "other"),
    [
        (KVM, MONITOR),
        (KVM, PROBE),
        (KVM, NESTED),
        (KVM, IDLE_SIDECAR),
        (KVM, SLEEPER),
        (KVM, EMULATOR),
        (KVM, ANONYMOUS),
        (KVM_PAUSED, PROBE),
        (KVM_PAUSED, SLEEPER),
        (KVM_PAUSED, EMULATOR),
        (KVM_PAUSED, ANONYMOUS),
        (TCG, PROBE),
        (TCG, SLEEPER),
        (TCG, ANONYMOUS),
        (TCG, replace(ANONYMOUS, verdict=KVM_PAUSED)),
        (TCG, replace(EMULATOR, verdict=TCG_IDLE)),
        (TCG_IDLE, SLEEPER),
        (TCG_IDLE, NESTED),
    ],
)
def test_the_guest_among_the_processes_of_its_pod(guest: Verdict, other: TrackedProcess) -> None:
    """The domain's QEMU is the VM, whatever else is in the pod and in whichever order.

    If two processes have the domain's name, the VM is the one whose vCPUs the kernel recorded.
    """
    real = replace(QEMU, verdict=guest)
    for order in ([real, other], [other, real]):
        assert named(order, VMI) == {"default/alpha": VMM}


@pytest.mark.parametrize("other", [IDLE_SIDECAR, PROBE, MONITOR])
def test_a_guest_under_another_name(other: TrackedProcess) -> None:
    """If no process has the domain's name, the one that the kernel saw run a guest is the VM."""
    anonymous = replace(ANONYMOUS, vmm=VMM)
    for order in ([anonymous, other], [other, anonymous]):
        assert named(order, VMI) == {"default/alpha": VMM}


@pytest.mark.parametrize("verdict", [TCG_IDLE, NOTHING, TCG, KVM_PAUSED])
@pytest.mark.parametrize("sidecar", [KVM, KVM_PAUSED, TCG])
def test_the_process_with_the_name_is_the_vm(verdict: Verdict, sidecar: Verdict) -> None:
    """The process with the domain's name is the VM even beside a guest under another name.

    It does not matter how little is known about it.
    """
    qemu = replace(QEMU, verdict=verdict)
    renamed = replace(qemu, named_like_qemu=False, program="ld.so")
    other = replace(ANONYMOUS, verdict=sidecar)
    for real in (qemu, renamed):
        for order in ([real, other], [other, real]):
            assert named(order, VMI) == {"default/alpha": VMM}


def test_a_guest_that_cannot_be_identified() -> None:
    """A QEMU that hides its command line may have the name, so no other process is the VM.

    If it is alone in its pod, it can only be the guest.
    """
    hidden = replace(QEMU, guest_name=None, verdict=NOTHING, command_line_unread=True)
    for order in ([hidden, ANONYMOUS], [ANONYMOUS, hidden]):
        assert named(order, VMI) == {"default/alpha": Reason.SEVERAL_PROCESSES}
    assert named([hidden], VMI) == {"default/alpha": VMM}


@pytest.mark.parametrize("verdict", [NOTHING, TCG_IDLE, TCG, KVM_PAUSED, KVM])
@pytest.mark.parametrize("sidecar", [KVM, KVM_PAUSED, TCG])
def test_a_qemu_without_a_name_precedes_sidecars(verdict: Verdict, sidecar: Verdict) -> None:
    """A process can empty its command line, and QEMU still precedes a sidecar with a guest."""
    nameless = replace(QEMU, guest_name=None, verdict=verdict)
    other = replace(ANONYMOUS, verdict=sidecar)
    for order in ([nameless, other], [other, nameless]):
        assert named(order, VMI) == {"default/alpha": VMM}
    assert named([other], VMI) == {"default/alpha": YOUNGER}


@pytest.mark.parametrize("verdict", [KVM, KVM_PAUSED, TCG, NOTHING])
def test_a_forked_child_is_not_the_vm(verdict: Verdict) -> None:
    """A forked child is a copy in /proc. It is the VM only if it alone runs the guest."""
    parent = replace(QEMU, vmm=OLDER, verdict=verdict)
    child = replace(QEMU, vmm=YOUNGER, parent_tgid=OLDER.tgid, verdict=verdict)
    for order in ([parent, child], [child, parent]):
        assert named(order, VMI) == {"default/alpha": OLDER}
    runs = replace(child, verdict=KVM)
    for waiting in (KVM_PAUSED, NOTHING):
        assert named([replace(parent, verdict=waiting), runs], VMI) == {"default/alpha": YOUNGER}


@pytest.mark.parametrize("candidate", [MONITOR, PROBE, IDLE_SIDECAR])
def test_what_is_never_a_guest(candidate: TrackedProcess) -> None:
    """A pod that contains only such a process has no guest process."""
    assert named([candidate], VMI) == {"default/alpha": Reason.NO_PROCESS}


def test_a_nested_process_is_the_vm_if_it_is_the_only_one() -> None:
    """In a cluster inside a pod the cgroups of its pods are below that pod's cgroup."""
    assert named([NESTED], VMI) == {"default/alpha": YOUNGER}


def test_the_youngest_of_equal_processes_is_the_vm() -> None:
    """A QEMU that was started again in its pod is the VM, not the earlier one."""
    old = replace(QEMU, vmm=OLDER)
    assert named([old, QEMU], VMI) == named([QEMU, old], VMI) == {"default/alpha": VMM}


MOVING = replace(VMI, active_pods=tuple(sorted([(POD, NODE), (SECOND_POD, OTHER_NODE)])))
TARGET = in_pod(SECOND_POD, replace(QEMU, vmm=YOUNGER, verdict=KVM_PAUSED))


def test_a_migration_seen_from_its_source() -> None:
    """The VM belongs to the source until nodeName changes; then the source has no VM."""
    assert named([QEMU], MOVING) == {"default/alpha": VMM}
    assert named([QEMU], replace(MOVING, node_name=OTHER_NODE)) == {}


def test_a_migration_seen_from_its_target() -> None:
    """The target's QEMU is no VM until nodeName changes, and then it is the VM."""
    assert named([TARGET], MOVING, node=OTHER_NODE) == {}
    taken_over = replace(MOVING, node_name=OTHER_NODE)
    assert named([TARGET], taken_over, node=OTHER_NODE) == {"default/alpha": YOUNGER}
    alone = replace(taken_over, active_pods=((SECOND_POD, OTHER_NODE),))
    assert named([TARGET], alone, node=OTHER_NODE) == {"default/alpha": YOUNGER}


def test_a_failed_migration() -> None:
    """The source keeps the VM, and a process that is left on the target is no VM."""
    assert named([QEMU], VMI) == {"default/alpha": VMM}
    assert named([TARGET], VMI, node=OTHER_NODE) == {}


@pytest.mark.parametrize("returned", [KVM, KVM_PAUSED])
def test_back_from_a_migration(returned: Verdict) -> None:
    """If the pod that the VM left still terminates, the younger pod's process is the VM."""
    left = in_pod(SECOND_POD, replace(QEMU, vmm=OLDER))
    both = replace(VMI, active_pods=tuple(sorted([(POD, NODE), (SECOND_POD, NODE)])))
    back = replace(QEMU, verdict=returned)
    for order in ([back, left], [left, back]):
        assert named(order, both) == {"default/alpha": VMM}
    assert named([left], both) == {"default/alpha": OLDER}


def test_a_younger_pod_whose_guest_is_unknown_takes_over_no_vm() -> None:
    """While nothing is known about the younger process, the older one with a verdict is the VM."""
    left = in_pod(SECOND_POD, replace(QEMU, vmm=OLDER))
    unknown = replace(QEMU, vmm=YOUNGER, verdict=NOTHING)
    both = replace(VMI, active_pods=tuple(sorted([(POD, NODE), (SECOND_POD, NODE)])))
    assert named([left, unknown], both) == {"default/alpha": OLDER}


def test_a_restart_under_the_same_name() -> None:
    """The new VMI has a new pod, so an old process that still terminates is no VM."""
    restarted = replace(VMI, active_pods=((SECOND_POD, NODE),))
    assert named([QEMU], restarted) == {"default/alpha": Reason.NO_PROCESS}
    new = in_pod(SECOND_POD, replace(QEMU, vmm=YOUNGER, verdict=NOTHING))
    assert named([QEMU, new], restarted) == {"default/alpha": YOUNGER}


def test_a_process_that_outlives_its_vmi() -> None:
    """A process that still runs after the API server removed its VMI has no name."""
    assert named([QEMU]) == {}


def test_before_the_first_list() -> None:
    """No process has a name before the VMIs are known."""
    assert by_pod([QEMU], EMPTY_INDEX, node=NODE) == {}


# Events in any order.

VMS = [VmName(namespace=space, name=name) for space in ("lab", "ops") for name in ("a", "b")]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            "create run start_guest start_probe start_sidecar start_impostor end_guest "
            "begin_migration hand_over come_back fail_migration delete".split()
        ),
        st.sampled_from(VMS),
    ),
    max_size=60,
)


class Model:
    """The true state of one node, and what the API server and /proc show of it."""

    def __init__(self) -> None:
        self.vmis: dict[VmName, Vmi] = {}
        self.guests: dict[PodUid, TrackedProcess] = {}
        self.others: list[TrackedProcess] = []
        self.generations = 0
        self.ticks = 100

    def do(self, event: str, vm: VmName) -> None:
        vmi = self.vmis.get(vm)
        if event == "create":
            if vmi is None:
                pod = self._new_pod()
                self.vmis[vm] = replace(
                    VMI,
                    namespace=vm.namespace,
                    name=vm.name,
                    phase=VmiPhase.SCHEDULED,
                    active_pods=((pod, NODE),),
                )
            return
        if vmi is not None:
            getattr(self, f"_{event}")(vm, vmi)

    def expected(self) -> dict[VmName, VmmId | None]:
        """Every VM that runs here, with its true process."""
        found: dict[VmName, VmmId | None] = {}
        for vm, vmi in self.vmis.items():
            if vmi.phase is VmiPhase.RUNNING and vmi.node_name == NODE:
                here = [uid for uid, node in vmi.active_pods if node == NODE]
                guest = self.guests.get(here[0]) if here else None
                found[vm] = guest.vmm if guest else None
        return found

    def _new_pod(self) -> PodUid:
        self.generations += 1
        return PodUid(f"00000000-0000-0000-0000-{self.generations:012d}")

    def _process(self, vm: VmName, vmi: Vmi) -> TrackedProcess | None:
        here = [uid for uid, node in vmi.active_pods if node == NODE]
        if not here:
            return None
        self.ticks += 1
        return replace(
            QEMU,
            vmm=VmmId(tgid=1000 + self.ticks % 7, start_ticks=self.ticks),
            guest_name=f"{vm.namespace}_{vm.name}",
            pod=replace(COMPUTE, uid=here[0]),
        )

    def _run(self, vm: VmName, vmi: Vmi) -> None:
        self.vmis[vm] = replace(vmi, phase=VmiPhase.RUNNING)

    def _start_guest(self, vm: VmName, vmi: Vmi) -> None:
        guest = self._process(vm, vmi)
        if guest is not None and guest.pod is not None:
            self.guests[guest.pod.uid] = guest

    def _start_probe(self, vm: VmName, vmi: Vmi) -> None:
        probe = self._process(vm, vmi)
        self.others += [replace(probe, verdict=IS_A_PROBE)] if probe else []

    def _start_sidecar(self, vm: VmName, vmi: Vmi) -> None:
        sidecar = self._process(vm, vmi)
        if sidecar is not None:
            unnamed = replace(sidecar, named_like_qemu=False, guest_name=None, verdict=NOTHING)
            self.others.append(unnamed)

    def _start_impostor(self, vm: VmName, vmi: Vmi) -> None:
        """Another pod's process that has this VM's name."""
        impostor = self._process(vm, vmi)
        foreign = replace(COMPUTE, uid=FOREIGN_POD)
        self.others += [replace(impostor, pod=foreign)] if impostor else []

    def _end_guest(self, _: VmName, vmi: Vmi) -> None:
        for uid, _node in vmi.active_pods:
            self.guests.pop(uid, None)

    def _begin_migration(self, vm: VmName, vmi: Vmi) -> None:
        if len(vmi.active_pods) == 1 and vmi.node_name == NODE:
            target = (self._new_pod(), OTHER_NODE)
            self.vmis[vm] = replace(vmi, active_pods=(*vmi.active_pods, target))

    def _hand_over(self, vm: VmName, vmi: Vmi) -> None:
        """NodeName changes first. The old pod leaves activePods when it has ended."""
        if len(vmi.active_pods) == 2:
            self.vmis[vm] = replace(vmi, node_name=OTHER_NODE)

    def _come_back(self, vm: VmName, vmi: Vmi) -> None:
        if vmi.node_name == OTHER_NODE:
            self._end_guest(vm, vmi)
            self.vmis[vm] = replace(vmi, node_name=NODE, active_pods=((self._new_pod(), NODE),))

    def _fail_migration(self, vm: VmName, vmi: Vmi) -> None:
        if vmi.node_name == NODE:
            self.vmis[vm] = replace(vmi, active_pods=vmi.active_pods[:1])

    def _delete(self, vm: VmName, vmi: Vmi) -> None:
        """The object is removed, and a process may remain for a while."""
        del self.vmis[vm]


@given(EVENTS, st.randoms(use_true_random=False))
def test_any_order_of_events(events: list[tuple[str, VmName]], chance: Random) -> None:
    """After each event exactly the VMs that run here are listed, each with its process or none.

    Processes of deleted VMIs, probes, sidecars and processes of other pods are never VMs.
    """
    model = Model()
    for event, vm in events:
        model.do(event, vm)
        candidates = [*model.guests.values(), *model.others]
        chance.shuffle(candidates)
        found = by_pod(candidates, index_of(*model.vmis.values()), node=NODE)
        assert {vm: attribution.vmm for vm, attribution in found.items()} == model.expected()
