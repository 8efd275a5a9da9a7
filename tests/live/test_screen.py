# SPDX-License-Identifier: Apache-2.0
"""``hvprobe live`` in a real terminal with real guests, driven by its keys."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernel_world import KvmLoad, Qemu, wait_for
from tests.support.live_terminal import HVPROBE, Terminal

SELECTED = ("live", "--standalone", "--node", "worker-1", "--interval", "0.3")


@pytest.fixture(scope="module")
def guests(kvmload: Path) -> Iterator[KvmLoad]:
    """An accelerated, an emulated and a paused guest, and a user of KVM that is not QEMU."""
    with (
        Qemu("live_alpha"),
        Qemu("live_beta", "-smp", "2", accel=("tcg,thread=multi",)),
        Qemu("live_paused", "-S"),
        Qemu("live_evil\x1b[31m\u202e\u0301日本", accel=("tcg",)),
        KvmLoad(kvmload, "--step") as load,
    ):
        yield load.finish_counted_part()


def live(tmp_path: Path, *more: str, columns: int = 80, lines: int = 24) -> Terminal:
    return Terminal(tmp_path, [*HVPROBE, *SELECTED, *more], columns=columns, lines=lines)


def field(line: str, number: int) -> str:
    return line.split()[number]


def names(frame: list[str]) -> list[str]:
    """The VMI column of the rows of this test's guests."""
    return [found[0] for line in frame if (found := re.search(r"\blive[/_]\w+", line))]


def test_guests_are_shown_with_their_types(tmp_path: Path, guests: KvmLoad) -> None:
    """Every guest has its type, and the emulated one, a fallback, precedes the accelerated one."""
    with live(tmp_path, columns=160) as terminal:
        terminal.wait_for("live/alpha")
        wait_for(
            lambda: field(terminal.row("live/beta") or "- - - -", 3) == "tcg!", "beta fell back"
        )
        wait_for(lambda: field(terminal.row("live/alpha") or "- - - -", 3) == "kvm", "alpha is kvm")
        frame = terminal.frame()
        paused = terminal.row("live/paused")
        assert paused is not None
        assert field(paused, 3) in ("kvm?", "kvm")
        assert "worker-1" in frame[0]
        assert re.match(r"hooks \d+/\d+( missed \d+)?  ledger \d+/4096  VMIs kvm \d+", frame[1])
        assert names(frame).index("live/beta") < names(frame).index("live/alpha")
        other = terminal.row(f"{guests.tgid} kvmload")
        assert other is not None
        evil = terminal.row("live_evil")
        assert evil is not None
        assert r"live_evil\x1b[31m\u202e\u0301日本" in evil
        assert len(frame) <= 24


def test_rates_of_a_guest_under_load(tmp_path: Path, guests: KvmLoad) -> None:
    """A guest under load is shown with a rate and a bar."""
    with live(tmp_path, "--pid", str(guests.tgid), columns=110) as terminal:
        terminal.wait_for("kvmload")

        def rate() -> bool:
            guests.step(3000)
            row = terminal.row("kvmload") or ""
            heading = terminal.row("TGID") or ""
            column = "USER_EXIT/s" if "USER_EXIT/s" in heading else "KVM_RUN/s"
            shown = row[: heading.index(column) + len(column)].split()[-1:]
            return bool(shown and re.fullmatch(r"[1-9]\d*k?", shown[0]))

        assert wait_for(rate, "a rate is shown")
        wait_for(lambda: re.search("[▁▂▃▄▅▆▇█]", terminal.row("kvmload") or ""), "a bar is shown")


