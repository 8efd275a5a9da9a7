# SPDX-License-Identifier: Apache-2.0
"""The live view's application, driven by Textual's Pilot: keys, screens, refreshes, its end."""

import re
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
from textual.events import Resize
from textual.geometry import Size

from ebpf.errors import BpfUnavailableError
from ebpf.exit_reasons.reasons import Isa, ReasonCount
from probes.host.process import VmmId
from probes.host.vcpu_threads import ThreadsReading, VcpuThread
from probes.render.live.app import LATE_S, LiveApp
from probes.render.live.frame_data import FrameData
from probes.render.live.frame_source import ExitReasons, Feed, FrameSource
from probes.render.live.history import Reasons
from probes.render.live.options import Selection
from probes.report.model import NodeReport
from tests.support.live_app import Screen, Stepped, run, still
from tests.support.live_reports import KVM, LIAR, RUNNING, busy_node, guest, report, scene
from tests.support.rich_report import ALLOWED, MEASURED, TCG

WAIT_S = 20.0


async def until(screen: Screen, words: str) -> None:
    """Wait until the words are on the screen."""
    end_s = time.monotonic() + WAIT_S
    while words not in screen.text:
        assert time.monotonic() < end_s, f"{words!r} is not in\n{screen.text}"
        await screen.pilot.pause(0.02)


def test_keys_sort_the_table() -> None:
    """A key sorts, the same key again restores the order by severity, and the heading shows it."""

    async def steps(screen: Screen) -> None:
        assert "default/liar" in screen.selected
        for key, order, first in (
            ("r", "exits", "4194301"),
            ("n", "name", "812"),
            ("n", "severity", "5000"),
            ("v", "vCPUs", "4800"),
            ("a", "age", "812"),
            ("t", "type", "4900"),
            ("t", "severity", "5000"),
        ):
            await screen.press(key)
            assert f"by {order}  " in screen.lines[-1]
            assert screen.selected.split()[0] == first

    run(steps, scene(*busy_node()))


def test_a_filter_works_while_it_is_typed() -> None:
    """Keys are letters while a filter is typed; Enter keeps the filter, Escape removes it."""

    async def steps(screen: Screen) -> None:
        await screen.press("slash", *"cnpq")
        assert screen.lines[-1].startswith("filter: cnpq_ ")
        assert "nothing to show" in screen.text
        await screen.press(*["backspace"] * 4, *"BETA")
        assert "default/beta" in screen.selected
        assert "default/alpha" not in screen.text
        await screen.press("enter")
        assert "1-6 of 6  filter: BETA  by severity" in screen.lines[-1]
        await screen.press("escape")
        assert "default/alpha" in screen.text
        await screen.press("slash", *"x" * 70)
        assert "x" * 60 + "_" in screen.lines[-1]
        await screen.press("escape")
        assert "1-12 of 12" in screen.lines[-1]

    run(steps, scene(*busy_node()))


def test_a_pasted_filter_has_no_control_character() -> None:
    """Text with control characters is not taken into the filter."""
    from textual.events import Paste

    async def steps(screen: Screen) -> None:
        await screen.press("slash", "a")
        for text in ("\x1b[2J", "\x9b2J", "b\x07"):
            screen.app.screen.post_message(Paste(text))
            await screen.pilot.pause()
        assert screen.lines[-1].startswith("filter: a_ ")

    run(steps, scene(*busy_node()))


def test_lines_below_the_rows_can_be_hidden() -> None:
    """Key c hides the causes, and shows them again."""

    async def steps(screen: Screen) -> None:
        for shown in (True, False, True):
            assert ("     cause " in screen.text) is shown
            await screen.press("c")

    run(steps, scene(*busy_node()))


