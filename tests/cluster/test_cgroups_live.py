# SPDX-License-Identifier: Apache-2.0
"""Real processes in real cgroups of every shape, read the way hvprobe reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.host.cgroup import PodCgroup, pod_of
from probes.host.reader import Host
from tests.support.cgroup_paths import ID, PATHS, UID, pod
from tests.support.kernel_world import Started
from tests.support.pod_cgroups import CgroupTree, cgroup1_mount, cgroup2_mount, put

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    name: (path, expected)
    for name, (path, expected) in PATHS.items()
    if ".." not in path and "(deleted)" not in path and path != "/"
}
"""All that a directory can have; the others are how a namespace or a removal shows them."""


@pytest.fixture(scope="module")
def sleeper(cluster_required: None) -> Iterator[Started]:
    """A process to move about."""
    with Started(["sleep", "86400"]) as started:
        yield started


@pytest.fixture(scope="module")
def legacy(sleeper: Started) -> Iterator[CgroupTree]:
    """A tree in a v1 hierarchy."""
    mount = cgroup1_mount()
    if mount is None:
        pytest.skip("no v1 hierarchy on this machine")
    tree = CgroupTree(mount)
    yield tree
    put(sleeper.tgid, mount)
    tree.close()


def seen_pod(tgid: int) -> PodCgroup | None:
    """What hvprobe sees of a process's pod."""
    host = Host()
    vmm = host.identify(tgid)
    assert vmm is not None
    process = host.inspect([vmm]).processes[vmm]
    assert process.cgroup is not None
    return pod_of(process.cgroup)


@pytest.mark.parametrize(("path", "expected"), SHAPES.values(), ids=SHAPES.keys())
def test_unified(
    cgroups: CgroupTree, sleeper: Started, path: str, expected: PodCgroup | None
) -> None:
    """A process in a v2 cgroup of each shape has its pod and container."""
    put(sleeper.tgid, cgroups.make(path))
    assert seen_pod(sleeper.tgid) == expected


@pytest.mark.parametrize(("path", "expected"), SHAPES.values(), ids=SHAPES.keys())
def test_legacy(
    cgroups: CgroupTree,
    legacy: CgroupTree,
    sleeper: Started,
    path: str,
    expected: PodCgroup | None,
) -> None:
    """The same in a v1 hierarchy, while the v2 line names a service and no pod."""
    put(sleeper.tgid, cgroups.make("/system.slice/containerd.service"))
    put(sleeper.tgid, legacy.make(path))
    assert seen_pod(sleeper.tgid) == expected


def test_unified_goes_before_legacy(
    cgroups: CgroupTree, legacy: CgroupTree, sleeper: Started
) -> None:
    """Where both hierarchies name a pod, v2's counts."""
    put(sleeper.tgid, legacy.make(PATHS["kind in a pod, container not yet made"][0]))
    path, expected = PATHS["CRI-O, crun"]
    put(sleeper.tgid, cgroups.make(path))
    assert seen_pod(sleeper.tgid) == expected


def test_a_process_started_in_its_cgroup(cgroups: CgroupTree) -> None:
    """As a container runtime does it: the child is in the pod before its first instruction."""
    with cgroups.entered(cgroups.pod(UID, ID)), Started(["sleep", "86400"]) as started:
        assert seen_pod(started.tgid) == pod()


THREADED = """
import sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


def test_housekeeping_is_a_threaded_child(cgroups: CgroupTree) -> None:
    """KubeVirt's isolated emulator thread: the main thread in `housekeeping`, the others not."""
    path, expected = PATHS["crun and housekeeping"]
    housekeeping = cgroups.make(path)
    with cgroups.entered(housekeeping.parent):
        started = Started([sys.executable, "-c", THREADED])
    with started:
        assert started.line() == "ready\n"
        (housekeeping / "cgroup.type").write_text("threaded")
        (housekeeping / "cgroup.threads").write_text(str(started.tgid))
        lines = {
            (task / "cgroup").read_text().splitlines()[-1].endswith("/housekeeping")
            for task in Path(f"/proc/{started.tgid}/task").iterdir()
        }
        assert lines == {True, False}
        assert seen_pod(started.tgid) == expected


READ_AS_HVPROBE = """
import sys
from probes.host.cgroup import pod_of
from probes.host.reader import Host
host = Host()
vmm = host.identify(int(sys.argv[1]))
text = host.inspect([vmm]).processes[vmm].cgroup
print(text.splitlines()[-1], pod_of(text).uid)
"""


def test_seen_from_inside_a_cgroup_namespace(cgroups: CgroupTree, sleeper: Started) -> None:
    """A reader in another container's cgroup namespace sees a relative path, and the pod in it."""
    put(sleeper.tgid, cgroups.pod(UID, ID))
    with cgroups.entered(cgroups.pod("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", "d" * 64)):
        told = subprocess.run(
            ["unshare", "--cgroup", sys.executable, "-c", READ_AS_HVPROBE, str(sleeper.tgid)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    line, uid = told.split()
    assert line.startswith("0::/../../")
    assert uid == UID


def test_a_killed_run_leaves_nothing_for_long(cgroups: CgroupTree) -> None:
    """The next tree removes what a run that was killed left behind."""
    code = """
import os, signal
from tests.support.pod_cgroups import CgroupTree, cgroup2_mount
tree = CgroupTree(cgroup2_mount())
tree.pod("7b4c2f1e-93d5-4a60-8e17-c0ffee12ab34")
print(tree.root, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    left = Path(told.stdout.strip())
    assert left.is_dir()
    mount = cgroup2_mount()
    assert mount is not None
    assert CgroupTree(mount).root == cgroups.root
    assert not left.exists()
    assert cgroups.root.is_dir()
