# SPDX-License-Identifier: Apache-2.0
"""The feed hands what is new in a report to the writer, and never costs a report."""

import logging
from dataclasses import replace

import pytest

from probes.command.event_feed import EventFeed
from probes.report.emulation_events import SETTLE_S, EmulationHistory
from probes.report.model import NodeReport
from probes.vmi.event import VmiEvent
from tests.support.rich_report import ALLOWED, KVM, TCG, UNREAD, rich_report, vmi

REPORT = replace(
    rich_report(),
    vmis=(vmi("alpha", TCG, fallback=True, cause=ALLOWED)._replace(uid="1"),),
)
UNKNOWN = replace(REPORT, vmis=(vmi("alpha", TCG, fallback=True, cause=UNREAD)._replace(uid="1"),))
ENDED = replace(REPORT, vmis=(vmi("alpha", KVM)._replace(uid="1"),))


def test_each_event_is_handed_over_once() -> None:
    """The feed returns each report as it is, and hands over what is new in it."""
    reports = iter([REPORT, REPORT, ENDED, ENDED])
    events: list[VmiEvent] = []
    feed = EventFeed(lambda: next(reports), events.append, lambda: 0.0)
    assert [feed.refresh() for _ in range(4)] == [REPORT, REPORT, ENDED, ENDED]
    assert [event.reason for event in events] == ["SoftwareEmulation", "HardwareAcceleration"]


def test_time_is_the_feeds_own() -> None:
    """How long something lasts is measured by the feed's clock, not by the reports."""
    now_s = [0.0]
    events: list[VmiEvent] = []
    feed = EventFeed(lambda: UNKNOWN, events.append, lambda: now_s[0])
    feed.refresh()
    assert events == []
    now_s[0] = SETTLE_S
    feed.refresh()
    assert [event.identity[0] for event in events] == ["unknown"]


def test_a_refresh_that_fails_fails() -> None:
    """An error of the refresh itself reaches the caller."""

    def refresh() -> NodeReport:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        EventFeed(refresh, list[VmiEvent]().append).refresh()


def test_a_defect_costs_events_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in the history is logged once, and the reports go on."""

    def after(self: EmulationHistory, report: NodeReport, now_s: float) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr(EmulationHistory, "after", after)
    feed = EventFeed(lambda: REPORT, list[VmiEvent]().append)
    with caplog.at_level(logging.WARNING):
        assert [feed.refresh() for _ in range(3)] == [REPORT] * 3
    (record,) = caplog.records
    assert "because of a defect in hvprobe" in record.getMessage()
