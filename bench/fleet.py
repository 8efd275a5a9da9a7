# SPDX-License-Identifier: Apache-2.0
"""A node full of VMs: real KVM processes in pods' cgroups, their VMIs in an API server.

Owns N processes of tests/support/kvmload.c and N Running VMIs. Each process has one VM and
runs in the cgroup of its own virt-launcher pod, which its VMI names. Must not know the
agent.

Everything ends with the process that made it, even if that process is killed: a VM ends when its
standard input closes, and the next cgroup tree removes the one left behind (pod_cgroups.py).
"""

import json
import os
import resource
import select
import subprocess
import tempfile
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Self

from tests.support.apiserver import ApiServer
from tests.support.kernel_world import build_kvmload
from tests.support.pod_cgroups import CgroupTree, cgroup2_mount, put
from tests.support.vmi_objects import pod_uid, vmi

NODE = "node-a"
NAMESPACE = "default"
SPARE_FILES = 500
"""Descriptors for everything except the VMs. Each VM takes one more."""
LINE_DEADLINE_S = 60.0


class State(Enum):
    """What the VMs do until the next command. In no state do they use a CPU."""

    HALTED = "asleep inside KVM_RUN, as an idle guest is"
    STEPPED = "outside KVM_RUN; each tick runs each of them once to its next exit"


class Fleet:
    """Running VMs; `grow` adds more. Use it as a context manager."""

    def __init__(
        self,
        vms: int = 0,
        state: State = State.STEPPED,
        *,
        exits: int = 7,
        vcpus: int = 1,
        statistics: bool = False,
    ) -> None:
        """On entry, start ``vms`` VMs. Each makes ``exits`` exits to user space.

        vcpus is the number of vCPUs of each. With statistics it holds those of each vCPU open, as
        QEMU does since 8.1.
        """
        self._begin_with = vms
        self._state = state
        self._always = ["--userspace-exits", str(exits), "--vcpus", str(vcpus)]
        self._always += ["--statistics"] * statistics
        self._stack = ExitStack()
        self._stdins: list[int] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.tgids: list[int] = []
        """The VMs' processes, in no particular order."""

    def __enter__(self) -> Self:
        try:
            self._build()
            self.grow(self._begin_with)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def agent_arguments(self) -> tuple[str, ...]:
        """The flags that run an agent on this node."""
        return ("--kubeconfig", str(self.api.kubeconfig()), "--node", NODE)

    def grow(self, vms: int) -> None:
        """Start more VMs at once, with their VMIs; return when each has made its exits."""
        _allow_files(len(self.tgids) + vms + SPARE_FILES)
        pods = [self._add_vmi(len(self.tgids) + number) for number in range(vms)]
        if self._state is State.HALTED and vms:
            self._start("--processes", str(vms), "--then", "halt")
        elif self._state is State.STEPPED:
            for _ in range(vms):
                self._start("--step")
        started = [json.loads(line)["tgid"] for line in self._lines.take(vms)]
        for tgid, pod in zip(started, pods, strict=True):
            put(tgid, pod)
        self.tgids += started

    def tick(self) -> None:
        """Let each VM make one more exit; return when all have made it (STEPPED only)."""
        for stdin in self._stdins:
            os.write(stdin, b"1\n")
        self._lines.take(len(self._stdins))

    def end_vms(self) -> None:
        """End all VMs. Their VMIs and the API server stay."""
        while self._stdins:
            os.close(self._stdins.pop())
        while self._processes:
            self._processes.pop().wait()
        self.tgids.clear()

    def _build(self) -> None:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._kvmload = build_kvmload(directory)
        self.api = self._stack.enter_context(ApiServer(directory / "api").running())
        mount = cgroup2_mount()
        assert mount is not None, "this needs a mounted cgroup2 hierarchy"
        self._cgroups = CgroupTree(mount)
        self._stack.callback(self._cgroups.close)
        reading, self._stdout = os.pipe()
        for fd in (reading, self._stdout):
            self._stack.callback(os.close, fd)
        self._lines = _Lines(reading)
        self._stack.callback(self.end_vms)

    def _add_vmi(self, number: int) -> Path:
        """Create a Running VMI on this node, and return the cgroup of its pod's container."""
        name = f"vm-{number}"
        self.api.store.create(vmi(name, namespace=NAMESPACE, node=NODE, architecture=None))
        return self._cgroups.pod(pod_uid(NAMESPACE, name))

    def _start(self, *arguments: str) -> None:
        vm_stdin, ours = os.pipe()
        self._stdins.append(ours)
        try:
            self._processes.append(
                subprocess.Popen(
                    [self._kvmload, *self._always, *arguments],
                    stdin=vm_stdin,
                    stdout=self._stdout,
                )
            )
        finally:
            os.close(vm_stdin)


class _Lines:
    """Lines that many processes write to one pipe. Short writes are atomic, so no lines mix."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._waiting = select.poll()  # select(2) waits for no descriptor above 1023
        self._waiting.register(fd, select.POLLIN)

    def take(self, count: int) -> list[str]:
        """The next ``count`` lines. Raises TimeoutError when one does not arrive in time."""
        lines: list[str] = []
        while len(lines) < count:
            if not self._waiting.poll(LINE_DEADLINE_S * 1000):
                raise TimeoutError(f"{count - len(lines)} VMs of {count} do not answer")
            *complete, self._rest = (self._rest + os.read(self._fd, 1 << 20)).split(b"\n")
            lines += [line.decode() for line in complete]
        assert len(lines) == count, (len(lines), count)
        return lines


def _allow_files(wanted: int) -> None:
    """Raise this process's limit on open files to ``wanted`` if it is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
