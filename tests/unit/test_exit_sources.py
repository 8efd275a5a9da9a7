# SPDX-License-Identifier: Apache-2.0
"""The words for what counts the exits of a report's processes, on the page and in the live view."""

from dataclasses import replace

import pytest

from ebpf.hooks import KVM_EXIT
from probes.judge.exit_counts import ExitSource
from probes.render.live.frame_data import TerminalSize
from probes.render.page import page
from probes.report.exit_sources import EXIT_SOURCES, exit_sources, statistics_count_all
from probes.report.model import CounterTrust, NodeReport
from tests.support.facts import ALL_HOOKS, hooks, trusts
from tests.support.live_frames import shown
from tests.support.live_reports import RUNNING, guest, report, scene
from tests.support.page_reader import Read
from tests.support.rich_report import KVM, TCG, vmi

STATISTICS, TRACEPOINT = ExitSource.KVM_STATISTICS, ExitSource.TRACEPOINT


def counted_by(*sources: ExitSource | None, trust: CounterTrust | None = None) -> NodeReport:
    """A report of a process for each source; trust: of the exits, None: the hook counts."""
    processes = (
        guest(100 + number, RUNNING, exits_source=source, exits=number)
        for number, source in enumerate(sources)
    )
    found = report(1, *processes)
    if trust is None:
        return found
    status = {
        CounterTrust.MISSING: hooks(ALL_HOOKS - {KVM_EXIT}),
        CounterTrust.INACTIVE: tuple(
            hook.not_needed() if hook.is_of(KVM_EXIT) else hook for hook in hooks()
        ),
    }.get(trust, hooks())
    return replace(found, health=replace(found.health, hooks=status, trusts=trusts(exits=trust)))


@pytest.mark.parametrize(
    ("sources", "words", "statistics_alone"),
    [
        ((), None, False),
        ((None, None), None, False),
        ((STATISTICS, None), "KVM's statistics", True),
        ((TRACEPOINT,), "the hook kvm_exit", False),
        (
            (TRACEPOINT, STATISTICS, None, TRACEPOINT),
            "KVM's statistics (1 of 3), the hook kvm_exit (2 of 3)",
            False,
        ),
    ],
)
def test_words(
    sources: tuple[ExitSource | None, ...], words: str | None, *, statistics_alone: bool
) -> None:
    """Each source is named, with the number of processes if there is more than one source.

    A process without a source is not counted.
    """
    found = counted_by(*sources)
    assert exit_sources(found) == words
    assert statistics_count_all(found) is statistics_alone


def test_a_hook_that_is_not_attached_counts_nothing() -> None:
    """A process that only the hook could count is not said to be counted without the hook."""
    missing = counted_by(TRACEPOINT, trust=CounterTrust.MISSING)
    assert exit_sources(missing) == "the hook kvm_exit, which is not attached"
    both = counted_by(STATISTICS, TRACEPOINT, trust=CounterTrust.MISSING)
    assert exit_sources(both) == (
        "KVM's statistics (1 of 2), the hook kvm_exit, which is not attached (1 of 2)"
    )


# the page


def page_of(found: NodeReport) -> str:
    return page(found, previous=None, failure=None, last_known_s=60).decode()


def test_the_page_names_the_source() -> None:
    """The line below the table names the sources, and the title of a rate names that VM's source.

    A VM whose exits nothing counts has no title.
    """
    vms = (
        vmi("alpha", KVM, source=STATISTICS),
        vmi("beta", TCG),
        vmi("gamma", KVM, source=TRACEPOINT),
    )
    text = page_of(replace(counted_by(STATISTICS, TRACEPOINT), vmis=vms))
    said = "Exits are counted by KVM's statistics (1 of 2), the hook kvm_exit (1 of 2)."
    assert said in Read(text).text
    titles = [attributes["title"] for _, attributes in Read(text).elements if "title" in attributes]
    assert titles == [f"counted by {EXIT_SOURCES[source]}" for source in (STATISTICS, TRACEPOINT)]


def test_the_page_of_a_node_that_counts_no_exits() -> None:
    """Without a source the page says nothing about it."""
    text = page_of(replace(counted_by(None), vmis=(vmi("beta", TCG),)))
    assert "Exits are counted by" not in text
    assert "title=" not in text


# the live view


def live_of(found: NodeReport) -> str:
    return shown(scene(found), TerminalSize(width=160, height=24))


def test_the_live_view_names_the_source() -> None:
    """A note names the sources, on a node that has any."""
    said = "EXIT/s: counted by KVM's statistics (1 of 2), the hook kvm_exit (1 of 2)"
    assert said in live_of(counted_by(STATISTICS, TRACEPOINT))
    assert "counted by" not in live_of(counted_by(None))


@pytest.mark.parametrize(
    "trust", [CounterTrust.BLIND, CounterTrust.MISSING, CounterTrust.UNTRIED, CounterTrust.INACTIVE]
)
def test_statistics_need_no_hook(trust: CounterTrust) -> None:
    """Where statistics count all exits, the live view does not call the column unavailable.

    It has the column, although the hook of that column is not attached.
    """
    text = live_of(counted_by(STATISTICS, STATISTICS, trust=trust))
    assert "EXIT/s unavailable" not in text
    assert "no VM has triggered it" not in text
    assert "EXIT/s: counted by KVM's statistics" in text
    assert text.count("EXIT/s") == 2


def test_the_hook_is_explained_where_it_counts_one() -> None:
    """Where only some have statistics, the live view still says that the hook is missing."""
    text = live_of(counted_by(STATISTICS, TRACEPOINT, trust=CounterTrust.MISSING))
    assert "EXIT/s unavailable: the hook kvm_exit is not attached" in text