def test_keys(tmp_path: Path, guests: KvmLoad) -> None:
    """r, t and n sort, / filters, Escape shows all rows again, p pauses and q exits with 0.

    c hides the lines about KVM's statistics, so that the table has one line for each process.
    """
    with live(tmp_path, columns=110) as terminal:
        terminal.wait_for("live/paused")
        terminal.wait_for("by severity")
        terminal.press("c")
        terminal.press("n")
        frame = terminal.wait_for("by name")
        assert names(frame) == sorted(names(frame))
        terminal.press("t")
        frame = terminal.wait_for("by type")
        assert names(frame).index("live/alpha") < names(frame).index("live/beta")
        terminal.press("t")
        terminal.wait_for("by severity")
        terminal.press("r")
        terminal.wait_for("by exits")
        terminal.press("/", "p", "a", "u", "s")
        terminal.wait_for("filter: paus_")
        wait_for(lambda: names(terminal.frame()) == ["live/paused"], "only one is shown")
        terminal.press("Enter")
        terminal.wait_for("1-1 of 1")
        terminal.press("Escape")
        wait_for(lambda: "live/alpha" in names(terminal.frame()), "all are shown again")
        terminal.press("p")
        wait_for(lambda: terminal.frame()[0].endswith("paused"), "the header says so")
        terminal.wait_for("p resume")
        still = terminal.frame()
        guests.step(3000)
        assert terminal.frame() == still
        terminal.press("p")
        wait_for(lambda: terminal.frame()[0] != still[0], "the view continues")
        terminal.press("q")
        terminal.wait_for("ended with 0")


def test_a_vm_is_opened(tmp_path: Path, guests: KvmLoad) -> None:
    """Enter shows what ``why`` shows of the selected VM, e counts its exits by reason."""
    with live(tmp_path, columns=100, lines=40) as terminal:
        terminal.wait_for("live/alpha")
        terminal.press("/", *"beta")
        wait_for(lambda: names(terminal.frame()) == ["live/beta"], "only one is shown")
        terminal.press("Enter")
        terminal.wait_for("filter: beta  by")
        terminal.press("Enter")
        terminal.wait_for("live/beta is emulated in software (tcg)")
        terminal.wait_for("Why it is emulated")
        for words in ("NAME", "CPU 0/TCG", "CPU 1/TCG"):
            terminal.wait_for(words)
        terminal.press("Escape")
        terminal.wait_for("by severity")
        terminal.press("/", *str(guests.tgid))
        wait_for(lambda: terminal.row(f"{guests.tgid} kvmload"), "kvmload is shown")
        terminal.press("Enter")
        terminal.wait_for(f"filter: {guests.tgid}  by")
        terminal.press("Enter")
        terminal.wait_for(f"process {guests.tgid} runs on KVM")
        terminal.wait_for("vCPU threads")
        terminal.press("e")
        terminal.wait_for("by reason")

        def counted() -> bool:
            guests.step(3000)
            text = "\n".join(terminal.frame())
            return bool(
                re.search(r"(vmx|svm|arm64) .*/s|by reason +(unavailable|nothing yet)", text)
            )

        wait_for(counted, "exits are counted by reason, or the screen says why not")
        terminal.press("?")
        terminal.wait_for("the most urgent VMs come first")
        terminal.press("q")
        terminal.wait_for("ended with 0")


@pytest.mark.parametrize(
    ("name", "thread", "inside"),
    [
        ("alpha", "CPU 0/KVM", "KVM: halted|guest code|on a CPU|outside .*|user space: asleep"),
        ("paused", "CPU 0/KVM", "user space: asleep"),
        ("beta", "CPU 1/TCG", "emulating the guest|user space: asleep"),
    ],
)
def test_what_the_vcpus_are_in(
    tmp_path: Path, guests: KvmLoad, name: str, thread: str, inside: str
) -> None:
    """The screen of a VM shows what each of its vCPU threads is in, with its shares of a CPU."""
    line = re.compile(rf" {thread} +\d+ +\d+% +\d+% +\d+[smhd] +({inside})$", re.MULTILINE)
    with live(tmp_path) as terminal:
        terminal.wait_for("live/alpha")
        terminal.press("/", *name, "Enter")
        wait_for(lambda: names(terminal.frame()) == [f"live/{name}"], "only one is shown")
        terminal.wait_for(f"filter: {name}  by")
        terminal.press("Enter")
        wait_for(lambda: line.search("\n".join(terminal.frame())), "its threads are shown")


