# SPDX-License-Identifier: Apache-2.0
"""Guests whose kernel preempts threads nearly anywhere: real-time, or booted with preempt=full.

Each runs the tests of counts beside other users of BPF, with bpftrace and BCC's tools in its root.
HVPROBE_PREEMPTION chooses guests by name, separated by commas, or ``all``; ``make test-preemption``
sets it, because a guest takes minutes. What it leaves stays in build/test-kernels/NAME.
"""

import dataclasses
import os
from dataclasses import dataclass

import pytest

from tests.support.kernel_preemption import EXPECTED_VARIABLE, FULL, REAL_TIME
from tests.support.required import require
from vmtest.build import BUILD_S, BuiltGuest, build
from vmtest.by_name import rows_in
from vmtest.in_guest import DEADLINE_S, PYTEST, SELF_CHECK, environment, verdict
from vmtest.kernels import GuestKernel, kernel_named
from vmtest.programs import build_programs
from vmtest.results import results_of
from vmtest.root import build_root
from vmtest.vm import boot, unavailable

SELECTION_VARIABLE = "HVPROBE_PREEMPTION"
EXTRA_PACKAGES = ("bpfcc-tools", "bpftrace")
TESTS = (
    "tests/kernel/test_preemption.py",
    "tests/kernel/test_exact_counts.py",
    "tests/kernel/test_missed.py",
    "tests/kernel/test_kprobe_links.py",
    "tests/kernel/test_returns.py",
    "tests/kernel/test_slots.py",
)
COMMAND = f"""\
{SELF_CHECK}
eval "set -- $HVPROBE_GUEST_PYTEST"
exec {PYTEST} -v --durations=15 -m "not host_only" "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One boot: a kernel, and how it is to preempt."""

    name: str
    kernel: GuestKernel
    preemption: str
    """What the guest is to find, see ``tests.support.kernel_preemption.preemption``."""
    arguments: str = ""
    """Of the kernel."""


GUESTS = (
    Guest(name="6.12-rt", kernel=kernel_named("6.12-rt"), preemption=REAL_TIME),
    *(
        Guest(
            name=f"{kernel}-full",
            kernel=kernel_named(kernel),
            preemption=FULL,
            arguments="preempt=full",
        )
        for kernel in ("6.12", "7.2")
    ),
)


def built(guest: Guest) -> BuiltGuest:
    """The guest's parts, with other users of BPF in its root."""
    kernel = guest.kernel
    root = build_root(kernel.root_suite, kernel.architecture, extra=EXTRA_PACKAGES)
    return dataclasses.replace(build(kernel), root=root)


@pytest.mark.timeout(DEADLINE_S + 2 * BUILD_S)
@pytest.mark.parametrize(
    "guest",
    rows_in(SELECTION_VARIABLE, GUESTS, what="guest of preemption"),
    ids=lambda guest: guest.name,
)
def test_preemption(guest: Guest) -> None:
    """Counts are exact or what is missed is counted, beside maps' users, bpftrace, BCC, hvprobe."""
    require("guests", unavailable(guest.kernel.architecture))
    parts = built(guest)
    with results_of(guest.name) as results:
        build_programs(guest.kernel.architecture, results / "bin")
        done = boot(
            parts,
            COMMAND,
            results,
            deadline_s=DEADLINE_S,
            environment={
                **environment(),
                "HVPROBE_REQUIRE": "kernel,bpf_users",
                EXPECTED_VARIABLE: guest.preemption,
                "HVPROBE_GUEST_PYTEST": os.environ.get("HVPROBE_GUEST_PYTEST", " ".join(TESTS)),
            },
            kernel_arguments=guest.arguments,
        )
        wrong = verdict(done, results)
    if wrong:
        pytest.fail(f"{guest.name}: {wrong}\n{done.console_tail()}")
