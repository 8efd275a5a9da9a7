"""EDGE: a container of the image, run by runc, a real OCI runtime, from a rendered DaemonSet.

Owns runc's state and the agent's life in it. A run that was killed leaves its container behind; the
next one, told by the lock that nobody holds, removes it.
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

from image_build import ROOT, Image
from image_pod import World, runtime_config
from kernel_agent import Agent
from kernel_world import Started

STATES = ROOT / "build" / "test-image"
CAPABILITIES = {
    "CAP_BPF": 39,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_PERFMON": 38,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_RESOURCE": 24,
}
"""Those this module asks for by name (include/uapi/linux/capability.h)."""
Json = dict[str, Any]


def possible_capabilities() -> frozenset[str]:
    """Those of CAPABILITIES that this machine's root has."""
    found = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    effective = int(found[1], 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1)


def host_devices() -> list[Json]:
    """What a privileged container finds in /dev: here /dev/kvm, if there is one."""
    devices = []
    for path in (Path("/dev/kvm"),):
        with contextlib.suppress(FileNotFoundError):
            numbers = path.stat()
            assert stat.S_ISCHR(numbers.st_mode)
            major, minor = os.major(numbers.st_rdev), os.minor(numbers.st_rdev)
            devices.append({"path": str(path), "type": "c", "major": major, "minor": minor})
    return devices


class Container(Agent):
    """The agent in its container, asked over HTTP as kernel_agent.Agent is."""

    def __init__(self, bundle: Path, state: Path) -> None:
        self.name = "agent"
        self.state = state
        Started.__init__(
            self,
            ["runc", "--root", state, "run", "--bundle", bundle, self.name],
            stderr=subprocess.PIPE,
        )
        self.log = []
        self.url = self._url()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """What `kubectl exec` does."""
        return subprocess.run(
            ["runc", "--root", str(self.state), "exec", self.name, *command],
            check=False,
            capture_output=True,
            text=True,
        )

    def main_tgid(self) -> int:
        """The agent's own process."""
        shown = runc(self.state, "state", self.name)
        return int(json.loads(shown)["pid"])


def runc(state: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["runc", "--root", str(state), *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"runc {arguments[0]}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def running(
    image: Image,
    daemonset: Json,
    seccomp: Json,
    *,
    without: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, Mapping[str, bytes]] | None = None,
    own_network: bool = False,
) -> Iterator[Container]:
    """The DaemonSet's container, running; without some capabilities that it asks for.

    files: secrets by name, each with its files. own_network: it then listens where the image's
    default says, and only Container.execute reaches it.
    """
    with workplace() as place:
        for secret, content in (files or {}).items():
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
        )
        (place / "config.json").write_text(json.dumps(runtime_config(daemonset, world), indent=1))
        state = place / "runc"
        try:
            container = Container(place, state)
            yield container
        finally:
            delete_all(state)


def delete_all(state: Path) -> None:
    """End and forget the containers of one run."""
    if state.is_dir():
        for each in state.iterdir():
            runc(state, "delete", "--force", each.name)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory of this run's own; those of killed runs go, with their containers."""
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
