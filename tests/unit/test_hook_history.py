# SPDX-License-Identifier: Apache-2.0
"""How far counters are trusted, by what their hooks have done since they were attached."""

from dataclasses import replace

import pytest

from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM, KVM_EXIT, KVM_USERSPACE_EXIT, Hook
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.report.hook_history import BLIND_AFTER, Attachment, HookHistory
from probes.report.model import CounterTrust
from tests.support.facts import ALL_HOOKS, ATTACHED_NS, entry, hooks, kernel

PROVEN, UNTRIED = CounterTrust.PROVEN, CounterTrust.UNTRIED
BLIND, MISSING = CounterTrust.BLIND, CounterTrust.MISSING
INACTIVE = CounterTrust.INACTIVE
RETURNED, EXITED = ("userspace_exits", 1), ("exits", 1)
"""Counters that have counted since their hooks were attached for the first time."""
EXITED_LATER = ("exits", 2)


@pytest.mark.parametrize(
    ("attached", "fired", "returns", "expected"),
    [
        (ALL_HOOKS, frozenset(), 0, (UNTRIED, UNTRIED)),
        (ALL_HOOKS, frozenset({RETURNED, EXITED}), 500, (PROVEN, PROVEN)),
        (frozenset(), frozenset({RETURNED, EXITED}), 500, (MISSING, MISSING)),
        # kvm_pvm: KVM_RUN returns by the hundred and the tracepoint kvm_exit never fires.
        (
            frozenset({KVM_USERSPACE_EXIT, KVM_EXIT}),
            frozenset({RETURNED}),
            BLIND_AFTER,
            (PROVEN, BLIND),
        ),
        (
            ALL_HOOKS,
            frozenset({RETURNED}),
            BLIND_AFTER - 1,
            (PROVEN, UNTRIED),
        ),
        (
            ALL_HOOKS,
            frozenset({RETURNED, EXITED}),
            BLIND_AFTER,
            (PROVEN, PROVEN),
        ),
        (
            frozenset({KVM_USERSPACE_EXIT}),
            frozenset({RETURNED}),
            BLIND_AFTER,
            (PROVEN, MISSING),
        ),
    ],
)
def test_trust(
    attached: frozenset[Hook],
    fired: frozenset[Attachment],
    returns: int,
    expected: tuple[CounterTrust, ...],
) -> None:
    """A counter is trusted once its hook has fired.

    Without an attached hook it is missing. If its hook never fires while guests return to user
    space, it is blind.
    """
    earlier = HookHistory(fired=fired)
    returned = kernel(entry(userspace_exits=returns), hooks=hooks(attached))
    found = earlier.after(returned).trusts(kernel(hooks=hooks(attached)))
    assert (found["userspace_exits"], found["exits"]) == expected


def test_blindness_is_found_on_all_guests_together() -> None:
    """Many guests with few returns each prove as much as one guest with many."""
    entries = [entry(tgid, userspace_exits=1) for tgid in range(BLIND_AFTER)]
    assert HookHistory().after(kernel(*entries)).missed
    assert not HookHistory().after(kernel(*entries[1:])).missed
    refused = [entry(tgid, userspace_exits=1, completed_runs=0) for tgid in range(BLIND_AFTER)]
    assert not HookHistory().after(kernel(*refused)).missed


def test_blindness_is_not_forgotten_with_its_guests() -> None:
    """A blind hook stays blind after its guests have ended, until it fires."""
    blind = HookHistory(fired=frozenset({RETURNED}), missed=frozenset({EXITED})).after(kernel())
    assert blind.trusts(kernel())["exits"] is BLIND
    assert blind.after(kernel(entry(exits=1))).trusts(kernel())["exits"] is PROVEN


@pytest.mark.parametrize(
    ("entries", "fired"),
    [
        ((), set()),
        ((entry(vms_created=1, vcpus_created=1, runs=1),), set()),
        ((entry(1, userspace_exits=1), entry(2, exits=1)), {RETURNED, EXITED}),
        ((entry(1, userspace_exits=1, first_ns=ATTACHED_NS - 1),), set()),
        ((entry(1, userspace_exits=1, first_ns=ATTACHED_NS),), {RETURNED}),
    ],
)
def test_hooks_fired(entries: tuple[LedgerEntry, ...], fired: set[object]) -> None:
    """A hook has fired if it counted for a process that began after the hook was attached."""
    assert HookHistory().after(kernel(*entries)).fired == fired


