# SPDX-License-Identifier: Apache-2.0
"""EDGE: the cgroups in which the pods of a test's kubelet live, in each hierarchy of the machine.

A container outlives the runtime that started it, and the tests. So this file, run as a program,
waits until the tests end or are killed, then ends all processes in the cgroups and removes them. If
that program is killed as well, the next run finds the cgroups by their name and sees that the
process that made them is gone.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.kernel_world import wait_for
from tests.support.pod_cgroups import left_behind, own_name

_PREFIX = "hvprobe-kubelet-"


def hierarchies() -> list[Path]:
    """The mount points of cgroup hierarchies: v2, the controllers of v1, or both."""
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in lines if fields[2] in ("cgroup", "cgroup2")]


class KubeCgroups:
    """In each hierarchy two cgroups for each node: one for the container runtime, one for pods."""

    def __init__(self) -> None:
        self._mounts = hierarchies()
        for left in {name for mount in self._mounts for name in left_behind(mount, _PREFIX)}:
            remove(left)
        self._name = own_name(_PREFIX)
        # Its standard input closes when this process ends.
        self._remover = subprocess.Popen(
            [sys.executable, __file__, self._name],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )

    def pods(self, node: str) -> str:
        """Make a node's cgroup of pods. Returns it as kubelet's --cgroup-root takes it."""
        self._make(node, "pods")
        return f"/{self._name}/{node}/pods"

    def put_runtime(self, node: str, tgid: int) -> None:
        """Move a node's container runtime to its cgroup, where what it starts stays."""
        for made in self._make(node, "runtime"):
            # A new cpuset accepts no process before it has CPUs. Being in one hierarchy is enough.
            with contextlib.suppress(OSError):
                (made / "cgroup.procs").write_text(str(tgid))

    def end(self, node: str) -> None:
        """End every process of a node that is in its cgroups, and remove them."""
        remove(f"{self._name}/{node}")

    def close(self) -> None:
        """End every process in the cgroups and remove the cgroups."""
        self._remover.communicate()
        assert self._remover.returncode == 0

    def _make(self, node: str, part: str) -> list[Path]:
        made = [mount / self._name / node / part for mount in self._mounts]
        for cgroup in made:
            cgroup.mkdir(parents=True, exist_ok=True)
        return made


def remove(name: str) -> None:
    """End every process in this cgroup and those below it, in all hierarchies, and remove them."""

    def ended() -> bool:
        members = _members(name)
        for tgid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(tgid, signal.SIGKILL)
        return not members

    wait_for(ended, f"the processes in {name} have ended")
    for mount in hierarchies():
        for directory, _, _ in os.walk(mount / name, topdown=False):
            Path(directory).rmdir()


def _members(name: str) -> set[int]:
    found: set[int] = set()
    for mount in hierarchies():
        for file in (mount / name).rglob("cgroup.procs"):
            # The cgroup is gone, or it is a threaded one of v2, whose parent lists its processes.
            with contextlib.suppress(OSError):
                found |= set(map(int, file.read_text().split()))
    return found


if __name__ == "__main__":
    sys.stdin.read()
    remove(sys.argv[1])
