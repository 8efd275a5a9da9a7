# SPDX-License-Identifier: Apache-2.0
"""What a tenant does inside its pod to have something else told of its VM, or of others' VMs.

Each row is a pod of processes without uid and capabilities, with what is reported of its VMI by an
agent that was there before and by one that starts afterwards. A VM in another pod keeps its
verdict, its counter and its scrape.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.command.values import MIN_LEDGER_CAPACITY
from tests.support.apiserver import ApiServer
from tests.support.attack_world import RETURNS, Bystander, Scraped, called_qemu, new_name
from tests.support.cluster_node import KVM, NODE, TCG_FALLBACK, UNKNOWN, Scrape, Shown
from tests.support.kernel_agent import Agent
from tests.support.kernel_disguises import DISGUISES, ENVIRONMENT, Disguise
from tests.support.kernel_hostile import Hostile, hostile_program
from tests.support.kernel_world import MACHINE, QEMU, KvmLoad, Started, machine_arguments, wait_for
from tests.support.pod_cgroups import CgroupTree
from tests.support.vmi_objects import pod_uid, vmi

NATIVE = "amd64" if MACHINE == "x86_64" else "arm64"
AS_TENANT = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--bounding-set", "-all", "--inh-caps", "-all", "--pdeathsig", "KILL"),
)
"""A program without uid and capabilities, as a container has it."""
CALLS = 11
CROWD = MIN_LEDGER_CAPACITY + 10
SIDECAR = "5" * 64
SCRAPES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod of one VMI; what is started in it ends with the test."""

    name: str
    """The VMI's."""
    cgroups: CgroupTree
    stack: ExitStack
    kvmload: Path
    """Under a name of no VMM, for sidecars."""
    qemu_kvm: Path
    """The same under QEMU's name."""
    hostile: Path
    folder: Path
    """Open to all."""

    @property
    def guest(self) -> str:
        """The domain name that KubeVirt gives the VM."""
        return f"guest=default_{self.name}"

    def enter(self, start: Callable[[], Started], *, sidecar: bool = False) -> Started:
        """Start a process in the pod, in the container of the VM or in another one."""
        uid = pod_uid("default", self.name)
        container = self.cgroups.pod(uid, SIDECAR) if sidecar else self.cgroups.pod(uid)
        with self.cgroups.entered(container):
            return self.stack.enter_context(start())

    def runs_kvm(self, *arguments: str, sidecar: bool = True) -> None:
        """A user of KVM that is no VMM by its name, and bears none."""
        words = ("--tenant", "--userspace-exits", str(CALLS), *arguments)
        load = self.enter(lambda: KvmLoad(self.kvmload, *words), sidecar=sidecar)
        assert isinstance(load, KvmLoad)
        load.finish_counted_part()

    def emulates(self, *more: str, accel: Sequence[str] = ("-accel", "tcg")) -> None:
        """QEMU as the VM."""
        words = (QEMU, *accel, *machine_arguments("tcg"), "-display", "none", "-nodefaults")
        guest = self.enter(lambda: Started([*AS_TENANT, *words, *more]))
        comm = Path(f"/proc/{guest.tgid}/comm")
        wait_for(lambda: comm.read_text().startswith("qemu-system"), "it executes QEMU")

    def is_hostile(self, kind: str, number: int) -> None:
        """tests/support/hostile.c under QEMU's name."""
        self.enter(lambda: Hostile(self.hostile, kind, number, self.folder))


def a_sidecar_beside_one_that_is_not_known_yet(pod: Pod) -> None:
    pod.runs_kvm()
    pod.emulates("-name", pod.guest, "-S", accel=())


def a_sidecar_in_the_vms_own_container(pod: Pod) -> None:
    pod.emulates("-name", pod.guest, "-S", accel=())
    pod.runs_kvm(sidecar=False)


def a_sidecar_beside_an_emulated_vm(pod: Pod) -> None:
    pod.emulates("-name", f"{pod.guest},debug-threads=on")
    pod.runs_kvm("--burn")


def a_sidecar_beside_one_without_a_command_line(pod: Pod) -> None:
    pod.is_hostile("untouched-arguments", 4096)
    pod.runs_kvm()


def a_sidecar_beside_one_whose_command_line_blocks(pod: Pod) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("this needs /dev/fuse")
    pod.runs_kvm()
    pod.is_hostile("fuse-arguments", 0)


def a_vm_of_another_name(pod: Pod) -> None:
    pod.emulates("-name", "guest=default_another,debug-threads=on")
    pod.runs_kvm()


def disguised(disguise: Disguise) -> Callable[[Pod], None]:
    def start(pod: Pod) -> None:
        words = [*AS_TENANT, *disguise(pod.folder), "-name", f"{pod.guest},debug-threads=on"]
        environment = {**os.environ, **ENVIRONMENT}
        pod.enter(lambda: Started(words, environment=environment, stderr=None))

    return start


