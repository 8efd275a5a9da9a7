# SPDX-License-Identifier: Apache-2.0
"""Remembers what the hooks have done, which decides how far counters are trusted. Pure.

Owns what a counter's silence means. Must not know how a hook is attached, nor why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ebpf import counters
from ebpf.counters import Counter
from ebpf.hook_status import HookStatus
from ebpf.ledger import PLACES, KernelSnapshot, LedgerEntry
from probes.report.model import CounterTrust

BLIND_AFTER = 100
"""Userspace exits without a VM exit after which the VM exit hook is considered blind.

On real hardware a VM exit precedes every return to user space, except for a rare call that is
interrupted before it enters the guest. A hundred in a row without one are no coincidence.
"""

Attachment = tuple[str, int]
"""Name of a counter, and how often its hook had been attached by then.

What one attachment did says nothing about the next one, because the hook may be in another module
by then.
"""

Records = Mapping[int, LedgerEntry]
"""Records of the ledger by tgid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookHistory:
    """What the hooks have done so far, which alone decides how far counters are trusted."""

    fired: frozenset[Attachment] = frozenset()
    """Attachments in which the counter has counted an event."""
    missed: frozenset[Attachment] = frozenset()
    """Attachments in which the counter missed events that other counters imply
    (``Counter.implied_by``)."""
    older: Mapping[Attachment, Records] = field(default_factory=dict)
    """Records older than an attachment, as they were when it was first read. An attachment that has
    fired needs none."""

    def after(self, kernel: KernelSnapshot) -> "HookHistory":
        """Return the history after this reading of the ledger."""
        fired, missed = set(self.fired), set(self.missed)
        older: dict[Attachment, Records] = {}
        for counter in counters.trusted():
            for attachment, since_ns in _attachments(kernel, counter):
                if attachment in fired:
                    continue
                before = self.older.get(attachment)
                if before is None:
                    before = _records_before(since_ns, kernel)
                if any(_counted_since(since_ns, counter.name, kernel, before)):
                    fired.add(attachment)
                    continue
                older[attachment] = before
                implied = counter.implied_by
                if implied is not None and (
                    sum(_counted_since(since_ns, implied, kernel, before)) >= BLIND_AFTER
                ):
                    missed.add(attachment)
        return HookHistory(fired=frozenset(fired), missed=frozenset(missed), older=older)

    def trusts(self, kernel: KernelSnapshot) -> Mapping[str, CounterTrust]:
        """Judge each counter by what its hook has done since it was last attached."""
        return {counter.name: self._trust(kernel, counter) for counter in counters.trusted()}

    def _trust(self, kernel: KernelSnapshot, counter: Counter) -> CounterTrust:
        hooks = _hooks_of(kernel, counter)
        attachments = {(counter.name, hook.attached_total) for hook in hooks if hook.attached}
        if not attachments:
            inactive = bool(hooks) and all(hook.inactive for hook in hooks)
            return CounterTrust.INACTIVE if inactive else CounterTrust.MISSING
        if attachments & self.fired:
            return CounterTrust.PROVEN
        return CounterTrust.BLIND if attachments & self.missed else CounterTrust.UNTRIED


def _hooks_of(kernel: KernelSnapshot, counter: Counter) -> list[HookStatus]:
    """Return the status of the hook that feeds a counter; empty if that hook is not wanted."""
    return [status for status in kernel.hooks if status.is_of(counter.hook)]


def _attachments(kernel: KernelSnapshot, counter: Counter) -> Iterator[tuple[Attachment, int]]:
    """Yield the present attachment of a counter's hook, with its time; none if it is detached."""
    for status in _hooks_of(kernel, counter):
        if status.attached_ns is not None:
            yield (counter.name, status.attached_total), status.attached_ns


def _records_before(since_ns: int, kernel: KernelSnapshot) -> Records:
    return {tgid: entry for tgid, entry in kernel.entries.items() if entry.first_ns < since_ns}


def _counted_since(
    since_ns: int, counter: str, kernel: KernelSnapshot, before: Records
) -> Iterator[int]:
    """Yield, for each record, what a counter has counted since a hook was attached.

    An older record may have been counted by an earlier attachment, so only what was added since the
    first reading is known to be of this one. A record that is not in that reading says nothing.
    """
    place = PLACES[counter]
    for tgid, entry in kernel.entries.items():
        if entry.first_ns >= since_ns:
            yield entry.counts[place]
        elif (old := before.get(tgid)) is not None and old.first_ns == entry.first_ns:
            yield entry.counts[place] - old.counts[place]
