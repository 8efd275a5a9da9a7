# SPDX-License-Identifier: Apache-2.0
"""Real cgroups in the layout of kubelet, in a tree of the test's own.

The folder of a tree is named after the process that made it. So what a killed run left behind can
be distinguished from the tree of another run, and removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from probes.host.reader import Host
from tests.support.kernel_world import wait_for

_PREFIX = "hvprobe-test-"


def cgroup2_mount() -> Path | None:
    """The mount point of the v2 hierarchy, alone or beside v1 (hybrid); None: it is not mounted."""
    return _mount("cgroup2", "")


def cgroup1_mount() -> Path | None:
    """The mount point of a v1 hierarchy in which moving a process does no harm; None: none is."""
    return _mount("cgroup", "freezer") or _mount("cgroup", "pids")


def _mount(kind: str, option: str) -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, found, options, *_ = line.split()
        if found == kind and (not option or option in options.split(",")):
            return Path(place)
    return None


def own_name(prefix: str) -> str:
    """A cgroup name that identifies this process as its maker."""
    me = Host().identify(os.getpid())
    assert me is not None
    return f"{prefix}{me.tgid}-{me.start_ticks}"


def left_behind(mount: Path, prefix: str) -> set[str]:
    """The names of cgroups with this prefix whose makers have ended."""
    host = Host()
    found: set[str] = set()
    for left in mount.glob(f"{prefix}*"):
        tgid, _, ticks = left.name.removeprefix(prefix).partition("-")
        owner = host.identify(int(tgid))
        if owner is None or str(owner.start_ticks) != ticks:
            found.add(left.name)
    return found


class CgroupTree:
    """A folder below a cgroup mount. `close` removes it with all cgroups in it."""

    def __init__(self, mount: Path) -> None:
        self._mount = mount
        for left in left_behind(mount, _PREFIX):
            _remove(mount / left)
        self.root = mount / own_name(_PREFIX)
        self.root.mkdir(exist_ok=True)

    def make(self, path: str) -> Path:
        """Make the cgroup with this path below the tree's own."""
        directory = self.root / path.strip("/")
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def pod(self, uid: str, container_id: str = "c0de" * 16) -> Path:
        """Make the cgroup of a container as containerd makes it with the systemd driver."""
        slices = "kubepods.slice/kubepods-burstable.slice"
        slice_ = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
        return self.make(f"{slices}/{slice_}/cri-containerd-{container_id}.scope")

    @contextlib.contextmanager
    def entered(self, cgroup: Path) -> Iterator[None]:
        """Move this process to a cgroup during the block.

        A process that it starts there is in the cgroup before it executes its program.
        """
        home = next(
            line.removeprefix("0::")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        put(os.getpid(), cgroup)
        try:
            yield
        finally:
            put(os.getpid(), self._mount / home.strip("/"))

    def close(self) -> None:
        """Remove the tree. The processes in it must be about to end."""
        _remove(self.root)


def put(tgid: int, cgroup: Path) -> None:
    """Move a process to a cgroup."""
    (cgroup / "cgroup.procs").write_text(str(tgid))


def _remove(root: Path) -> None:
    for directory, _, _ in os.walk(root, topdown=False):

        def removed(path: Path = Path(directory)) -> bool:
            try:
                path.rmdir()
            except FileNotFoundError:
                return True
            except OSError:
                return False  # EBUSY: a process in it has not ended yet
            return True

        wait_for(removed, f"{directory} has no process left")
