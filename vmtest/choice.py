# SPDX-License-Identifier: Apache-2.0
"""Which of tests/kernel a guest runs, by the marks of the tests, and how long it may take for them.

Must not know how a guest is built or booted.
"""

import os
from collections.abc import Mapping

from vmtest.in_guest import DEADLINE_S
from vmtest.kernels import Architecture, GuestKernel

BRIEF_VARIABLE = "HVPROBE_BRIEF"
FULL = "not host_only"
"""Every test but those for this machine's kernel alone. They do not depend on the kernel, or an
emulated processor takes many minutes for them."""
BRIEF = "every_kernel"
"""For a kernel that HVPROBE_BRIEF names: what differs from kernel to kernel."""
FULL_ELSEWHERE = ""
"""On another architecture than this machine's: every test, because this machine's kernel cannot
show what they show there."""
BRIEF_ELSEWHERE = f"{BRIEF} or every_architecture"
"""The brief choice there: also what differs from architecture to architecture."""

DEADLINES_ELSEWHERE = 2
"""How many deadlines of other guests it takes to run every test there."""


def choice(kernel: GuestKernel, environ: Mapping[str, str] = os.environ) -> str:
    """The marker expression of the tests that a kernel's guest runs."""
    brief = kernel.name in [name.strip() for name in environ.get(BRIEF_VARIABLE, "").split(",")]
    if kernel.architecture is Architecture.AMD64:  # this machine's: see vmtest.vm.unavailable()
        return BRIEF if brief else FULL
    return BRIEF_ELSEWHERE if brief else FULL_ELSEWHERE


def deadline_s(kernel: GuestKernel, environ: Mapping[str, str] = os.environ) -> float:
    """How long a kernel's guest may take, boot included."""
    return DEADLINE_S * (DEADLINES_ELSEWHERE if choice(kernel, environ) == FULL_ELSEWHERE else 1)
