# SPDX-License-Identifier: Apache-2.0
"""Which process is which VM, by the pods that the API server says are a VMI's."""

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
)
COMPUTE = PodCgroup(uid=POD, conmon=False)
QEMU = tracked(program="qemu-kvm", pod=COMPUTE)
OLDER, YOUNGER = VmmId(tgid=9000, start_ticks=10), VmmId(tgid=100, start_ticks=90_000)
ANONYMOUS = replace(
    QEMU, vmm=YOUNGER, named_like_qemu=False, program="firecracker", guest_name=None
)
"""A sidecar container that runs a guest of its own."""


def index_of(*vmis: Vmi) -> VmiIndex:
    return VmiIndex.of(vmis)


def named(
    candidates: Sequence[TrackedProcess], *vmis: Vmi, node: str = NODE
) -> dict[str, VmmId | Reason | None]:
    """Each VM's process, or why it has none."""
    found = by_pod(candidates, index_of(*vmis), node=node)
    assert all(vm == it.vm for vm, it in found.items())
    assert all((it.vmm is None) == (it.unattributed_reason is not None) for it in found.values())
    return {
        f"{vm.namespace}/{vm.name}": it.vmm or it.unattributed_reason for vm, it in found.items()
    }


def in_pod(uid: PodUid, candidate: TrackedProcess = QEMU) -> TrackedProcess:
    return replace(candidate, pod=replace(COMPUTE, uid=uid))


def test_a_vmi_and_its_process() -> None:
    """The pod's QEMU is the VM; its architecture is the VMI's, in the kernel's words."""
    found = by_pod([QEMU], index_of(VMI), node=NODE)
    assert found == {ALPHA: Attribution(vm=ALPHA, vmm=VMM, architecture="x86_64")}


@pytest.mark.parametrize("phase", [it for it in VmiPhase if it is not VmiPhase.RUNNING])
def test_only_running_vmis_are_named(phase: VmiPhase) -> None:
    """Before and after it runs a VMI has no series, whether its process lives or not."""
    assert named([QEMU], replace(VMI, phase=phase)) == {}


@pytest.mark.parametrize("node_name", [OTHER_NODE, None])
def test_only_vmis_of_this_node_are_named(node_name: str | None) -> None:
    """status.nodeName decides, not where a pod or a process of it is."""
    assert named([QEMU], replace(VMI, node_name=node_name)) == {}


def test_processes_of_no_vmi() -> None:
    """What sits in another pod, or in none, is nobody, whatever it calls itself."""
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
    """A VMI that runs here by the API server's word is named all the same, and it is told why."""
    assert named([QEMU], replace(VMI, active_pods=pods)) == {"default/alpha": reason}


def test_a_pod_that_two_vmis_claim_names_neither() -> None:
    """That cannot be true of both, so it is believed of none."""
    thief = replace(VMI, name="thief")
    assert named([QEMU], VMI, thief) == {
        "default/alpha": Reason.POD_CONTESTED,
        "default/thief": Reason.POD_CONTESTED,
    }


