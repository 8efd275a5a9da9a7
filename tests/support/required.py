# SPDX-License-Identifier: Apache-2.0
"""What kinds of tests need of the machine: skipped where it is not there, failed where promised.

``HVPROBE_REQUIRE`` names, separated by commas, the kinds that were promised.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.kernel_world import QEMU


def require(kind: str, reason: str | None) -> None:
    """Skip or fail for the reason; None: all is there."""
    if reason is None:
        return
    if kind in os.environ.get("HVPROBE_REQUIRE", "").split(","):
        pytest.fail(f"HVPROBE_REQUIRE={kind}, but {reason}")
    pytest.skip(reason)


def mount_tracefs() -> None:
    """Mount it where the machine has not, as an init system does."""
    if not Path("/sys/kernel/tracing/events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=True)


def missing_for_guests(*programs: str) -> str | None:
    """Why hooks and real guests are unavailable on this machine; None: they are available."""
    if os.geteuid() != 0:
        return "this needs root, to load BPF programs"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "this needs a working /dev/kvm"
    absent = [program for program in (QEMU, *programs) if shutil.which(program) is None]
    if absent:
        return f"this needs {' and '.join(absent)}"
    mount_tracefs()
    try:
        import bcc
    except ImportError:
        return "this needs the distribution's python3-bpfcc"
    return None if hasattr(bcc, "BPF") else "the bcc that is installed is not the BPF one"