def test_a_thousand_vms() -> None:
    """Paging shows each of a thousand VMs, and keys move from end to end."""
    of = scene(report(1, *[guest(1000 + i, KVM, f"vm{i:04}") for i in range(1000)]))
    seen: set[str] = set()

    async def steps(screen: Screen) -> None:
        for _ in range(60):
            seen.update(re.findall(r"vm\d{4}", screen.text))
            await screen.press("pagedown")
        assert len(seen) == 1000
        assert "of 1000" in screen.lines[-1]
        assert "vm0999" in screen.selected
        await screen.press("up")
        assert "vm0998" in screen.selected
        await screen.press("home", "down", "down")
        assert "vm0002" in screen.selected
        await screen.press("end", "pageup")
        assert "vm0999" not in screen.selected

    run(steps, of)


@pytest.mark.parametrize("size", [(80, 24), (40, 9), (20, 4), (1, 1), (240, 60)])
def test_any_size(size: tuple[int, int]) -> None:
    """The screen fits a terminal of any size, also after a change."""

    async def steps(screen: Screen) -> None:
        await screen.press("end")
        assert len(screen.lines) == size[1]
        if size[1] > 3:
            assert screen.selected
        await screen.press("enter")
        await screen.pilot.resize_terminal(100, 30)
        await screen.pilot.pause()
        await until(screen, "Name and pod")
        await screen.press("escape", "question_mark")
        assert "In the table" in screen.text

    run(steps, scene(*busy_node()), size=size)


def test_no_name_reaches_the_terminal_as_it_is() -> None:
    """Control characters and markup of names are shown escaped or as they are, on every screen."""
    evil = "[bold red]\x1b[2J\u202e[/] [@click=app.quit]x"
    of = scene(report(1, guest(12, TCG, comm=evil, guest_name=evil, cause=ALLOWED)))

    async def steps(screen: Screen) -> None:
        assert r"[bold red]\x1b[2J\u202e[/] [@click=app.quit]x" in screen.text
        assert screen.text.replace("\n", "").isprintable()
        await screen.press("enter", "end")
        assert r"domain" in screen.text
        assert r"[bold red]\x1b[2J" in screen.text
        assert screen.text.replace("\n", "").isprintable()

    run(steps, of, size=(200, 60))


def busy_vm(second: int) -> NodeReport:
    """A VM on KVM with everything that is read of one."""
    measured = replace(MEASURED, counts=dict.fromkeys(MEASURED.counts, 40.0 * second))
    return report(second, guest(11, RUNNING, "alpha", exits=900 * second, vcpu_statistics=measured))


def test_a_vm_is_explained() -> None:
    """Enter opens the selected VM: the verdict, its last minute, its rates, and what why shows."""

    async def steps(screen: Screen) -> None:
        await screen.press("enter")
        for words in (
            "runs on KVM: the kernel shows it (verified)",
            "last minute",
            "EXIT/s 900",
            "halt/s 40",
            "Evidence",
            "pid ",
        ):
            assert words in screen.text
        assert re.search("[▁▂▃▄▅▆▇█]{20}", screen.text)
        await screen.press("escape")
        assert "by severity" in screen.lines[-1]

    run(steps, scene(*[busy_vm(second) for second in range(61)]), size=(100, 50))


def test_a_vm_that_ends_while_it_is_shown() -> None:
    """The screen of a VM follows its refreshes; once it has ended, the last one stays."""
    data = Stepped(busy_vm(1), busy_vm(2), report(3))

    async def steps(screen: Screen) -> None:
        await screen.press("enter")
        data.step()
        await until(screen, "EXIT/s 900")
        data.step()
        await until(screen, "it has ended")
        assert "runs on KVM" in screen.text
        await screen.press("escape")
        assert "nothing to show" in screen.text

    run(steps, data.first, feed=data.feed, interval_s=0.01)


def test_a_new_process_with_the_number_of_the_old_one() -> None:
    """A process that got the number of the shown one is not taken for it."""
    vm = guest(11, RUNNING, "alpha")
    data = Stepped(report(1, vm), report(2, vm._replace(vmm=vm.vmm._replace(start_ticks=7777))))

    async def steps(screen: Screen) -> None:
        await screen.press("enter")
        data.step()
        await until(screen, "it has ended")

    run(steps, data.first, feed=data.feed, interval_s=0.01)


