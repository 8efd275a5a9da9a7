# SPDX-License-Identifier: Apache-2.0
"""The counters of a process, one row each, and where each of them is shown. Pure data.

A counter is a field of ``struct ledger_activity`` (ledger.h) that a hook's program adds to. The
mirror of that record, reports, JSON and its schema, metrics, page, live view and doctor iterate
over ``COUNTERS``; they read it at the time of use, as ``counters.COUNTERS``. Must not know what a
counter proves: see probes.judge.
"""

from dataclasses import dataclass

from ebpf.hooks import HOOKS, Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How Prometheus sees a counter of a VM."""

    name: str
    """Without ``_total``."""
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveColumn:
    """How the live view shows the rate of a counter."""

    heading: str
    """At most 6 characters."""
    long_heading: str | None = None
    """Where there is room; None: the same."""
    stands_in_for: str | None = None
    """The counter whose column this one takes while that one's hook is not attached."""
    note: str | None = None
    """What the header says while it stands in."""

    def text(self, *, long: bool) -> str:
        """The heading."""
        return self.long_heading if long and self.long_heading else self.heading


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """One counter of a process."""

    name: str
    """The field of ``struct ledger_activity``; records, reports and trusts have it as their key."""
    hook: Hook
    """Feeds it."""
    counts: str
    """What one of it is."""
    json: str | None = None
    """Key in the JSON of a process; None: only judgement uses it, and no report has it."""
    metric: Metric | None = None
    """None: VMs have no series of it and no key in their JSON."""
    label: str | None = None
    """Name in doctor and page, which say whether it can be trusted; None: they do not."""
    page_heading: str | None = None
    """Column of the page; None: it has none."""
    column: LiveColumn | None = None
    """Column of the live view; None: it has none."""
    implied_by: str | None = None
    """The counter that cannot grow for long while this one stands still, unless this one's hook is
    blind; None: its silence never proves that."""
    shows_activity: bool = False
    """Whether the live view may draw and sort by it: it takes the first by rank that counts."""
    rank: int = 100
    """Outputs for people list counters from the lowest rank to the highest."""


_HOOK = {hook.name: hook for hook in HOOKS}

RUNS = Counter(
    name="runs",
    hook=_HOOK["kvm_vcpu_ioctl"],
    counts="KVM_RUN calls",
    json="kvm_runs_total",
    column=LiveColumn(heading="RUN/s", long_heading="KVM_RUN/s"),
)
USERSPACE_EXITS = Counter(
    name="userspace_exits",
    hook=_HOOK["kvm_userspace_exit"],
    counts="Returns of KVM_RUN to the VMM, since it started or the probes were attached",
    json="vcpu_userspace_exits_total",
    metric=Metric(
        name="kubevirt_vmi_vcpu_userspace_exits",
        help="Returns from KVM_RUN to QEMU, the expensive kind of exit; same rules as "
        "kubevirt_vmi_vcpu_exits_total.",
    ),
    label="userspace exits",
    page_heading="To QEMU/s",
    column=LiveColumn(
        heading="USER/s",
        long_heading="USER_EXIT/s",
        stands_in_for="runs",
        note="returns of KVM_RUN to user space; KVM_RUN itself is not counted here",
    ),
    shows_activity=True,
    rank=2,
)
COMPLETED_RUNS = Counter(
    name="completed_runs",
    hook=_HOOK["kvm_userspace_exit"],
    counts="Returns of KVM_RUN that prove a run: the call did not fail, and KVM could go on",
)
EXITS = Counter(
    name="exits",
    hook=_HOOK["kvm_exit"],
    counts="VM exits",
    json="vcpu_exits_total",
    metric=Metric(
        name="kubevirt_vmi_vcpu_exits",
        help="VM exits the kernel counted since the VM's process started, or since hvprobe "
        "attached if that was later. Absent where this kernel cannot tell and for VMs not "
        "accelerated.",
    ),
    label="VM exits",
    page_heading="Exits/s",
    column=LiveColumn(heading="EXIT/s"),
    implied_by="completed_runs",
    shows_activity=True,
    rank=1,
)
MSHV_RUNS = Counter(
    name="mshv_runs",
    hook=_HOOK["mshv_vp_ioctl"],
    counts="MSHV_RUN_VP calls",
    json="mshv_runs_total",
    column=LiveColumn(heading="VP/s", long_heading="RUN_VP/s"),
    shows_activity=True,
    rank=3,
)

COUNTERS: tuple[Counter, ...] = (RUNS, USERSPACE_EXITS, COMPLETED_RUNS, EXITS, MSHV_RUNS)
"""In the order of the fields of ``struct ledger_activity``."""


def ranked() -> tuple[Counter, ...]:
    """All counters, those first that say most to a person."""
    return tuple(sorted(COUNTERS, key=lambda counter: counter.rank))


def trusted() -> tuple[Counter, ...]:
    """Those of which the report says how far they can be trusted, by rank."""
    return tuple(counter for counter in ranked() if counter.label is not None)
