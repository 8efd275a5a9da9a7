# SPDX-License-Identifier: Apache-2.0
"""NodeReport → /metrics: the text that users' dashboards and alerts rely on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as families_of
from prometheus_client.samples import Sample

from ebpf.hooks import KVM_EXIT
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator, NodeVirtualization
from probes.render.exposition import Exposition, Format
from probes.render.metrics import families
from probes.report.model import NodeReport
from probes.vmi.attribution import VmName
from probes.vmi.model import WatchStatus
from tests.support.facts import INTEL_HOST, health, provided_by
from tests.support.required import require
from tests.support.rich_report import KVM, TCG, rich_report, vmi

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "metrics.txt"
PER_VM = {"node", "namespace", "name"}


def text_of(report: NodeReport, form: Format = Format.TEXT) -> str:
    end = "# EOF\n" if form is Format.OPENMETRICS else ""
    return "".join(Exposition().write(families(report), form)) + end


def samples_of(report: NodeReport) -> Iterator[Sample]:
    for family in families_of(text_of(report)):
        yield from family.samples


def values(report: NodeReport, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of one name as a dict from the given labels' values to the value."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in samples_of(report)
        if sample.name == name
    }


def test_golden() -> None:
    """The complete text equals the golden one: names, help, labels and order.

    After an intended change, run the tests with HVPROBE_UPDATE_GOLDEN=1 and read the difference
    before committing it.
    """
    text = text_of(rich_report())
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN.with_name("metrics_vcpu_stats.txt")])
def test_promtool_finds_nothing_to_say(golden: Path) -> None:
    """Prometheus's own linter accepts the golden text: names, types, help, units."""
    promtool = shutil.which("promtool")
    require("prometheus", None if promtool else "there is no promtool: install prometheus")
    assert promtool is not None
    said = subprocess.run(
        [promtool, "check", "metrics"], input=golden.read_bytes(), capture_output=True, check=False
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")


def test_openmetrics_says_the_same() -> None:
    """The OpenMetrics form parses strictly and has the same samples."""
    text = text_of(rich_report(), Format.OPENMETRICS)
    parsed_families = openmetrics_of(text)
    parsed = [sample for family in parsed_families for sample in family.samples]
    assert [(sample.name, sample.labels, sample.value) for sample in parsed] == [
        (sample.name, sample.labels, sample.value) for sample in samples_of(rich_report())
    ]


def test_labels_of_per_vm_series() -> None:
    """Per-VM series have only node, namespace and name; info series also have type or cause."""
    per_vm = [
        sample for sample in samples_of(rich_report()) if sample.name.startswith("kubevirt_vmi_")
    ]
    assert {sample.name for sample in per_vm} == {
        "kubevirt_vmi_hypervisor_info",
        "kubevirt_vmi_hypervisor_verified",
        "kubevirt_vmi_hypervisor_fallback",
        "kubevirt_vmi_hypervisor_emulation_info",
        "kubevirt_vmi_vcpu_exits_total",
        "kubevirt_vmi_vcpu_userspace_exits_total",
    }
    for sample in per_vm:
        extra = {
            "kubevirt_vmi_hypervisor_info": {"hypervisor_type"},
            "kubevirt_vmi_hypervisor_emulation_info": {"cause"},
        }.get(sample.name, set())
        assert set(sample.labels) == PER_VM | extra


def test_each_vm_has_one_type() -> None:
    """Each VMI has exactly one info series, and its value is 1."""
    found = values(rich_report(), "kubevirt_vmi_hypervisor_info", "name", "hypervisor_type")
    assert found == {
        ("alpha", "kvm"): 1,
        ("beta", "tcg"): 1,
        ("delta", "mshv"): 1,
        ("epsilon", "tcg"): 1,
        ("gamma", "kvm"): 1,
        ("zeta", "unknown"): 1,
    }


def test_each_emulated_vm_has_one_cause() -> None:
    """A VMI whose type is tcg has exactly one cause, be it unknown; the others have none."""
    found = values(rich_report(), "kubevirt_vmi_hypervisor_emulation_info", "name", "cause")
    assert found == {("beta", "emulation_allowed"): 1, ("epsilon", "unknown"): 1}


def test_unknown_makes_no_sample() -> None:
    """An unknown value has no sample; a value that is known to be 0 has a sample of 0."""
    report = rich_report()
    assert values(report, "kubevirt_vmi_vcpu_exits_total", "name") == {
        ("alpha",): 41,
        ("gamma",): 0,
    }
    assert values(report, "kubevirt_vmi_vcpu_userspace_exits_total", "name") == {
        ("alpha",): 2,
        ("delta",): 0,
        ("gamma",): 0,
    }
    assert ("epsilon",) not in values(report, "kubevirt_vmi_hypervisor_fallback", "name")
    assert values(report, "kubevirt_vmi_hypervisor_fallback", "name")["beta",] == 1


def test_missed_runs_of_each_hook() -> None:
    """A hook whose skipped runs the kernel does not count has no sample."""
    found = values(rich_report(), "hvprobe_hook_missed_total", "hook")
    counted = {
        (status.hook.name,): status.missed_total
        for status in rich_report().health.hooks
        if status.missed_total is not None
    }
    assert found == counted
    assert found["kvm_userspace_exit",] == 4
    assert found["kvm_exit",] == 0
    assert ("kvm_vcpu_ioctl",) not in found


def test_an_inactive_hook_has_its_series() -> None:
    """A hook that is detached on purpose is exported like any other that is not attached."""
    plain = rich_report()
    idle = tuple(
        status.not_needed() if status.is_of(KVM_EXIT) else status for status in plain.health.hooks
    )
    given = replace(plain, health=replace(plain.health, hooks=idle))
    found = values(given, "hvprobe_hook_attached", "hook", "backend")
    assert found["kvm_exit", "none"] == 0
    assert len(found) == len(idle)


def test_no_vms_no_series() -> None:
    """A node without VMs has no per-VM sample, but keeps all other samples."""
    idle = replace(rich_report(), vmis=(), processes=())
    assert not [sample for sample in samples_of(idle) if sample.name.startswith("kubevirt_vmi_")]
    assert values(idle, "hvprobe_processes", "state") == {
        ("attributed",): 0,
        ("unattributed",): 0,
        ("probe",): 0,
    }


@pytest.mark.parametrize(
    ("available", "shown"), [(True, {("kvm",): 1}), (False, {("kvm",): 0}), (None, {})]
)
def test_available_only_where_it_could_be_tried(
    available: bool | None, shown: dict[tuple[str, ...], float]
) -> None:
    """The sample is absent if the agent could not try the accelerator."""
    accelerator = Accelerator(type=HypervisorType.KVM, available=available)
    report = replace(rich_report(), accelerators=(accelerator,))
    assert values(report, "kubevirt_node_hypervisor_available", "hypervisor_type") == shown


@pytest.mark.parametrize(
    ("virtualization", "shown"),
    [
        (INTEL_HOST, {("kvm_intel", "false"): 1}),
        (provided_by("kvm_pvm", nested=True), {("kvm_pvm", "true"): 1}),
        (provided_by("builtin", nested=None), {("builtin", "unknown"): 1}),
        (provided_by(None, nested=True), {}),
    ],
)
def test_node_info(virtualization: NodeVirtualization, shown: dict[tuple[str, ...], float]) -> None:
    """The series has the module and whether the node is nested; without a module it is absent."""
    report = replace(rich_report(), virtualization=virtualization)
    assert values(report, "kubevirt_node_hypervisor_info", "module", "nested") == shown


def test_hooks_that_are_missing() -> None:
    """Each wanted hook has one series; a missing hook's is 0 with backend none."""
    found = values(rich_report(), "hvprobe_hook_attached", "hook", "backend")
    assert found["kvm_vcpu_ioctl", "none"] == 0
    assert found["sched_process_free", "none"] == 0
    assert found["kvm_userspace_exit", "tracepoint"] == 1
    assert sum(found.values()) == len(found) - 2


HOSTILE = 'a"b\\c\nd} 1\n# TYPE x counter\nx 1'


@pytest.mark.parametrize("form", Format)
def test_hostile_labels_are_escaped(form: Format) -> None:
    """A hostile label adds no line, and a parser returns it unchanged."""
    name = VmName(namespace=HOSTILE, name=HOSTILE)
    hostile = replace(
        rich_report(),
        node=HOSTILE,
        kernel=HOSTILE,
        version=HOSTILE,
        virtualization=provided_by(HOSTILE, nested=True),
        vmis=(vmi("x", KVM, exits=(1, 2))._replace(vm=name),),
    )
    plain = replace(rich_report(), vmis=(vmi("x", KVM, exits=(1, 2)),))
    text = text_of(hostile, form)
    expected = text_of(plain, form)
    assert len(text.splitlines()) == len(expected.splitlines())
    parse = openmetrics_of if form is Format.OPENMETRICS else families_of
    parsed = [sample for family in parse(text) for sample in family.samples]
    infos = [sample for sample in parsed if sample.name == "kubevirt_vmi_hypervisor_info"]
    assert [
        (info.labels["node"], info.labels["namespace"], info.labels["name"]) for info in infos
    ] == [(HOSTILE, HOSTILE, HOSTILE)]


def test_every_family_is_told_even_when_empty() -> None:
    """Names, types and order of families are the same even if nothing runs on the node."""
    bare = replace(
        rich_report(),
        vmis=(),
        processes=(),
        accelerators=(),
        virtualization=provided_by(None, nested=None),
    )
    names = [(family.name, family.kind) for family in families(rich_report())]
    assert [(family.name, family.kind) for family in families(bare)] == names
    assert len(set(names)) == len(names)


def test_verified_and_types_are_separate() -> None:
    """The verified series is 0 or 1 for every type."""
    report = replace(rich_report(), vmis=(vmi("a", KVM), vmi("b", replace(TCG, verified=False))))
    assert values(report, "kubevirt_vmi_hypervisor_verified", "name") == {("a",): 1, ("b",): 0}


def watch_samples(watch: WatchStatus | None) -> dict[str, float]:
    report = replace(rich_report(), health=health(vmi_watch=watch))
    return {
        sample.name: sample.value for sample in samples_of(report) if "vmi_watch" in sample.name
    }


def test_vmi_watch() -> None:
    """The watch has series only in a cluster, and a time of sync only after the first sync."""
    never = WatchStatus(
        up=False,
        synced=False,
        last_sync_unix_s=None,
        restarts=0,
        error="no route",
        malformed_total=0,
    )
    assert watch_samples(None) == {}
    assert watch_samples(never) == {
        "hvprobe_vmi_watch_up": 0,
        "hvprobe_vmi_watch_restarts_total": 0,
        "hvprobe_vmi_watch_malformed_total": 0,
    }
    synced = replace(never, up=True, synced=True, last_sync_unix_s=1700000000.5, restarts=2)
    assert watch_samples(synced) == {
        "hvprobe_vmi_watch_up": 1,
        "hvprobe_vmi_watch_last_sync_timestamp_seconds": 1700000000.5,
        "hvprobe_vmi_watch_restarts_total": 2,
        "hvprobe_vmi_watch_malformed_total": 0,
    }


def test_node_info_of_each_hypervisor() -> None:
    """Every hypervisor that a module provides has a series."""
    modules = {HypervisorType.KVM: "kvm_intel", HypervisorType.MSHV: "mshv_root"}
    report = replace(
        rich_report(), virtualization=NodeVirtualization(modules=modules, nested=False)
    )
    shown = values(report, "kubevirt_node_hypervisor_info", "hypervisor_type", "module")
    assert shown == {("kvm", "kvm_intel"): 1, ("mshv", "mshv_root"): 1}