def test_a_hook_that_is_attached_again_has_to_fire_again() -> None:
    """After a new attachment, another module may call the hook, or may never call it."""
    again = tuple(replace(status, attached_total=2) for status in hooks())
    snapshot = kernel(entry(exits=1), hooks=again)
    before = HookHistory(fired=frozenset({EXITED}))
    assert before.trusts(snapshot)["exits"] is UNTRIED
    assert ("exits", 2) in before.after(snapshot).fired


# a hook on demand


def with_exits(change: HookStatus, *entries: LedgerEntry) -> KernelSnapshot:
    """Return a snapshot whose hook of VM exits has this status."""
    statuses = [change if status.is_of(KVM_EXIT) else status for status in hooks()]
    return kernel(*entries, hooks=tuple(statuses))


def exits(*, attached_ns: int, attached_total: int = 2) -> HookStatus:
    (status,) = [status for status in hooks() if status.is_of(KVM_EXIT)]
    return replace(status, attached_ns=attached_ns, attached_total=attached_total)


UNNEEDED = exits(attached_ns=ATTACHED_NS).not_needed()
OLD = entry(1)
"""A record that is older than the second attachment."""
LATE_NS = OLD.first_ns + 1


def test_a_hook_that_is_detached_on_purpose_is_inactive() -> None:
    """Neither a hook that nothing needs nor one without its driver is missing."""
    for status in (UNNEEDED, UNNEEDED.driver_gone(KVM)):
        assert HookHistory().trusts(with_exits(status))["exits"] is INACTIVE
    failed = UNNEEDED.failed("not permitted")
    assert HookHistory().trusts(with_exits(failed))["exits"] is MISSING


def test_a_hook_misses_nothing_while_it_is_detached() -> None:
    """Returns before the hook was attached do not make it blind, but later ones do."""
    returned = OLD._replace(counts=entry(userspace_exits=BLIND_AFTER).counts)
    history = HookHistory().after(with_exits(UNNEEDED, returned))
    late = exits(attached_ns=LATE_NS)
    for _ in range(2):
        history = history.after(with_exits(late, returned))
        assert history.trusts(with_exits(late))["exits"] is UNTRIED
    young = entry(2, first_ns=LATE_NS, userspace_exits=BLIND_AFTER - 1)
    history = history.after(with_exits(late, returned, young))
    assert history.trusts(with_exits(late))["exits"] is UNTRIED
    again = OLD._replace(counts=entry(userspace_exits=BLIND_AFTER + 1).counts)
    history = history.after(with_exits(late, again, young))
    assert history.trusts(with_exits(late))["exits"] is BLIND
    assert history.missed == {EXITED_LATER}


def test_an_old_record_proves_a_hook_only_by_what_it_adds() -> None:
    """What an earlier attachment counted proves nothing about the present one."""
    late = exits(attached_ns=LATE_NS)
    counted = OLD._replace(counts=entry(exits=40).counts)
    history = HookHistory().after(with_exits(late, counted)).after(with_exits(late, counted))
    assert EXITED_LATER not in history.fired
    more = OLD._replace(counts=entry(exits=41).counts)
    assert EXITED_LATER in history.after(with_exits(late, more)).fired
    reused = more._replace(first_ns=OLD.first_ns - 1)
    assert EXITED_LATER not in history.after(with_exits(late, reused)).fired
    unseen = more._replace(tgid=2)
    assert EXITED_LATER not in history.after(with_exits(late, unseen)).fired


def test_nothing_is_kept_of_an_attachment_that_has_fired() -> None:
    """Old records are forgotten with the first event, and when the hook is detached."""
    late = exits(attached_ns=LATE_NS)
    history = HookHistory().after(with_exits(late, OLD))
    assert set(history.older) == {EXITED_LATER, RETURNED}
    fired = history.after(with_exits(late, OLD, entry(2, first_ns=LATE_NS, exits=1)))
    assert set(fired.older) == {RETURNED}
    assert set(history.after(with_exits(UNNEEDED, OLD)).older) == {RETURNED}


def test_blindness_ends_with_the_attachment() -> None:
    """Another module may fire the hook that this one never fired."""
    blind = HookHistory(missed=frozenset({EXITED}))
    assert blind.trusts(kernel())["exits"] is BLIND
    assert blind.trusts(with_exits(exits(attached_ns=LATE_NS)))["exits"] is UNTRIED
