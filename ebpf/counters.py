# SPDX-License-Identifier: Apache-2.0
"""Lists the counters of a process, and where each one is shown. Pure data.

A counter is a field of ``struct ledger_activity`` or ``struct ledger_cpu_activity`` (ledger.h) to
which a hook's program adds. The mirrors of these records, reports, JSON and its schema, metrics,
page, live view and doctor iterate over ``COUNTERS``. They read it at the time of use, as
``counters.COUNTERS``. Must not know what a counter proves: probes.judge owns that.
"""

from dataclasses import dataclass

from ebpf.hooks import KVM_EXIT, KVM_USERSPACE_EXIT, KVM_VCPU_IOCTL, MSHV_VP_IOCTL, Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The Prometheus metric that exports a counter of a VM."""

    name: str
    """Name of the metric without ``_total``."""
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveColumn:
    """The column of the live view that shows the rate of a counter."""

    heading: str
    """Heading of at most 6 characters."""
    long_heading: str | None = None
    """Heading on a wide terminal; None: the same as on a narrow one."""
    stands_in_for: str | None = None
    """Name of the counter that this column replaces while that counter's hook is not attached."""
    note: str | None = None
    """Line of the header that explains the replacement."""

    def text(self, *, long: bool) -> str:
        """Return the heading, in its long form if there is one and it is wanted."""
        return self.long_heading if long and self.long_heading else self.heading


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """One counter of a process."""

    name: str
    """Field of its record in ledger.h, and key of its total and trust in reports."""
    hook: Hook
    """The hook whose program adds to the counter."""
    counts: str
    """The events that it counts, as a noun phrase."""
    per_cpu: bool = False
    """Whether each CPU counts for itself, in ``struct ledger_cpu_activity``, because the event is
    so short that an atomic addition would show. False: all CPUs add to one field of ``struct
    ledger_activity``, so reading it costs the same on any number of CPUs."""
    json: str | None = None
    """Key in the JSON of a process; None: only judgement uses the counter, and no report has it."""
    metric: Metric | None = None
    """Its metric; None: VMs have neither a series nor a JSON key of it."""
    label: str | None = None
    """Name in doctor and page, which say whether it can be trusted; None: they omit it."""
    page_heading: str | None = None
    """Heading of its column on the page; None: it has none."""
    column: LiveColumn | None = None
    """Its column in the live view; None: it has none."""
    implied_by: str | None = None
    """Name of the counter that cannot grow for long without this one. If it does, the hook of this
    counter is blind. None: silence never proves that."""
    shows_activity: bool = False
    """Whether the live view may draw it and sort by it. Of several such counters that have counted,
    the live view uses the one with the lowest rank."""
    rank: int = 100
    """Place among the counters in outputs for people: the lowest rank comes first."""


RUNS = Counter(
    name="runs",
    hook=KVM_VCPU_IOCTL,
    counts="KVM_RUN calls",
    json="kvm_runs_total",
    column=LiveColumn(heading="RUN/s", long_heading="KVM_RUN/s"),
)
USERSPACE_EXITS = Counter(
    name="userspace_exits",
    hook=KVM_USERSPACE_EXIT,
    counts="Returns of KVM_RUN to the VMM, since it started or the probes were attached",
    json="vcpu_userspace_exits_total",
    metric=Metric(
        name="kubevirt_vmi_vcpu_userspace_exits",
        help="Returns of KVM_RUN to QEMU, the expensive kind of exit, counted by a hook since the "
        "VM started or hvprobe attached, whichever is later. Absent where the hook has not counted "
        "this VM; hvprobe doctor shows whether it is attached.",
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
    hook=KVM_USERSPACE_EXIT,
    counts="Returns of KVM_RUN that prove a run: the call did not fail, and KVM could continue",
)
EXITS = Counter(
    name="exits",
    hook=KVM_EXIT,
    counts="VM exits",
    per_cpu=True,
    json="vcpu_exits_total",
    metric=Metric(
        name="kubevirt_vmi_vcpu_exits",
        help="VM exits. From KVM's own statistics where QEMU (8.1 and later) holds them open: "
        "since the VM started. Else from tracepoint kvm_exit: since the VM started or hvprobe "
        "attached, whichever is later. Absent where neither can count this VM and for VMs not "
        "accelerated; hvprobe live shows the source.",
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
    hook=MSHV_VP_IOCTL,
    counts="MSHV_RUN_VP calls",
    json="mshv_runs_total",
    column=LiveColumn(heading="VP/s", long_heading="RUN_VP/s"),
    shows_activity=True,
    rank=3,
)

COUNTERS: tuple[Counter, ...] = (RUNS, USERSPACE_EXITS, COMPLETED_RUNS, EXITS, MSHV_RUNS)
"""All counters, in the order of outputs. Those of one record have the order of its fields."""


def ranked() -> tuple[Counter, ...]:
    """Return all counters, the most informative ones for a person first."""
    return tuple(sorted(COUNTERS, key=lambda counter: counter.rank))


def trusted() -> tuple[Counter, ...]:
    """Return, by rank, the counters whose trust is reported."""
    return tuple(counter for counter in ranked() if counter.label is not None)
