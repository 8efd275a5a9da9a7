"""What tests of real hooks need, and the node as hvprobe sees it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_node import Node
from kernel_world import QEMU, build_kvmload


def missing() -> str | None:
    """Why nothing here can be tested on this machine; None: all is there."""
    if os.geteuid() != 0:
        return "needs root to load BPF programs"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "needs a working /dev/kvm"
    if shutil.which(QEMU) is None:
        return f"needs {QEMU}"
    try:
        import bcc
    except ImportError:
        return "needs the distribution's python3-bpfcc"
    return None if hasattr(bcc, "BPF") else "the bcc that is installed is not the BPF one"


@pytest.fixture(scope="session", autouse=True)
def kernel_required() -> None:
    """Skip where the machine cannot do it, fail where it was promised."""
    reason = missing()
    if reason is None:
        return
    if "kernel" in os.environ.get("HVPROBE_REQUIRE", "").split(","):
        pytest.fail(f"HVPROBE_REQUIRE=kernel, but this machine {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kvmload(kernel_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kvmload program."""
    given = os.environ.get("HVPROBE_KVMLOAD")
    return Path(given) if given else build_kvmload(tmp_path_factory.mktemp("kvmload"))


@pytest.fixture(scope="module")
def node(kernel_required: None) -> Iterator[Node]:
    """The node as seen by hooks that are attached before anything the module's tests start."""
    with Node() as watching:
        watching.report()
        yield watching


@pytest.fixture
def new_node(kernel_required: None) -> Iterator[Callable[[], Node]]:
    """Attach a further set of hooks now."""
    opened: list[Node] = []

    def attach() -> Node:
        opened.append(Node())
        return opened[-1]

    yield attach
    for each in opened:
        each.close()
