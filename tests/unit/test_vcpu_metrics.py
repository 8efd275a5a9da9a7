# SPDX-License-Identifier: Apache-2.0
"""``--vcpu-stats``: from the accounts of a refresh to JSON and metrics."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as families_of

from probes.host.hypervisors import HypervisorType
from probes.host.kvm_stats import EXITS, Measure, StatisticsListing, StatisticsReading, Unit
from probes.host.vcpu_counts import GROUPS
from probes.judge.exit_counts import ExitAccount, ExitSource
from probes.judge.guest_time import GuestTime
from probes.judge.tracked import Tracking
from probes.render.exposition import Exposition, Format
from probes.render.metrics import families
from probes.render.vcpu_metrics import statistics_families
from probes.report.builder import process_reports
from probes.report.model import NodeReport, VcpuStatistics, to_json
from tests.support.doubles import World, kvm_world, tcg_world
from tests.support.facts import VMM, kernel, tracked
from tests.support.rich_report import measured_report, rich_report

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics_vcpu_stats.txt"
NAMES = {
    "kubevirt_vmi_vcpu_exits_by_class_total": {"class"},
    "kubevirt_vmi_vcpu_halt_polling_seconds_total": {"result"},
    "kubevirt_vmi_nested_guest_runs_total": set[str](),
    "kubevirt_vmi_guest_cpu_seconds_total": set[str](),
}
"""The metrics, and the labels of each beside those of every VM."""
MEASURES = (
    Measure(EXITS),
    Measure("io_exits"),
    Measure("halt_poll_success_ns", Unit.SECONDS, -9),
)

COUNTED = ExitAccount(
    VMM, ExitSource.KVM_STATISTICS, totals=(7, 3, 1_500_000_000), measures=MEASURES
)


def reading(*counts: int, measures: tuple[Measure, ...] = MEASURES) -> StatisticsReading:
    """A reading of a process with one vCPU."""
    listing = StatisticsListing(((10, "anon_inode:kvm-vcpu-stats:0"),), 1)
    return StatisticsReading(listing, (counts,), measures)


def text_of(report: NodeReport) -> str:
    return "".join(Exposition().write(families(report), Format.TEXT))


def test_golden() -> None:
    """The text equals the golden one: names, help, labels and order.

    After an intended change, run the test with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    report = measured_report()
    vms = [((report.node, vmi.vm.namespace, vmi.vm.name), vmi) for vmi in report.vmis]
    text = "".join(Exposition().write(statistics_families(vms), Format.TEXT))
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert text in text_of(report)


def test_only_with_the_flag() -> None:
    """Without it there is neither a series nor a word about these metrics, and JSON has null."""
    text = text_of(rich_report())
    assert [name for name in NAMES if name.removesuffix("_total") in text] == []
    (found,) = (vmi for vmi in rich_report().vmis if vmi.vm.name == "alpha")
    assert found.vcpu_statistics is None
    plain = to_json(rich_report())["vmis"]
    assert isinstance(plain, list)
    assert {vmi["vcpu_statistics"] for vmi in plain} == {None}


def test_labels() -> None:
    """Each metric has the labels of every VM, and at most one more."""
    found = {
        sample.name: set(sample.labels) - {"node", "namespace", "name"}
        for family in families_of(text_of(measured_report()))
        for sample in family.samples
        if sample.name in NAMES
    }
    assert found == NAMES
    assert {f"{group.metric}_total" for group in GROUPS} < NAMES.keys()


def test_json() -> None:
    """JSON has each group of counts by name. What is not known is absent there, or null."""
    vmis = to_json(measured_report())["vmis"]
    assert isinstance(vmis, list)
    found = {vmi["name"]: vmi["vcpu_statistics"] for vmi in vmis}
    assert found["alpha"] == {
        "exits_by_class_total": {"halt": 900, "io": 340, "mmio": 5, "irq": 20, "hypercall": 0},
        "halt_polling_seconds_total": {"success": 1.5, "fail": 0.25},
        "nested_guest_runs_total": 12,
        "guest_cpu_seconds_total": 86.5,
    }
    assert found["gamma"] == {
        "exits_by_class_total": {"halt": 12, "mmio": 24, "hypercall": 3},
        "halt_polling_seconds_total": {"success": 1.5, "fail": 0.25},
        "nested_guest_runs_total": None,
        "guest_cpu_seconds_total": None,
    }
    assert found["beta"] is None


# from readings to reports


def known(world: World) -> VcpuStatistics | None:
    """What the next refresh reports of the only process and its VM."""
    report = world.refresh()
    (process,), (vmi,) = report.processes, report.vmis
    assert process.vcpu_statistics == vmi.vcpu_statistics
    return process.vcpu_statistics


def test_counts_and_guest_time_are_reported() -> None:
    """Counts come from the readings of the process, and its guest time from /proc."""
    world = kvm_world()
    world.node.statistics[VMM.tgid] = reading(7, 3, 1_500_000_000)
    world.node.guest_times[VMM.tgid] = 2.5
    assert known(world) == VcpuStatistics(counts={"io": 3, "success": 1.5}, guest_cpu_s=2.5)
    assert world.node.timed == [VMM]
    world.node.statistics[VMM.tgid] = reading(9, 4, 1_500_000_001)
    del world.node.guest_times[VMM.tgid]
    assert known(world) == VcpuStatistics(
        counts={"io": 4, "success": 1.500000001}, guest_cpu_s=None
    )
    world.node.guest_times[VMM.tgid] = 2.0
    found = known(world)
    assert found is not None
    assert found.guest_cpu_s == 2.5


def test_exits_alone_are_no_statistics() -> None:
    """Where only the exits are read, the process has its exits and no statistics."""
    world = kvm_world()
    world.node.statistics[VMM.tgid] = reading(7, measures=(Measure(EXITS),))
    assert known(world) is None
    assert world.one().counters["exits"] == 7


def test_guest_time_without_statistics() -> None:
    """A VM whose exits the hook counts has its guest time, and no class."""
    world = kvm_world()
    world.node.guest_times[VMM.tgid] = 2.5
    assert world.one().exits_source is ExitSource.TRACEPOINT
    assert known(world) == VcpuStatistics(counts={}, guest_cpu_s=2.5)


def test_a_vm_that_is_not_on_kvm() -> None:
    """Of an emulated VM nothing is read."""
    world = tcg_world()
    world.node.guest_times[VMM.tgid] = 2.5
    assert known(world) is None
    assert world.node.timed == []


@pytest.mark.parametrize("kind", [kind for kind in HypervisorType if kind != "kvm"])
def test_only_kvm_has_statistics(kind: HypervisorType) -> None:
    """While a process is not known to run on KVM, what was counted of it is not reported."""
    on_kvm = tracked()
    verdict = replace(on_kvm.verdict, type=kind, verified=False)
    for process, found in ((on_kvm, True), (replace(on_kvm, verdict=verdict), False)):
        (report,) = process_reports(
            Tracking(processes=(process,), records={}, pending=0),
            {VMM.tgid: COUNTED},
            names={},
            guest_times={VMM.tgid: GuestTime(VMM, 2.5, 2.5)},
        )
        assert (report.vcpu_statistics is not None) is found


def test_a_vm_that_has_ended_is_forgotten() -> None:
    """Nothing is kept of the guest time of an ended process."""
    world = kvm_world()
    world.node.guest_times[VMM.tgid] = 2.5
    assert known(world) is not None
    world.node.processes.clear()
    world.books.says = kernel()
    world.refresh()
    assert world.collector._guest_times == {}