@pytest.mark.parametrize(
    ("said", "program", "architecture"),
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
def test_architecture(said: str | None, program: str, architecture: str | None) -> None:
    """The VMI's word, in those of uname -m; where it says nothing, that of QEMU's program."""
    candidate = replace(QEMU, program=program)
    found = by_pod([candidate], index_of(replace(VMI, architecture=said)), node=NODE)
    assert found[ALPHA].architecture == architecture


@pytest.mark.parametrize(
    "name",
    ["alpha", "0", "a.b-c.d", "x" * 63, "x" * 253, "default-alpha"],
)
def test_any_legal_name(name: str) -> None:
    """Names are the API server's, at any length, not taken from a command line."""
    assert named([QEMU], replace(VMI, name=name)) == {f"default/{name}": VMM}


MONITOR = replace(QEMU, vmm=YOUNGER, pod=replace(COMPUTE, conmon=True))
PROBE = replace(QEMU, vmm=YOUNGER, guest_name=None, verdict=IS_A_PROBE)
NESTED = replace(QEMU, vmm=YOUNGER, pod=replace(COMPUTE, nested=True))
IDLE_SIDECAR = replace(ANONYMOUS, verdict=NOTHING)
SLEEPER = replace(QEMU, vmm=YOUNGER, verdict=NOTHING)
"""A program named qemu-kvm that bears the domain's name and does nothing."""
EMULATOR = replace(QEMU, vmm=YOUNGER, verdict=TCG)
"""A QEMU's threads, by their names: they compute; it bears the domain's name."""


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
    """The domain's QEMU, not what else is in the pod or claims to be, in any order.

    Where two bear the domain's name, the one with vCPUs in the kernel's books.
    """
    real = replace(QEMU, verdict=guest)
    for order in ([real, other], [other, real]):
        assert named(order, VMI) == {"default/alpha": VMM}


@pytest.mark.parametrize("other", [IDLE_SIDECAR, PROBE, MONITOR])
def test_a_guest_under_another_name(other: TrackedProcess) -> None:
    """What the kernel saw run a guest in the pod is the VM, where no process bears its name."""
    anonymous = replace(ANONYMOUS, vmm=VMM)
    for order in ([anonymous, other], [other, anonymous]):
        assert named(order, VMI) == {"default/alpha": VMM}


@pytest.mark.parametrize("verdict", [TCG_IDLE, NOTHING, TCG, KVM_PAUSED])
@pytest.mark.parametrize("sidecar", [KVM, KVM_PAUSED, TCG])
def test_the_bearer_of_the_name_is_the_vm(verdict: Verdict, sidecar: Verdict) -> None:
    """Beside a guest under another name, however little is known of the one that bears it."""
    bearer = replace(QEMU, verdict=verdict)
    renamed = replace(bearer, named_like_qemu=False, program="ld.so")
    other = replace(ANONYMOUS, verdict=sidecar)
    for real in (bearer, renamed):
        for order in ([real, other], [other, real]):
            assert named(order, VMI) == {"default/alpha": VMM}


def test_a_guest_that_cannot_be_told() -> None:
    """A QEMU hides its command line, so it may bear the name: no other process is the VM.

    Alone in its pod it can only be the guest.
    """
    hidden = replace(QEMU, guest_name=None, verdict=NOTHING, command_line_unread=True)
    for order in ([hidden, ANONYMOUS], [ANONYMOUS, hidden]):
        assert named(order, VMI) == {"default/alpha": Reason.SEVERAL_PROCESSES}
    assert named([hidden], VMI) == {"default/alpha": VMM}


@pytest.mark.parametrize("verdict", [NOTHING, TCG_IDLE, TCG, KVM_PAUSED, KVM])
@pytest.mark.parametrize("sidecar", [KVM, KVM_PAUSED, TCG])
def test_a_qemu_of_no_name_goes_before_sidecars(verdict: Verdict, sidecar: Verdict) -> None:
    """A process can empty its command line; what the kernel knows of others is none of its."""
    nameless = replace(QEMU, guest_name=None, verdict=verdict)
    other = replace(ANONYMOUS, verdict=sidecar)
    for order in ([nameless, other], [other, nameless]):
        assert named(order, VMI) == {"default/alpha": VMM}
    assert named([other], VMI) == {"default/alpha": YOUNGER}


@pytest.mark.parametrize("verdict", [KVM, KVM_PAUSED, TCG, NOTHING])
def test_a_forked_child_is_not_the_vm(verdict: Verdict) -> None:
    """It is younger and a copy in all that /proc shows, unless it alone runs the guest."""
    parent = replace(QEMU, vmm=OLDER, verdict=verdict)
    child = replace(QEMU, vmm=YOUNGER, parent_tgid=OLDER.tgid, verdict=verdict)
    for order in ([parent, child], [child, parent]):
        assert named(order, VMI) == {"default/alpha": OLDER}
    runs = replace(child, verdict=KVM)
    for waiting in (KVM_PAUSED, NOTHING):
        assert named([replace(parent, verdict=waiting), runs], VMI) == {"default/alpha": YOUNGER}


@pytest.mark.parametrize("candidate", [MONITOR, PROBE, IDLE_SIDECAR])
def test_what_is_never_a_guest(candidate: TrackedProcess) -> None:
    """A pod with nothing but these has no guest process."""
    assert named([candidate], VMI) == {"default/alpha": Reason.NO_PROCESS}


def test_a_nested_claim_stands_where_there_is_no_other() -> None:
    """A cluster inside a pod: its pods' cgroups are below that pod's."""
    assert named([NESTED], VMI) == {"default/alpha": YOUNGER}


def test_of_equals_the_youngest() -> None:
    """A QEMU that was started again in its pod is the VM, not the one before it."""
    old = replace(QEMU, vmm=OLDER)
    assert named([old, QEMU], VMI) == named([QEMU, old], VMI) == {"default/alpha": VMM}


MOVING = replace(VMI, active_pods=tuple(sorted([(POD, NODE), (SECOND_POD, OTHER_NODE)])))
TARGET = in_pod(SECOND_POD, replace(QEMU, vmm=YOUNGER, verdict=KVM_PAUSED))


def test_a_migration_seen_from_its_source() -> None:
    """The source has the VM until nodeName moves; then no process here is it."""
    assert named([QEMU], MOVING) == {"default/alpha": VMM}
    assert named([QEMU], replace(MOVING, node_name=OTHER_NODE)) == {}


def test_a_migration_seen_from_its_target() -> None:
    """The target's QEMU is nobody until nodeName moves, and then it is the VM."""
    assert named([TARGET], MOVING, node=OTHER_NODE) == {}
    taken_over = replace(MOVING, node_name=OTHER_NODE)
    assert named([TARGET], taken_over, node=OTHER_NODE) == {"default/alpha": YOUNGER}
    alone = replace(taken_over, active_pods=((SECOND_POD, OTHER_NODE),))
    assert named([TARGET], alone, node=OTHER_NODE) == {"default/alpha": YOUNGER}


def test_a_failed_migration() -> None:
    """The source goes on; what is left of the target is nobody."""
    assert named([QEMU], VMI) == {"default/alpha": VMM}
    assert named([TARGET], VMI, node=OTHER_NODE) == {}


@pytest.mark.parametrize("returned", [KVM, KVM_PAUSED])
def test_back_from_a_migration(returned: Verdict) -> None:
    """Where the pod it once left still ends, the VM is the younger pod's process."""
    left = in_pod(SECOND_POD, replace(QEMU, vmm=OLDER))
    both = replace(VMI, active_pods=tuple(sorted([(POD, NODE), (SECOND_POD, NODE)])))
    back = replace(QEMU, verdict=returned)
    for order in ([back, left], [left, back]):
        assert named(order, both) == {"default/alpha": VMM}
    assert named([left], both) == {"default/alpha": OLDER}


def test_a_younger_pod_whose_guest_is_unknown_takes_no_vm_over() -> None:
    """While nothing is known of the younger process, the one that is judged remains the VM."""
    left = in_pod(SECOND_POD, replace(QEMU, vmm=OLDER))
    unknown = replace(QEMU, vmm=YOUNGER, verdict=NOTHING)
    both = replace(VMI, active_pods=tuple(sorted([(POD, NODE), (SECOND_POD, NODE)])))
    assert named([left, unknown], both) == {"default/alpha": OLDER}


def test_a_restart_under_the_same_name() -> None:
    """The new VMI has a new pod: the old process, if it still ends, is nobody."""
    restarted = replace(VMI, active_pods=((SECOND_POD, NODE),))
    assert named([QEMU], restarted) == {"default/alpha": Reason.NO_PROCESS}
    new = in_pod(SECOND_POD, replace(QEMU, vmm=YOUNGER, verdict=NOTHING))
    assert named([QEMU, new], restarted) == {"default/alpha": YOUNGER}


def test_a_process_that_outlives_its_vmi() -> None:
    """Once its VMI is gone from the API server, a process that still runs has no name."""
    assert named([QEMU]) == {}


def test_before_the_first_list() -> None:
    """While nothing is known of VMIs nothing is named."""
    assert by_pod([QEMU], EMPTY_INDEX, node=NODE) == {}


# any event order

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
    """What is true of one node, and what of it the API server and /proc show."""

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
        """Every VM that runs here, with the one process that really is it."""
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
        """Another pod's process that bears this VM's name."""
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
        """NodeName moves first, the old pod leaves activePods when it has ended."""
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
        """The object goes; a process may live on for a while."""
        del self.vmis[vm]


@given(EVENTS, st.randoms(use_true_random=False))
def test_any_order_of_events(events: list[tuple[str, VmName]], chance: Random) -> None:
    """After each event exactly the VMs that run here are named, each with its own process or none.

    Leftovers of deleted VMIs, probes, sidecars and processes of other pods are never anybody.
    """
    model = Model()
    for event, vm in events:
        model.do(event, vm)
        candidates = [*model.guests.values(), *model.others]
        chance.shuffle(candidates)
        found = by_pod(candidates, index_of(*model.vmis.values()), node=NODE)
        assert {name: it.vmm for name, it in found.items()} == model.expected()
