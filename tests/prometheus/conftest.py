"""What an end-to-end test needs of this machine: real guests and a real Prometheus."""

import importlib.util
import os
import shutil

import pytest
from kernel_world import QEMU
from prometheus_process import missing_programs


def missing() -> dict[str, str]:
    """What is missing, by the word of HVPROBE_REQUIRE that promises it."""
    found = {}
    programs = missing_programs()
    if programs:
        found["prometheus"] = f"not installed: {', '.join(programs)}"
    if os.geteuid() != 0:
        found["kernel"] = "needs root to load BPF programs"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        found["kernel"] = "needs a working /dev/kvm"
    elif shutil.which(QEMU) is None:
        found["kernel"] = f"needs {QEMU}"
    elif importlib.util.find_spec("bcc") is None:
        found["kernel"] = "needs the distribution's python3-bpfcc"
    return found


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    """Skip where the machine cannot do it, fail where it was promised."""
    promised = os.environ.get("HVPROBE_REQUIRE", "").split(",")
    for word, reason in missing().items():
        if word in promised:
            pytest.fail(f"HVPROBE_REQUIRE={word}, but: {reason}")
        pytest.skip(reason)
