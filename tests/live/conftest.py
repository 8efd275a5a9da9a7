"""What tests of the live view need: a terminal, and a machine with real guests."""

import os
import shutil
from pathlib import Path

import pytest
from kernel_world import QEMU, build_kvmload


def missing() -> str | None:
    """Why no live view can be tested on this machine; None: all is there."""
    if os.geteuid() != 0:
        return "needs root to load BPF programs"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "needs a working /dev/kvm"
    absent = [program for program in (QEMU, "tmux") if shutil.which(program) is None]
    return f"needs {' and '.join(absent)}" if absent else None


@pytest.fixture(scope="session", autouse=True)
def live_required() -> None:
    """Skip where the machine cannot do it, fail where it was promised."""
    reason = missing()
    if reason is None:
        return
    if "kernel" in os.environ.get("HVPROBE_REQUIRE", "").split(","):
        pytest.fail(f"HVPROBE_REQUIRE=kernel, but this machine {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kvmload(live_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kvmload program."""
    return build_kvmload(tmp_path_factory.mktemp("kvmload"))
