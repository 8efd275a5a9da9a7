# SPDX-License-Identifier: Apache-2.0
"""Measures what docs/operators.md says the image costs, and prints it as that table's rows.

    make image-cost

Builds the image, and runs it as the capabilities DaemonSet: beside one KVM and one TCG guest; on a
node of 1000 VMs, in the cgroups of pods and with their VMIs in an API server; there started with
less and less memory; and beside VMs whose processes hold many descriptors.
"""

import contextlib
import copy
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench.agent import Connection
from bench.fleet import NODE, Fleet, State
from bench.steady import BETWEEN_SCRAPES_S
from probes.vmi.kube.credentials import InCluster
from tests.support.deploy_render import rendered
from tests.support.deploy_tools import from_trixie
from tests.support.image_build import NATIVE, Image, build, mounted, store, tag
from tests.support.image_container import Container, running
from tests.support.image_memory import memory_of
from tests.support.image_qemu import QemuAsUser
from tests.support.kernel_world import build_kvmload, wait_for

SCRAPES = 20
VMS = 1000
LIMITS_MIB = (320, 256, 192, 160, 128)
CROWD = 500
"""VMs beside which descriptors are measured."""
SPARE_DESCRIPTORS = 100
MIB = 2**20
Json = dict[str, Any]


def on_disk_mib(root: Path) -> int:
    """As du counts it."""
    done = subprocess.run(["du", "-sm", root], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def in_registry_mb() -> float:
    """Compressed layers, as they are pulled."""
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "image"
        store("push", "--quiet", tag(NATIVE), f"oci-archive:{archive}")
        return archive.stat().st_size / 1e6


def cpu_s(tgid: int) -> float:
    """Processor time of a process and of its children that ended."""
    times = psutil.Process(tgid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def resident_mib(tgid: int) -> dict[str, float]:
    """By VmRSS and its parts."""
    lines = (line.split() for line in Path(f"/proc/{tgid}/status").read_text().splitlines())
    found = {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}
    return {name: round(found[name], 1) for name in ("VmRSS", "RssAnon", "VmHWM")}


@contextlib.contextmanager
def agent_of(
    image: Image, fleet: Fleet | None = None, *, limit_mib: int | None = None, cold: bool = False
) -> Iterator[tuple[Container, float]]:
    """The agent, and the seconds from the runtime's start to its first line.

    fleet: the node's VMs, and the cluster. limit_mib: of memory, if not the manifest's.
    """
    profile = from_trixie("golang-github-containers-common") / "usr/share/containers/seccomp.json"
    seccomp: Json = json.loads(profile.read_text())
    manifest = copy.deepcopy(rendered("capabilities").one("DaemonSet"))
    if limit_mib:
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        container["resources"]["limits"]["memory"] = f"{limit_mib}Mi"
    account = None
    if fleet is not None:
        account = InCluster(
            token_file=fleet.api.token_file,
            ca_file=fleet.api.authority.cert,
            environ=fleet.api.environ,
        )
    begun_s = time.monotonic()
    with running(image, manifest, seccomp, service_account=account, node=NODE, cold=cold) as agent:
        yield agent, time.monotonic() - begun_s


def print_steady(agent: Container, beside: str, scrape: Callable[[], object]) -> None:
    """What scrapes cost when each makes its own refresh, and the memory after them."""
    tgid = agent.main_tgid()
    before = cpu_s(tgid)
    for _ in range(SCRAPES):
        time.sleep(BETWEEN_SCRAPES_S)
        scrape()
    used_ms = (cpu_s(tgid) - before) / SCRAPES * 1000
    print(f"{beside}: a scrape: {used_ms:.1f} ms of processor time")
    print(f"{beside}: agent, MiB: {resident_mib(tgid)}")
    print(f"{beside}: its cgroup, MiB: {cgroup_mib(agent)}")


def cgroup_mib(agent: Container) -> dict[str, float]:
    """What image_memory.memory_of reports, in MiB; the OOM kills stay a number."""
    found = memory_of(agent.main_tgid())
    return {
        name: value if name == "oom_kills" else round(value / MIB, 1)
        for name, value in found.items()
    }


def beside_two_guests(image: Image) -> None:
    with (
        QemuAsUser("default_alpha", "kvm"),
        QemuAsUser("lab_beta", "tcg"),
        agent_of(image) as (agent, start_s),
    ):
        used_s = cpu_s(agent.main_tgid())
        print(f"start to /metrics: {start_s:.2f} s, {used_s:.2f} s of processor time")
        print_steady(agent, "two VMs", lambda: agent.get("/metrics"))


def all_are_verified(connection: Connection) -> bool:
    return connection.get("/metrics").verified_kvm() == VMS


def in_a_fleet(image: Image, fleet: Fleet) -> None:
    with (
        agent_of(image, fleet) as (agent, _),
        contextlib.closing(agent.connect()) as connection,
    ):
        wait_for(partial(all_are_verified, connection), "all are verified")
        print_steady(agent, f"{VMS} VMs", lambda: connection.get("/metrics"))


def started_cold(image: Image, fleet: Fleet) -> None:
    """Where the page cache has nothing of the image; then what an administrator does in the pod."""
    for limit in LIMITS_MIB:
        with agent_of(image, fleet, limit_mib=limit, cold=True) as (agent, start_s):
            started = cgroup_mib(agent)
            with contextlib.closing(agent.connect()) as connection:
                wait_for(partial(all_are_verified, connection), "all are verified")
                looked = cgroup_mib(agent)
            begun_s = time.monotonic()
            doctor = agent.execute("hvprobe", "doctor").returncode
            took_s = time.monotonic() - begun_s
            print(f"cold, limit {limit} MiB: start to /metrics {start_s:.2f} s")
            print(f"  its cgroup then: {started}")
            print(f"  after a scrape: {looked}")
            print(
                f"  `hvprobe doctor` there: {doctor} after {took_s:.1f} s; then {cgroup_mib(agent)}"
            )


def grown_by(image: Image, spare: int) -> float:
    """Bytes that the cgroup grows by for each VM that is looked at.

    spare: descriptors of its process beside its own six.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nothing = stack.enter_context(Path("/dev/null").open("rb"))
        inherited = [os.dup(nothing.fileno()) for _ in range(spare)]
        crowd = subprocess.Popen(
            [build_kvmload(directory), "--processes", str(CROWD), "--then", "halt"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=inherited,
        )
        for each in inherited:
            os.close(each)
        stack.callback(crowd.communicate)
        assert crowd.stdout
        for _ in range(CROWD):
            crowd.stdout.readline()
        agent, _ = stack.enter_context(agent_of(image))
        before = memory_of(agent.main_tgid())["used"]
        agent.get("/metrics")
        return (memory_of(agent.main_tgid())["used"] - before) / CROWD


def main() -> None:
    build()
    with mounted() as image:
        print(f"image on disk: {on_disk_mib(image.root)} MiB")
        print(f"image in a registry: {in_registry_mb():.0f} MB")
        beside_two_guests(image)
        with Fleet(VMS, State.HALTED) as fleet:
            in_a_fleet(image, fleet)
            started_cold(image, fleet)
        few, many = grown_by(image, 0), grown_by(image, SPARE_DESCRIPTORS)
        each = (many - few) / SPARE_DESCRIPTORS
        print(f"a VM whose process has six descriptors: {few / 1024:.0f} KiB of the cgroup's")
        print(f"each further descriptor: {each / 1024:.2f} KiB")


if __name__ == "__main__":
    main()