ROWS: dict[str, tuple[Callable[[Pod], None], Shown]] = {
    "a sidecar runs on KVM, what bears the VM's name is not known yet": (
        a_sidecar_beside_one_that_is_not_known_yet,
        UNKNOWN,
    ),
    "the same in the VM's own container, the sidecar being younger": (
        a_sidecar_in_the_vms_own_container,
        UNKNOWN,
    ),
    "a sidecar runs on KVM, the VM is emulated": (a_sidecar_beside_an_emulated_vm, TCG_FALLBACK),
    "a sidecar runs on KVM, the VM has emptied its command line": (
        a_sidecar_beside_one_without_a_command_line,
        UNKNOWN,
    ),
    "a sidecar runs on KVM, the VM's command line blocks its readers": (
        a_sidecar_beside_one_whose_command_line_blocks,
        UNKNOWN,
    ),
    "a sidecar runs on KVM, the emulated VM bears another's name": (
        a_vm_of_another_name,
        TCG_FALLBACK,
    ),
    **{
        f"the VM's program is disguised: {disguise.__name__}": (disguised(disguise), TCG_FALLBACK)
        for disguise in DISGUISES
    },
}


@pytest.fixture(scope="module")
def programs(kvmload: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """kvmload under QEMU's name, and hostile."""
    folder = tmp_path_factory.mktemp("attacks")
    return called_qemu(kvmload, folder), hostile_program(folder)


@pytest.fixture
def pods(
    cgroups: CgroupTree, api: ApiServer, kvmload: Path, programs: tuple[Path, Path]
) -> Iterator[Callable[[str], Pod]]:
    """Create a VMI that runs here, and its pod."""
    with ExitStack() as stack:

        def create(label: str) -> Pod:
            name = new_name(label)
            api.store.create(vmi(name, architecture=NATIVE))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.chmod(0o755)
            return Pod(
                name=name,
                cgroups=cgroups,
                stack=stack,
                kvmload=Path(shutil.copy(kvmload, folder / "sidecar")),
                qemu_kvm=programs[0],
                hostile=programs[1],
                folder=folder,
            )

        yield create


@pytest.fixture
def agents(guests_required: None, api: ApiServer) -> Iterator[Callable[..., Agent]]:
    """Start agents of this node."""
    kubeconfig = str(api.kubeconfig())
    with ExitStack() as stack:
        yield lambda *words: stack.enter_context(
            Agent("--kubeconfig", kubeconfig, "--node", NODE, *words)
        )


def starts_bystander(pod: Pod) -> Bystander:
    def start() -> Started:
        return Bystander(pod.qemu_kvm, pod.name)

    started = pod.enter(start)
    assert isinstance(started, Bystander)
    return started


def until_told(agent: Agent, pod: Pod, shown: Shown) -> None:
    """Scrape until the VMI is shown as given, then again; no scrape shows another verified type."""
    vm = f"default/{pod.name}"
    last: list[Shown | None] = []

    def as_given() -> bool:
        last[:] = [Scrape(agent).vms().get(vm)]
        assert last[0] is None or not last[0].verified or last[0] == shown, last
        return last[0] == shown

    try:
        wait_for(as_given, f"{vm} is {shown}")
    except AssertionError as err:
        raise AssertionError(f"{err}; it is {last}") from err
    assert all(as_given() for _ in range(SCRAPES))
    if shown.type != "kvm":
        assert Scraped(agent).value(pod.name, RETURNS) is None


@pytest.mark.parametrize(("start", "shown"), ROWS.values(), ids=ROWS.keys())
def test_of_its_own_vm(
    pods: Callable[[str], Pod],
    agents: Callable[..., Agent],
    start: Callable[[Pod], None],
    shown: Shown,
) -> None:
    """What the row says, also after the agent was started again."""
    attacked, other = pods("attacked"), pods("other")
    agent = agents()
    start(attacked)
    bystander = starts_bystander(other)
    until_told(agent, attacked, shown)
    bystander.assert_unharmed(agent)
    agent.kill()
    until_told(agents(), attacked, shown)


def test_a_pod_that_fills_the_ledger(
    pods: Callable[[str], Pod], agents: Callable[..., Agent]
) -> None:
    """A VM that was there goes on counting; a new one has its series, and no false 0.

    Once the pod's processes have ended, collected or not, a new VM has everything again.
    """
    hostile, first, late, last = (pods(name) for name in ("hostile", "first", "late", "last"))
    agent = agents("--ledger-capacity", str(MIN_LEDGER_CAPACITY))
    bystander = starts_bystander(first)
    bystander.assert_unharmed(agent)
    words = ("--tenant", "--processes", str(CROWD), "--userspace-exits", "1")
    crowd = hostile.enter(lambda: KvmLoad(hostile.kvmload, *words))
    tgids = [int(json.loads(crowd.line())["tgid"]) for _ in range(CROWD)]
    dropped = "hvprobe_ledger_dropped_total"
    wait_for(lambda: Scrape(agent).value(dropped), "the ledger is full")
    late.runs_kvm(sidecar=False)
    wait_for(lambda: Scraped(agent).type(late.name) == "kvm", "its vCPUs are found")
    assert Scraped(agent).value(late.name, RETURNS) is None
    bystander.assert_unharmed(agent)
    for tgid in tgids:
        os.kill(tgid, signal.SIGKILL)
    entries = "hvprobe_ledger_entries"
    wait_for(lambda: (Scrape(agent).value(entries) or CROWD) < CROWD / 2, "there is room again")
    starts_bystander(last).assert_unharmed(agent)
    until_told(agent, first, KVM)