def test_paging_and_resizing(tmp_path: Path, guests: KvmLoad) -> None:
    """A table longer than the screen scrolls, and a new size is used at once, even a tiny one."""
    with live(tmp_path, columns=80, lines=10) as terminal:
        terminal.wait_for("1-")
        terminal.press("n")
        top = terminal.wait_for("by name")
        terminal.press("End")
        wait_for(lambda: terminal.frame()[5:9] != top[5:9], "it has scrolled")
        terminal.press("Home")
        wait_for(lambda: terminal.frame()[-1].startswith("1-"), "the first line is shown again")
        terminal.press("PageDown", "PageDown")
        wait_for(lambda: not terminal.frame()[-1].startswith("1-"), "it has scrolled by a page")
        terminal.resize(200, 40)
        wait_for(
            lambda: (
                "KVM's worker" in "\n".join(terminal.frame())
                or "KVM_RUN" in "\n".join(terminal.frame())
            ),
            "words are written out",
        )
        terminal.wait_for("live/alpha")
        terminal.resize(20, 4)
        wait_for(
            lambda: len(terminal.frame()) <= 4 and terminal.frame() != top,
            "the tiny screen is used",
        )
        terminal.resize(80, 24)
        terminal.wait_for("live/alpha")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_restores_the_terminal(
    tmp_path: Path, guests: KvmLoad, number: signal.Signals
) -> None:
    """A signal that ends the view restores the former screen, the cursor and the echo."""
    with live(tmp_path) as terminal:
        terminal.wait_for("quit")
        assert (terminal.asks("alternate_on"), terminal.asks("cursor_flag")) == ("1", "0")
        os.kill(terminal.program(), number)
        terminal.wait_for("ended with 0")
        assert_restored(terminal)


def test_an_error_restores_the_terminal(tmp_path: Path, guests: KvmLoad) -> None:
    """An error while the view runs restores the terminal and is then printed."""
    program = (
        "import sys, probes.command.cli, probes.render.live.table_screen as screen\n"
        "of = screen.table_frame; left = [6]\n"
        "def frame(*a, **k):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: raise RuntimeError('while it runs')\n"
        "    return of(*a, **k)\n"
        "screen.table_frame = frame\n"
        "sys.exit(probes.command.cli.main(sys.argv[1:]))\n"
    )
    with Terminal(tmp_path, [HVPROBE[0], "-c", program, *SELECTED]) as terminal:
        terminal.wait_for("RuntimeError: while it runs")
        terminal.wait_for("ended with 1")
        assert_restored(terminal)


def test_stopped_and_continued(tmp_path: Path, guests: KvmLoad) -> None:
    """Ctrl-Z restores the terminal and stops the view, and ``fg`` shows the view again."""
    shell = ["env", "PS1=prompt> ", "bash", "--norc", "--noprofile", "-i"]
    with Terminal(tmp_path, shell) as terminal:
        terminal.wait_for("prompt>")
        terminal.press(" ".join([*HVPROBE, *SELECTED]), "Enter")
        terminal.wait_for("q quit")
        for _ in range(2):
            terminal.press("C-z")
            terminal.wait_for("Stopped")
            assert (terminal.asks("alternate_on"), terminal.asks("cursor_flag")) == ("0", "1")
            terminal.press("clear; echo seen", "Enter")
            terminal.wait_for("seen")
            terminal.press("fg", "Enter")
            terminal.wait_for("q quit")
            assert terminal.asks("alternate_on") == "1"
        terminal.press("q")
        terminal.wait_for("prompt>")
        assert terminal.asks("cursor_flag") == "1"


def test_without_colour(tmp_path: Path, guests: KvmLoad) -> None:
    """The view has colours, unless NO_COLOR is set."""
    for variables, colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        command = [*HVPROBE, *SELECTED]
        with Terminal(tmp_path, command, variables=variables) as terminal:
            terminal.wait_for("live/beta")
            assert bool(re.search(r"\x1b\[3[1-7]m", terminal.coloured())) is colours


def test_terminal_without_utf8(tmp_path: Path, guests: KvmLoad) -> None:
    """In a locale other than UTF-8 the view shows only ASCII."""
    command = [*HVPROBE, *SELECTED]
    with Terminal(tmp_path, command, variables={"LC_ALL": "C"}) as terminal:
        terminal.wait_for("live/beta")
        assert "\n".join(terminal.frame()).isascii()


def assert_restored(terminal: Terminal) -> None:
    assert (terminal.asks("alternate_on"), terminal.asks("cursor_flag")) == ("0", "1")
    settings = terminal.settings().split()
    assert "echo" in settings
    assert "icanon" in settings
