# SPDX-License-Identifier: Apache-2.0
"""The hook of VM exits counts while it is needed, and only then."""

from pathlib import Path

import pytest

from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM_EXIT
from ebpf.ledger import LedgerEntry
from ebpf.session import Session
from tests.support.kernel_ledger import entry_with
from tests.support.kernel_world import KvmLoad, wait_for

FIRST, SECOND, THIRD, FOURTH = 101, 103, 107, 109
"""Returns to user space while the hook is not needed, needed, not needed, and needed again."""


def status(session: Session) -> HookStatus:
    (found,) = [status for status in session.hooks if status.is_of(KVM_EXIT)]
    return found


@pytest.mark.every_kernel
def test_exits_are_counted_while_the_hook_is_needed(kvmload: Path) -> None:
    """The hook is attached and detached at once, and what it has counted stays in the record."""

    def exits(returns: int) -> int:
        entry: LedgerEntry = wait_for(
            lambda: entry_with(session, load.tgid, returns), "all returns are counted"
        )
        return entry.counters["exits"]

    with Session() as session, KvmLoad(kvmload, "--paused", "--step") as load:
        load.finish_counted_part()
        assert (status(session).attached, status(session).unneeded) == (False, True)
        load.step(FIRST)
        assert exits(FIRST) == 0
        session.need([KVM_EXIT])
        if not status(session).attached:
            pytest.skip(f"kvm_exit is not attached: {status(session).reason}")
        load.step(SECOND)
        counted = exits(FIRST + SECOND)
        session.need(())
        assert (status(session).attached, status(session).unneeded) == (False, True)
        load.step(THIRD)
        assert exits(FIRST + SECOND + THIRD) == counted
        session.need([KVM_EXIT])
        assert status(session).attached_total == 2
        load.step(FOURTH)
        again = exits(FIRST + SECOND + THIRD + FOURTH)
        if not again:
            pytest.skip("kvm_exit does not fire on this kernel")
        assert counted >= SECOND
        assert again - counted >= FOURTH
