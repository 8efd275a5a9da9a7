# SPDX-License-Identifier: Apache-2.0
"""Real processes for tests: QEMU guests, tiny KVM programs, impostors. Starts and ends them.

Every process dies with the test that started it, however that ends: the kernel kills it when its
parent goes (PR_SET_PDEATHSIG), so a killed run leaves nothing behind.
"""

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

DEADLINE_S = float(os.environ.get("HVPROBE_TEST_DEADLINE_S", "30"))
"""How long a condition is waited for. Guests emulated in software set it higher."""

EMULATED = os.environ.get("HVPROBE_EMULATED") == "1"
"""Whether this machine's processor is software: set by vmtest."""
TRIES_WHEN_EMULATED = 3
GUEST_WENT_ASTRAY = 3
"""Exit code of kvmload whose guest made another exit than it was to make."""

MACHINE = platform.machine()
QEMU = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}[MACHINE]
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def wait_for(condition: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The condition's first true value; AssertionError with its last value after the deadline."""
    end_s = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end_s:
            raise AssertionError(f"not within {deadline_s:g} s: {what}; last seen: {value!r}")
        time.sleep(0.02)


def _be_a_good_child() -> None:
    """Die with the parent, and let the tests go first where guests compute for ever."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)


def of_this_run(name: str) -> str:
    """A VM's name that no other VM of this machine bears, be it of the demo or another checkout."""
    return f"{name}-{os.getpid()}"


def kvm_users() -> set[int]:
    """Processes of this machine that hold a VM of KVM now, those of other users included.

    Each may take a slot in a ledger that a test makes.
    """
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or closed one, in the meantime
            if any(str(fd.readlink()) == "anon_inode:kvm-vm" for fd in (process / "fd").iterdir()):
                found.add(int(process.name))
    return found


class Started:
    """A process of the test."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: dict[str, str] | None = None,
        executable: Path | str | None = None,
        stderr: int | None = subprocess.DEVNULL,
    ) -> None:
        self.popen = subprocess.Popen(
            [str(argument) for argument in arguments],
            executable=executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            preexec_fn=_be_a_good_child,  # noqa: PLW1509 - no other thread starts processes here
            text=True,
        )

    @property
    def tgid(self) -> int:
        return self.popen.pid

    def line(self) -> str:
        """The next line of its standard output."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def say(self, text: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(text)
        self.popen.stdin.flush()

    def kill(self) -> None:
        """End it and reap it: afterwards its PID is free."""
        self.popen.kill()
        self.popen.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Qemu(Started):
    """A QEMU guest that runs its firmware and needs no disk."""

    def __init__(
        self,
        name: str | None,
        *arguments: str,
        accel: Sequence[str] = ("kvm",),
        debug_threads: bool = True,
        program: Path | str | None = None,
    ) -> None:
        naming = f"guest={name}" if name else "process=qemu"
        threads = ",debug-threads=on" if debug_threads else ""
        super().__init__(
            [
                QEMU,
                *(word for one in accel for word in ("-accel", one)),
                "-name",
                f"{naming}{threads}",
                *machine_arguments(accel[0] if accel else "tcg"),
                *("-display", "none", "-nodefaults", "-m", "64"),
                *arguments,
            ],
            executable=program,
        )


def machine_arguments(accel: str) -> list[str]:
    """The machine whose firmware computes a little on this architecture."""
    if MACHINE == "aarch64":
        cpu = "host" if accel.startswith("kvm") else "max"
        return ["-machine", "virt,gic-version=3", "-cpu", cpu]
    return []


class KvmLoad(Started):
    """tests/support/kvmload.c: a KVM user that is no QEMU and makes exactly known exits."""

    def __init__(
        self,
        program: Path,
        *arguments: str,
        options: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> None:
        """Start it.

        options: kvmload's, if the arguments are those of the program whose name it bears. before: a
        command that runs it.
        """
        self._command: list[str | Path] = [*before, program, *arguments]
        lines = {"KVMLOAD_OPTIONS": "\n".join(options)} if options else {}
        self._environment = {**os.environ, **lines}
        super().__init__(self._command, environment=self._environment, stderr=None)
        self.totals: dict[str, Any] = {}

    def finish_counted_part(self) -> Self:
        """Wait until everything counted has been made; its totals.

        An emulated processor sometimes leads a nested guest astray, so that the workload cannot be
        made: there, and only there, it is begun again, as another process. What is counted of a
        workload that was made is never tried twice.
        """
        line = self.line()
        for _ in range(TRIES_WHEN_EMULATED if EMULATED else 0):
            if line or self.popen.wait() != GUEST_WENT_ASTRAY:
                break
            self.popen.communicate()
            super().__init__(self._command, environment=self._environment, stderr=None)
            line = self.line()
        assert line, f"kvmload ended early with {self.popen.wait()}"
        self.totals = json.loads(line)
        return self

    def step(self, exits: int) -> None:
        """Make that many more userspace exits (needs --step)."""
        self.order(str(exits))

    def order(self, word: str) -> None:
        """Make the process do what a line on its standard input says (needs --step)."""
        self.say(f"{word}\n")
        self.totals = json.loads(self.line())


class PythonProcess(Started):
    """A Python program that prints a line when it is in place and then waits for its end."""

    def __init__(self, program: str, *, comm_like: str | None = None) -> None:
        wait = "\nprint('ready', flush=True)\nimport sys\nsys.stdin.read()\n"
        super().__init__(
            [comm_like or sys.executable, "-c", program + wait],
            executable=sys.executable,
            stderr=None,
        )
        assert self.line() == "ready\n"


RENAME_THREAD = """
import ctypes, threading
def rename(name):
    ctypes.CDLL(None).prctl(15, name, 0, 0, 0)  # PR_SET_NAME
def vcpu():
    rename(b"CPU 0/KVM")
    named.set()
    threading.Event().wait()
named = threading.Event()
threading.Thread(target=vcpu, daemon=True).start()
named.wait()
"""
"""A thread that calls itself a KVM vCPU."""

RENAME_PROCESS = """
import ctypes
ctypes.CDLL(None).prctl(15, b"qemu-kvm", 0, 0, 0)
"""
"""A process that calls itself QEMU without having executed it."""

KVM_RUN_ON_DEV_NULL = """
import fcntl, os
fd = os.open("/dev/null", os.O_RDWR)
for request in (0xAE01, 0xAE41, 0xAE80):
    for _ in range(100):
        try:
            fcntl.ioctl(fd, request, 0)
        except OSError:
            pass
"""
"""KVM's ioctl numbers on a file that is not KVM's."""


def thread_times(tgid: int) -> list[tuple[str, int]]:
    """Name and consumed clock ticks of each thread of a process."""
    found = []
    for task in Path(f"/proc/{tgid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found.append(((task / "comm").read_text().strip(), int(fields[11]) + int(fields[12])))
    return found


def guest_time(tgid: int) -> int:
    """Clock ticks that the kernel accounted to a process as guest time."""
    return int(Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()[40])


def build_kvmload(directory: Path) -> Path:
    """Compile kvmload.c."""
    return compiled("kvmload", directory)


def compiled(name: str, directory: Path) -> Path:
    """Compile a program of this folder, statically: it also runs where there is no compiler."""
    source = Path(__file__).with_name(f"{name}.c")
    program = directory / name
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "no C compiler: install gcc"
    subprocess.run(
        [
            compiler,
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            "-pthread",
            "-o",
            program,
            source,
        ],
        check=True,
    )
    return program
