# SPDX-License-Identifier: Apache-2.0
"""Lists what KVM's statistics of a vCPU count beside its exits, and where each is shown. Pure.

A row names the statistics of KVM that a count is made of. Which of them a kernel has is decided by
the descriptors in the statistics themselves, never by the architecture. A count without its
statistics is absent, never 0. The names are those of kvm_vcpu_stats_desc in arch/x86/kvm/x86.c and
arch/arm64/kvm/guest.c, and of KVM_GENERIC_VCPU_STATS in include/linux/kvm_host.h.

Reports, JSON, metrics and live view iterate over these tables.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probes.host.kvm_stats import Measure, Unit

_MAX_EXPONENT = 18
"""The most by which a unit is scaled: more than any kernel does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountGroup:
    """Counts that make one metric."""

    metric: str
    """Name of the metric without ``_total``."""
    help: str
    json: str
    """Key in the JSON of a process and a VM."""
    label: str | None = None
    """Label of the metric with the names of the counts, which are keys of an object in JSON; None:
    the group has one count."""
    unit: Unit = Unit.NONE


EXITS_BY_CLASS = CountGroup(
    metric="kubevirt_vmi_vcpu_exits_by_class",
    help="VM exits by class since the VM started, as KVM's statistics of this architecture define "
    "the classes. They overlap and are not complete: do not sum them. Absent where this kernel "
    "lacks the statistic, or KVM's statistics do not count this VM's exits; see hvprobe live.",
    json="exits_by_class_total",
    label="class",
)
HALT_POLLING = CountGroup(
    metric="kubevirt_vmi_vcpu_halt_polling_seconds",
    help="Host CPU time spent polling for an idle vCPU since the VM started, by result: success "
    "(work arrived) or fail. Absent like kubevirt_vmi_vcpu_exits_by_class_total; if it is high, "
    "see the parameter halt_poll_ns of KVM's module.",
    json="halt_polling_seconds_total",
    label="result",
    unit=Unit.SECONDS,
)
NESTED_RUNS = CountGroup(
    metric="kubevirt_vmi_nested_guest_runs",
    help="Entries into guests of this guest since the VM started. Above 0, the VM itself runs a "
    "hypervisor. Absent like kubevirt_vmi_vcpu_exits_by_class_total.",
    json="nested_guest_runs_total",
)
GROUPS = (EXITS_BY_CLASS, HALT_POLLING, NESTED_RUNS)
"""All groups, in the order of outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuCount:
    """One count of a VM."""

    name: str
    """Key in reports, and value of the group's label."""
    group: CountGroup
    choices: tuple[tuple[str, ...], ...]
    """KVM's statistics whose sum it is: the first choice of which this kernel has every one."""


VCPU_COUNTS = (
    VcpuCount(
        name="halt",
        group=EXITS_BY_CLASS,
        choices=(("halt_exits",), ("wfe_exit_stat", "wfi_exit_stat")),
    ),
    VcpuCount(name="io", group=EXITS_BY_CLASS, choices=(("io_exits",),)),
    VcpuCount(
        name="mmio",
        group=EXITS_BY_CLASS,
        choices=(("mmio_exits",), ("mmio_exit_user", "mmio_exit_kernel")),
    ),
    VcpuCount(name="irq", group=EXITS_BY_CLASS, choices=(("irq_exits",),)),
    VcpuCount(
        name="hypercall", group=EXITS_BY_CLASS, choices=(("hypercalls",), ("hvc_exit_stat",))
    ),
    VcpuCount(name="success", group=HALT_POLLING, choices=(("halt_poll_success_ns",),)),
    VcpuCount(name="fail", group=HALT_POLLING, choices=(("halt_poll_fail_ns",),)),
    VcpuCount(name="nested", group=NESTED_RUNS, choices=(("nested_run",),)),
)
"""All counts, in the order of outputs."""

STATISTICS = tuple(name for count in VCPU_COUNTS for choice in count.choices for name in choice)
"""The names of KVM's statistics that the counts are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sum:
    """How a count follows from totals of a process."""

    name: str
    places: tuple[int, ...]
    """Indexes of the totals that it adds up."""
    factor: int = 1
    divisor: int = 1

    def of(self, totals: Sequence[int]) -> float:
        """Return the count."""
        added = sum(totals[place] for place in self.places) * self.factor
        return added if self.divisor == 1 else added / self.divisor


def counts_of(measures: tuple[Measure, ...], totals: Sequence[int]) -> Mapping[str, float]:
    """Return the counts that follow from totals of these measures, by name, in their units."""
    return {each.name: each.of(totals) for each in _sums(measures)}


@functools.lru_cache(maxsize=16)
def _sums(measures: tuple[Measure, ...]) -> Sequence[_Sum]:
    """Return how each count follows from totals of these measures, if it does."""
    found = (_sum(count, measures) for count in VCPU_COUNTS)
    return tuple(each for each in found if each is not None)


def _sum(count: VcpuCount, measures: tuple[Measure, ...]) -> _Sum | None:
    """Return how a count follows; None: statistics are missing, or measure something else."""
    places = {measure.name: place for place, measure in enumerate(measures)}
    for choice in count.choices:
        if places.keys() >= {*choice}:
            chosen = tuple(places[name] for name in choice)
            scales = {measures[place]._replace(name="") for place in chosen}
            scale = scales.pop()
            exponent = scale.exponent
            if scales or scale.unit is not count.group.unit or abs(exponent) > _MAX_EXPONENT:
                return None
            base = 2 if scale.binary else 10
            return _Sum(
                name=count.name,
                places=chosen,
                factor=base ** max(exponent, 0),
                divisor=base ** max(-exponent, 0),
            )
    return None