class Exits:
    """Counts exits by reason."""

    def __init__(self) -> None:
        self.chosen: set[int] = set()
        self.closed = False

    def choose(self, tgids: Collection[int]) -> None:
        self.chosen = set(tgids)

    def read(self) -> Reasons:
        counts = (ReasonCount(isa=Isa.VMX, code=12, name="HLT", total=4711),)
        return dict.fromkeys(self.chosen, counts)

    @property
    def lost_total(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


def sourced(opened: list[Exits], error: str | None = None) -> FrameSource:
    """A source of frames that opens a counter of exits on demand, or fails to."""

    def open_exits() -> ExitReasons:
        if error is not None:
            raise BpfUnavailableError(error)
        opened.append(Exits())
        return opened[-1]

    return FrameSource(lambda: busy_vm(1), Selection(), open_exits)


def test_exits_by_reason_on_demand() -> None:
    """Key e has the exits of the shown VM counted, and going back ends that."""
    opened: list[Exits] = []
    source = sourced(opened)
    feed = Feed(next_data=source, stop=lambda: None, count_of=source.count_of)

    async def steps(screen: Screen) -> None:
        await screen.press("enter")
        assert opened == []
        await screen.press("e")
        await until(screen, "HLT")
        assert opened[0].chosen == {11}
        await screen.press("escape")
        while not opened[0].closed:
            await screen.pilot.pause(0.02)
        assert len(opened) == 1

    run(steps, source(), feed=feed, interval_s=0.1, size=(100, 50))


def test_what_the_vcpus_of_the_shown_vm_are_in() -> None:
    """The threads of the shown VM are read while its screen is open, and of no other VM."""
    wanted: list[VmmId] = []

    def read(vmm: VmmId) -> ThreadsReading:
        wanted.append(vmm)
        thread = VcpuThread(
            tid=4712,
            comm="CPU 0/KVM\x1b",
            emulates=False,
            on_cpu=True,
            run_call_of=None,
            cpu_s=3.0 + len(wanted),
            guest_s=2.0 + len(wanted),
        )
        return ThreadsReading(vmm=vmm, at_s=float(len(wanted)), threads=(thread,), complete=True)

    def no_exits() -> ExitReasons:
        raise BpfUnavailableError("not wanted")

    source = FrameSource(lambda: busy_vm(1), Selection(), no_exits, read)
    feed = Feed(next_data=source, stop=lambda: None, count_of=source.count_of, watch=source.watch)

    async def steps(screen: Screen) -> None:
        assert wanted == []
        await screen.press("enter")
        await until(screen, r"CPU 0/KVM\x1b")
        await until(screen, "100%  100%   ")
        await until(screen, "guest code")
        await screen.press("escape")
        seen = len(wanted)
        await screen.pilot.pause(0.5)
        assert len(wanted) <= seen + 1
        assert {vmm.tgid for vmm in wanted} == {11}

    run(steps, source(), feed=feed, interval_s=0.1)


def test_two_sizes_at_once() -> None:
    """The screen settles on the last of two sizes, and does not lay itself out for ever."""
    layouts = 0

    async def steps(screen: Screen) -> None:
        nonlocal layouts

        def count(_: object) -> None:
            nonlocal layouts
            layouts += 1

        table = screen.app.screen
        table.screen_layout_refresh_signal.subscribe(table, count)
        for width, height in ((90, 20), (80, 24), (90, 20), (80, 24)):
            table.post_message(Resize(Size(width, height), Size(width, height)))
        await screen.pilot.pause(1.0)
        assert len(screen.lines) == 24
        assert layouts < 20

    run(steps, scene(*busy_node()))


def test_a_signal_ends_the_view() -> None:
    """The view ends after a signal, whatever keys wait for their turn."""
    ended = threading.Event()

    async def steps(screen: Screen) -> None:
        ended.set()
        end_s = time.monotonic() + WAIT_S
        while screen.app.is_running:
            assert time.monotonic() < end_s
            await screen.pilot.pause(0.02)

    app = run(steps, scene(*busy_node()), ended=ended.is_set)
    assert app.failure is None


def test_exits_by_reason_that_cannot_be_counted() -> None:
    """The screen says why exits cannot be counted by reason."""
    source = sourced([], "exit reasons are unavailable: no tracepoint")
    feed = Feed(next_data=source, stop=lambda: None, count_of=source.count_of)

    async def steps(screen: Screen) -> None:
        await screen.press("enter", "e")
        await until(screen, "unavailable: no tracepoint")

    run(steps, source(), feed=feed, interval_s=0.1, size=(100, 50))


def test_pause() -> None:
    """While paused, nothing changes; the view then continues."""
    of = scene(*busy_node())
    count = 0

    def next_data() -> FrameData:
        nonlocal count
        count += 1
        return replace(of, report=replace(of.report, node=f"node-{count}"))

    async def steps(screen: Screen) -> None:
        await until(screen, "node-2")
        await screen.press("p")
        await screen.pilot.pause(0.2)
        still_text = screen.text
        assert "paused" in screen.lines[0]
        await screen.pilot.pause(0.3)
        assert screen.text == still_text
        await screen.press("p")
        await until(screen, f"node-{count + 2}")

    run(steps, of, feed=Feed(next_data=next_data, stop=lambda: None), interval_s=0.05)


def test_the_selected_vm_stays_selected() -> None:
    """The selection follows its VM; the first row stays the first one if none was selected."""
    one, two = guest(11, KVM, "one"), guest(12, KVM, "two")
    urgent = guest(13, LIAR, "urgent")
    for keys, selected in ((("down",), "default/two"), ((), "default/urgent")):
        data = Stepped(report(1, one, two), report(2, one, two, urgent))

        async def steps(
            screen: Screen,
            data: Stepped = data,
            keys: Sequence[str] = keys,
            selected: str = selected,
        ) -> None:
            await screen.press(*keys)
            data.step()
            await until(screen, "default/urgent")
            assert selected in screen.selected

        run(steps, data.first, feed=data.feed, interval_s=0.01)


def test_the_mouse_sorts_selects_and_opens() -> None:
    """A click on a heading sorts, on a row selects it, and on the selected one opens it."""

    async def steps(screen: Screen) -> None:
        at = screen.lines[3].index("VMI")
        await screen.pilot.click(offset=(at, 3))
        await screen.pilot.pause()
        assert "by name" in screen.lines[-1]
        await screen.pilot.click(offset=(at, 5))
        await screen.pilot.pause()
        assert "default/alpha" in screen.selected
        await screen.pilot.click(offset=(at, 5))
        await screen.pilot.pause()
        assert "default/alpha runs on KVM" in screen.text

    run(steps, scene(*busy_node()))


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_a_hanging_refresh_does_not_stop_the_user(key: str) -> None:
    """While a refresh hangs, keys work, the header says so, and q and Ctrl-C end the view."""
    of = scene(*busy_node())
    stopped = threading.Event()

    def hang() -> FrameData:
        stopped.wait(WAIT_S)
        return of

    async def steps(screen: Screen) -> None:
        await until(screen, f"no answer for {LATE_S:.0f} s")
        await screen.press("n")
        assert "by name" in screen.lines[-1]
        await screen.press("slash", key if key != "q" else "x")
        await screen.press("escape", "enter", key)

    began_s = time.monotonic()
    app = run(steps, of, feed=Feed(next_data=hang, stop=stopped.set), interval_s=0.05)
    assert stopped.is_set()
    assert app.failure is None
    assert time.monotonic() - began_s < WAIT_S / 2


def test_an_error_of_a_refresh_ends_the_view() -> None:
    """An error of a refresh ends the application, which keeps it for its caller."""

    def fail() -> FrameData:
        raise RuntimeError("no answer")

    async def steps(screen: Screen) -> None:
        end_s = time.monotonic() + WAIT_S
        while screen.app.failure is None:
            assert time.monotonic() < end_s
            await screen.pilot.pause(0.02)

    of = scene(*busy_node())
    app: LiveApp = run(steps, of, feed=replace(still(of), next_data=fail), interval_s=0.05)
    assert str(app.failure) == "no answer"
