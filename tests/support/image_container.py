# SPDX-License-Identifier: Apache-2.0
"""EDGE: a container of the image, made from a rendered DaemonSet and run by runc, an OCI runtime.

Owns runc's state and the agent's life in it. A run that is killed leaves its container behind, with
a lock that no process holds. The next run removes it.
"""

import contextlib
import fcntl
import json
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.agent import Connection
from probes.vmi.kube.credentials import InCluster
from tests.support.image_build import ROOT, Image
from tests.support.image_pod import SERVICE_ACCOUNT, World, runtime_config
from tests.support.kernel_agent import Agent
from tests.support.kernel_world import Started

STATES = ROOT / "build" / "test-image"
CAPABILITIES = {
    "CAP_BPF": 39,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_PERFMON": 38,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_RESOURCE": 24,
}
"""The capabilities that tests name, and their bits (include/uapi/linux/capability.h)."""
Json = dict[str, Any]


def possible_capabilities() -> frozenset[str]:
    """The capabilities of CAPABILITIES that root has on this machine."""
    found = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    effective = int(found[1], 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1)


def host_devices() -> list[Json]:
    """The devices of a privileged container: here /dev/kvm alone, if this machine has it."""
    devices = []
    for path in (Path("/dev/kvm"),):
        with contextlib.suppress(FileNotFoundError):
            numbers = path.stat()
            assert stat.S_ISCHR(numbers.st_mode)
            major, minor = os.major(numbers.st_rdev), os.minor(numbers.st_rdev)
            devices.append({"path": str(path), "type": "c", "major": major, "minor": minor})
    return devices


class Container(Agent):
    """The agent in its container, with the HTTP methods of kernel_agent.Agent."""

    def __init__(self, bundle: Path, state: Path) -> None:
        # The cgroup has this name too. It is unique, because two checkouts may run tests at once.
        self.name = f"agent-{bundle.name}"
        self.state = state
        Started.__init__(
            self,
            ["runc", "--root", state, "run", "--bundle", bundle, self.name],
            stderr=subprocess.PIPE,
        )
        self.log = []
        self.url = self._url()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as `kubectl exec` does."""
        return subprocess.run(
            ["runc", "--root", str(self.state), "exec", self.name, *command],
            check=False,
            capture_output=True,
            text=True,
        )

    def connect(self) -> Connection:
        """A connection that is kept open and scrapes as Prometheus does; not for TLS."""
        port = urlsplit(self.url).port
        assert port
        return Connection(port)

    def main_tgid(self) -> int:
        """The process number of the agent's main process on this machine."""
        shown = runc(self.state, "state", self.name)
        return int(json.loads(shown)["pid"])


def runc(state: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["runc", "--root", str(state), *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"runc {arguments[0]}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def running(  # noqa: PLR0913 - each is a change of the pod that a test may need by itself
    image: Image,
    daemonset: Json,
    seccomp: Json,
    *,
    without: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, Mapping[str, bytes]] | None = None,
    own_network: bool = False,
    service_account: InCluster | None = None,
    node: str = "worker-1",
    cold: bool = False,
) -> Iterator[Container]:
    """Run the DaemonSet's container, without the given ones of its capabilities.

    files: secrets by name, each with its files. own_network: the agent listens at the image's
    default address, and only Container.execute reaches it. service_account: that of a cluster whose
    API server listens on this machine; without one the agent finds no cluster. cold: the image's
    files are dropped from the page cache first, so those that are read count as the container's
    memory.
    """
    with workplace() as place:
        if cold:
            drop_from_page_cache(image.root)
        mounted = dict(files or {})
        if service_account:
            mounted[SERVICE_ACCOUNT] = account_files(service_account, daemonset)
        for secret, content in mounted.items():
            (place / secret).mkdir()
            for name, data in content.items():
                (place / secret / name).write_bytes(data)
        world = World(
            root=image.root,
            image=image.config,
            scratch=place,
            capabilities=possible_capabilities() - frozenset(without),
            seccomp=seccomp,
            environment={
                **({} if own_network else {"HVPROBE_LISTEN": "127.0.0.1:0"}),
                **(environment or {}),
            },
            devices=host_devices(),
            own_network=own_network,
            node=node,
            service_account=service_account,
        )
        (place / "config.json").write_text(json.dumps(runtime_config(daemonset, world), indent=1))
        state = place / "runc"
        container: Container | None = None
        try:
            container = Container(place, state)
            yield container
        finally:
            delete_all(state)
            if container is not None:
                container.kill()


def drop_from_page_cache(root: Path) -> None:
    """Drop all files below a directory from the page cache, except pages that are mapped."""
    os.sync()  # dirty pages would stay
    for directory, _, names in os.walk(root):
        for file in (Path(directory, name) for name in names):
            if stat.S_ISREG(file.lstat().st_mode):
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def account_files(account: InCluster, daemonset: Json) -> dict[str, bytes]:
    """The files that kubelet mounts of a service account, by name."""
    return {
        "token": account.token_file.read_bytes(),
        "ca.crt": account.ca_file.read_bytes(),
        "namespace": daemonset["metadata"]["namespace"].encode(),
    }


def delete_all(state: Path) -> None:
    """End and delete the containers of one run."""
    if state.is_dir():
        for container in state.iterdir():
            runc(state, "delete", "--force", container.name)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Make a directory for this run, and remove those of killed runs with their containers."""
    STATES.mkdir(parents=True, exist_ok=True)
    for left in STATES.glob("run-*"):
        held = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            delete_all(left / "runc")
            subprocess.run(["rm", "-rf", str(left)], check=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)
    place = Path(tempfile.mkdtemp(prefix="run-", dir=STATES))
    held = os.open(place, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield place
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)
        os.close(held)
