# SPDX-License-Identifier: Apache-2.0
"""Only the table names the counters: every output shows a counter that is added to it."""

import json
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from ebpf import counters
from ebpf.counters import COUNTERS, Counter, LiveColumn, Metric
from ebpf.hook_status import HookStatus
from ebpf.hooks import HOOKS, KVM, AttachPoint, Backend, Hook
from ebpf.ledger import PLACES
from probes.judge.tracked import Tracking
from probes.render.doctor import checks
from probes.render.exposition import Exposition, Format
from probes.render.live.frame_data import FrameData
from probes.render.live.frames import frame_json, plain
from probes.render.live.history import History
from probes.render.metrics import families
from probes.render.page import page
from probes.report.builder import process_reports, vmi_reports
from probes.report.hook_history import HookHistory
from probes.report.json_schema import json_schema
from probes.report.model import CounterTrust, NodeReport
from probes.vmi.attribution import Attribution, VmName
from tests.support.facts import CAPABLE, VMM, entry, hooks, kernel, tracked
from tests.support.rich_report import rich_report

DIRTIED = Counter(
    name="dirtied",
    hook=Hook(
        name="kvm_dirty_ring_push",
        points=(AttachPoint(backend=Backend.TRACEPOINT, target="kvm:kvm_dirty_ring_push"),),
        proves="the guest wrote to a page",
        driver=KVM,
    ),
    counts="Pages the guest wrote to",
    json="vcpu_dirtied_total",
    metric=Metric(name="kubevirt_vmi_vcpu_dirtied", help="Pages the guest wrote to."),
    label="dirtied pages",
    page_heading="Dirtied/s",
    column=LiveColumn(heading="DIRT/s"),
)
"""A counter that hvprobe does not have."""
ALPHA = VmName(namespace="default", name="alpha")


@pytest.fixture(autouse=True)
def added_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "COUNTERS", (*COUNTERS, DIRTIED))
    monkeypatch.setitem(PLACES, DIRTIED.name, len(COUNTERS))


def node(total: int, *, seconds: float) -> NodeReport:
    """Return a node at a time. Its only VM has these totals, and seven times as many of DIRTIED."""
    record = entry(runs=total, userspace_exits=total, exits=total)
    record = record._replace(counts=(*record.counts, 7 * total))
    status = HookStatus(
        hook=DIRTIED.hook, backend=Backend.TRACEPOINT, attached_ns=1, attached_total=1
    )
    books = kernel(record, hooks=(*hooks(), status))
    processes = process_reports(
        Tracking(
            processes=(tracked(record_ns=record.first_ns),), records={VMM.tgid: record}, pending=0
        ),
        {},
        names={VMM: ALPHA},
    )
    plain_report = rich_report()
    return replace(
        plain_report,
        taken_unix_s=seconds,
        processes=processes,
        vmis=vmi_reports(
            (Attribution(vm=ALPHA, vmm=VMM, architecture=None),),
            processes,
            accelerators=(),
            pending=0,
        ),
        health=replace(
            plain_report.health,
            hooks=books.hooks,
            trusts=HookHistory().after(books).trusts(books),
        ),
    )


EARLIER, NOW = 100, 300
"""Totals of two reports, 10 s apart."""


def two_reports() -> tuple[NodeReport, NodeReport]:
    return node(EARLIER, seconds=1000.0), node(NOW, seconds=1010.0)


def test_json() -> None:
    """The added counter is in the JSON of process, VM and health, and in the schema."""
    schema = json_schema()
    frame = json.loads(frame_json(two_reports()[1]))
    Draft202012Validator(schema).validate(frame)
    for what in ("processes", "vmis"):
        assert frame[what][0]["vcpu_dirtied_total"] == 7 * NOW
        described = schema["properties"][what]["items"]["properties"]["vcpu_dirtied_total"]
        assert described["description"] == "Pages the guest wrote to; null: not counted here."
    assert frame["health"]["counters"]["dirtied"] == CounterTrust.PROVEN.value


def test_metrics() -> None:
    """The added counter has a series for the VM, with its help text."""
    text = "".join(Exposition().write(families(two_reports()[1]), Format.TEXT))
    assert "# HELP kubevirt_vmi_vcpu_dirtied_total Pages the guest wrote to.\n" in text
    labels = '{name="alpha",namespace="default",node="node-1"}'
    assert f"kubevirt_vmi_vcpu_dirtied_total{labels} {7 * NOW}.0\n" in text


def test_page() -> None:
    """The page shows the rate of the added counter, and how far it can be trusted."""
    before, now = two_reports()
    drawn = page(now, previous=before, failure=None, last_known_s=60).decode()
    assert "Dirtied/s" in drawn
    assert "140" in drawn
    assert "dirtied pages" in drawn
    assert "kvm_dirty_ring_push has fired on this node" in drawn


def test_live() -> None:
    """The live view has a column with the rate of the added counter."""
    history = History()
    for report in two_reports():
        history.add(report)
    data = FrameData(report=two_reports()[1], history=history)
    lines = [str(line) for line in plain(data, width=None, ascii_only=True)]
    (heading,) = [line for line in lines if "DIRT/s" in line]
    (row,) = [line for line in lines if "default/alpha" in line]
    end = heading.index("DIRT/s") + len("DIRT/s")
    assert row[:end].split()[-1] == "140"


def test_doctor() -> None:
    """Doctor reports how far the added counter can be trusted."""
    found = {check.label: check for check in checks(two_reports()[1], CAPABLE)}["dirtied pages"]
    assert found.finding == "counted: kvm_dirty_ring_push has fired on this node"


def test_rows_agree() -> None:
    """Every counter that a row names exists, and every hook is in the table of hooks."""
    names = {counter.name for counter in COUNTERS}
    assert len(names) == len(COUNTERS)
    for counter in COUNTERS:
        assert counter.hook in HOOKS
        assert counter.implied_by in {None, *names}
        column = counter.column
        assert column is None or column.stands_in_for in {None, *names}
        assert column is None or (column.note is None) == (column.stands_in_for is None)
        assert counter.metric is None or counter.json is not None
