# SPDX-License-Identifier: Apache-2.0
"""The exposition equals prometheus_client's output byte for byte, with any text in the labels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import prometheus_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict
from probes.render.exposition import Exposition, Family, Format, Histogram, Kind
from probes.render.metrics import families
from probes.report.model import NodeReport, VmiReport
from probes.vmi.attribution import VmName
from tests.support.rich_report import rich_report, vmi

END = {Format.TEXT: "", Format.OPENMETRICS: "# EOF\n"}
HOSTILE = 'a"b\\c\nd} 1\n# TYPE x counter\nx 1'
TYPES = {Kind.GAUGE: GaugeMetricFamily, Kind.COUNTER: CounterMetricFamily}

texts = st.text(st.sampled_from('ab"\\\n{}=, #é\0\r\u2028') | st.characters(codec="utf-8"))
numbers = st.integers(0, 2**64) | st.floats() | st.booleans()


@st.composite
def any_family(draw: st.DrawFn) -> Family:
    labels = draw(st.lists(st.sampled_from("node name zone _a Z9".split()), unique=True))
    values = st.tuples(*(texts for _ in labels))
    return Family(
        name=draw(st.sampled_from(["a_b", "hvprobe_x", "_", "x_seconds"])),
        kind=draw(st.sampled_from(Kind)),
        help=draw(texts),
        labels=tuple(labels),
        samples=draw(st.lists(st.tuples(values, numbers))),
    )


@st.composite
def any_vmi(draw: st.DrawFn) -> VmiReport:
    """A VMI with any combination of known and unknown values."""
    verdict = Verdict(
        type=draw(st.sampled_from(HypervisorType)),
        verified=draw(st.booleans()),
        reasons=(Reason.NO_PROCESS,),
    )
    count = st.none() | st.integers(0, 2**64)
    found = vmi(
        "x",
        verdict,
        fallback=draw(st.none() | st.booleans()),
        exits=(draw(count), draw(count)),
    )
    return found._replace(vm=VmName(namespace=draw(texts), name=draw(texts)))


@st.composite
def any_report(draw: st.DrawFn) -> NodeReport:
    return replace(
        rich_report(), node=draw(texts), kernel=draw(texts), vmis=tuple(draw(st.lists(any_vmi())))
    )


class Theirs(Collector):
    """A collector of the same families as objects of prometheus_client."""

    def __init__(self, ours: Sequence[Family | Histogram]) -> None:
        self._ours = ours

    def collect(self) -> Iterator[Metric]:
        for family in self._ours:
            if isinstance(family, Histogram):
                buckets = [(floatToGoString(bound), count) for bound, count in family.buckets]
                yield HistogramMetricFamily(
                    family.name, family.help, buckets=buckets, sum_value=family.total
                )
                continue
            metric = TYPES[family.kind](family.name, family.help, labels=family.labels)
            for values, number in family.samples:
                metric.add_metric(values, number)
            yield metric


def theirs(ours: Sequence[Family | Histogram], form: Format) -> str:
    if form is Format.TEXT:
        return prometheus_client.generate_latest(Theirs(ours)).decode()
    return bytes(openmetrics_text(Theirs(ours))).decode()


def written(exposition: Exposition, ours: Sequence[Family | Histogram], form: Format) -> str:
    return "".join(exposition.write(ours, form)) + END[form]


@pytest.mark.parametrize("form", Format)
@given(ours=st.lists(any_family(), max_size=4))
@example(
    ours=[
        Family(name="a", kind=Kind.COUNTER, help=HOSTILE, labels=("z", "b"), samples=found)
        for found in ([], [((HOSTILE, "1"), 2**53 + 1), (("", ""), 10**22), (("", "x"), 999999)])
    ]
)
def test_any_family_is_written_as_prometheus_client_does(form: Format, ours: list[Family]) -> None:
    """Any family, even one without samples, equals prometheus_client's output in both formats."""
    assert written(Exposition(), ours, form) == theirs(ours, form)


@pytest.mark.parametrize("form", Format)
@given(text=texts, counts=st.lists(st.integers(0, 2**53), min_size=3, max_size=3), total=numbers)
def test_a_histogram_is_written_as_prometheus_client_does(
    form: Format, text: str, counts: list[int], total: float
) -> None:
    """Any histogram equals prometheus_client's output in both formats."""
    bounds = (0.0025, 1.0, float("inf"))
    buckets = [*zip(bounds, sorted(counts), strict=True)]
    ours = [Histogram(name="x_seconds", help=text, buckets=buckets, total=total)]
    assert written(Exposition(), ours, form) == theirs(ours, form)


KEPT = Exposition()
"""Shared by all examples below, because remembered labels must not leak into another report."""


@pytest.mark.parametrize("form", Format)
@given(report=any_report())
def test_any_report_is_written_as_prometheus_client_does(form: Format, report: NodeReport) -> None:
    """Any report equals prometheus_client's output, even after other reports were written."""
    ours = list(families(report))
    assert written(KEPT, ours, form) == theirs(ours, form)


@pytest.mark.parametrize("form", Format)
def test_a_vm_that_changes_its_type_changes_its_labels(form: Format) -> None:
    """A VM's new type is written, although the labels of the VM are remembered."""
    exposition = Exposition()
    for kind in HypervisorType:
        verdict = Verdict(type=kind, verified=True, reasons=())
        ours = list(families(replace(rich_report(), vmis=(vmi("x", verdict),))))
        assert written(exposition, ours, form) == theirs(ours, form)


def test_only_the_labels_written_last_are_remembered() -> None:
    """Only the labels of the VMs in the last report are remembered, however many came before."""
    exposition = Exposition()

    def remembered() -> int:
        return sum(len(each) for each in exposition._known.values())

    def vms(number: int) -> NodeReport:
        verdict = Verdict(type=HypervisorType.KVM, verified=True, reasons=())
        return replace(
            rich_report(), vmis=tuple(vmi(f"vm-{number}-{each}", verdict) for each in range(50))
        )

    exposition.write(families(vms(0)), Format.TEXT)
    first = remembered()
    assert first > 100  # with and without the type
    for number in range(1, 5):
        exposition.write(families(vms(number)), Format.OPENMETRICS)
        assert remembered() == first
    exposition.write([], Format.TEXT)
    assert remembered() == 0


def test_labels_and_values_must_match() -> None:
    """A sample that lacks a label value raises ``ValueError``."""
    wrong = Family(name="a", kind=Kind.GAUGE, help="", labels=("b", "c"), samples=[(("1",), 1)])
    with pytest.raises(ValueError):
        Exposition().write([wrong], Format.TEXT)
