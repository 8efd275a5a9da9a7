# SPDX-License-Identifier: Apache-2.0
"""Each form of the hook distinguishes returns of KVM_RUN that prove a run from others."""

from pathlib import Path

import pytest

from ebpf.hooks import KVM_USERSPACE_EXIT, AttachPoint
from ebpf.session import Session
from probes.host.hypervisors import HypervisorType, recorded_type
from tests.support.kernel_ledger import entry_with, only
from tests.support.kernel_numbers import Owners
from tests.support.kernel_world import KvmLoad, wait_for

EXITS = 503
INTERRUPTED = 11


@pytest.mark.every_kernel
@pytest.mark.parametrize(
    "point",
    KVM_USERSPACE_EXIT.points,
    ids=lambda point: point.program or KVM_USERSPACE_EXIT.program,
)
def test_only_runs_are_proof(kvmload: Path, point: AttachPoint) -> None:
    """A return with a guest's exit is a completed run; one with EINTR before the guest ran is not.

    Both count as returns. A form that does not read the result says so and counts no completed run.
    """
    with Session(hooks=only(KVM_USERSPACE_EXIT, point)) as session, Owners() as owners:
        (status,) = [status for status in session.hooks if status.is_of(KVM_USERSPACE_EXIT)]
        assert (status.backend, status.reads_result) == (point.backend, point.reads_result)
        assert status.attached_ns is not None
        with KvmLoad(kvmload, "--userspace-exits", str(EXITS)).finish_counted_part() as load:
            made = EXITS + load.totals["eintr"]
            entry = wait_for(lambda: entry_with(session, load.tgid, made), "all are counted")
            assert entry.counters["userspace_exits"] == made
            assert entry.counters["completed_runs"] == (EXITS if point.reads_result else 0)
        tgid = owners.start(INTERRUPTED)
        entry = wait_for(lambda: entry_with(session, tgid, INTERRUPTED), "all are counted")
        assert (entry.counters["userspace_exits"], entry.counters["completed_runs"]) == (
            INTERRUPTED,
            0,
        )
        assert recorded_type(entry) is HypervisorType.KVM


def test_the_best_form_is_taken() -> None:
    """The form that reads the result is attached if tracefs describes the tracepoint's record."""
    with Session() as session:
        (status,) = [status for status in session.hooks if status.is_of(KVM_USERSPACE_EXIT)]
        assert status.reads_result
