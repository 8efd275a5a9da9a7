# SPDX-License-Identifier: Apache-2.0
"""EDGE: boots a kernel in QEMU, runs one command in the guest and returns its result.

Owns the QEMU command line and the life of the QEMU process, which ends with the command, at the
deadline, or with the process that started it. QEMU emulates everything (TCG), even nested
virtualization, so the machine needs neither /dev/kvm nor privileges. Must not know what the command
does.
"""

import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmtest import boot_history
from vmtest.apt import BuildError, program_path
from vmtest.build import BuiltGuest, write_initramfs
from vmtest.kernels import Architecture
from vmtest.shares import WRITABLE, served

REPOSITORY = Path(__file__).resolve().parents[1]
CONSOLE = "console.log"
ALIVE = "alive"
"""File in the results share that a running guest writes every other second."""
SILENT_S = 120.0
"""A machine without a sign of life for this long is taken to hang."""
BOOTS = 3
"""How many times a guest is booted if its machine hangs.

QEMU's emulation of nested SVM sometimes livelocks: one of its vCPU threads loops in cpu_exec for
ever and executes nothing, so not even the guest's timers run. No test causes that, and no test can
pass after it. If the guest's clock still ticks, the outcome is the test's own result.

With one host thread for each CPU of the guest, QEMU also corrupted the guest's memory (a 5.10
kernel found the end of a stack overwritten). So one thread emulates both CPUs in turn, and
test_kernels.py boots one guest for each CPU of this machine instead.
"""
EXIT_CODE = "exit-code"
COMMAND = "command.sh"
MEMORY_MIB = 3072
"""Memory of a guest."""

QEMU = {
    Architecture.AMD64: "qemu-system-x86_64",
    Architecture.ARM64: "qemu-system-aarch64",
}
_MACHINE = {
    # These are left out because they are slow to emulate and prove nothing here: 5-level page
    # tables, and the architected algorithm of pointer authentication (a boot takes 36 s, not 11 s).
    Architecture.AMD64: ("-machine", "q35", "-cpu", "max,la57=off"),
    Architecture.ARM64: (
        "-machine",
        "virt,virtualization=on,gic-version=3",
        "-cpu",
        "max,pauth-impdef=on",
    ),
}
_TTY = {Architecture.AMD64: "ttyS0", Architecture.ARM64: "ttyAMA0"}
_KERNEL_ARGUMENTS = (
    # A panic ends QEMU (-no-reboot) at once. The watchdogs expire too early on an emulated CPU.
    "panic=-1 loglevel=5 nowatchdog "
    # An emulated processor needs no mitigations, and emulating them takes time.
    "mitigations=off"
)
_AUDITED = "audit=1"
"""The kernel argument of a boot that wants the audit log on its console."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestResult:
    """The result of one command in a guest."""

    exit_code: int | None
    """Exit status of the command; None when the guest died or reached its deadline."""
    console: Path
    duration_s: float
    boots: int = 1
    """How many times the guest was booted. Above 1, the emulated machine hung before."""

    def console_tail(self, lines: int = 60) -> str:
        """The last lines of the console, for a failure message."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def boot(
    guest: BuiltGuest,
    command: str,
    results: Path,
    *,
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
    kernel_arguments: str = "",
    silent_s: float = SILENT_S,
    boots_max: int = BOOTS,
) -> GuestResult:
    """Boot, run the shell command in /repo (read-only), and wait until the guest ends.

    `results` is an existing directory, which the guest sees as /results. The console has the
    command's output. The run is added to boot_history.py's record.
    """
    exports = [f"export {k}={shlex.quote(v)}\n" for k, v in (environment or {}).items()]
    (results / COMMAND).write_text("".join(exports) + command + "\n")
    begun_s = time.monotonic()
    archive = results / "initramfs"
    write_initramfs(guest, archive)
    line = qemu_command(guest, archive, results, kernel_arguments=kernel_arguments)
    folders = {
        "root": guest.root,
        "repo": REPOSITORY,
        "packages": guest.packages,
        WRITABLE: results,
    }
    for boots in range(1, boots_max + 1):
        with served(guest.kernel.transport, folders, memory_mib=MEMORY_MIB) as shares:
            hung = _hung([*line, *shares], results, deadline_s, silent_s)
        if not hung or boots == boots_max:
            break
        (results / CONSOLE).rename(results / f"hung-{boots}-{CONSOLE}")
    archive.unlink()
    boot_history.add(guest.kernel.name, boots)
    return GuestResult(
        exit_code=_exit_code(results / EXIT_CODE),
        console=results / CONSOLE,
        duration_s=time.monotonic() - begun_s,
        boots=boots,
    )


def qemu_command(
    guest: BuiltGuest, archive: Path, results: Path, *, kernel_arguments: str = ""
) -> list[str]:
    """The QEMU command line for this guest, but for what it shares with this machine."""
    architecture = guest.kernel.architecture
    # A kernel that finds audit=0 heeds no audit=1 after it.
    audit = "" if _AUDITED in kernel_arguments.split() else "audit=0 "
    arguments = (
        f"console={_TTY[architecture]} {_KERNEL_ARGUMENTS} {audit}{kernel_arguments}".strip()
    )
    return [
        # QEMU dies with this process, even if this process is killed.
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *(QEMU[architecture], *_MACHINE[architecture]),
        *("-accel", "tcg,thread=single", "-smp", guest.smp, "-m", f"{MEMORY_MIB}M"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *guest.kernel.machine,
        *("-serial", f"file:{results / CONSOLE}"),
        *("-kernel", str(guest.image), "-initrd", str(archive), "-append", arguments),
    ]


def cpus_accepted(architecture: Architecture, wanted: Sequence[int]) -> int:
    """The first of these numbers of CPUs that QEMU can emulate in a machine.

    QEMU 7.2 declares 288 for q35 and emulates 255, because its local APIC has no more numbers.
    """
    for cpus in wanted:
        done = subprocess.run(
            [
                *(QEMU[architecture], *_MACHINE[architecture], "-accel", "tcg"),
                *("-smp", f"1,maxcpus={cpus}", "-nodefaults", "-display", "none", "-S"),
                *("-qmp", "stdio"),
            ],
            input='{"execute": "qmp_capabilities"}{"execute": "quit"}',
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return cpus
    raise BuildError(f"{QEMU[architecture]} emulates no machine with {wanted[-1]} CPUs")


def unavailable(architecture: Architecture) -> str | None:
    """The reason why this machine cannot boot such a guest, with the remedy; None when it can."""
    if platform.machine() != "x86_64":
        return f"guests are built on x86_64 machines, this is {platform.machine()}"
    x86 = architecture is Architecture.AMD64
    needed = {
        QEMU[architecture]: "qemu-system-x86" if x86 else "qemu-system-arm",
        "setpriv": "util-linux",
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
        "depmod": "kmod",
        "cpio": "cpio",
    }
    for program, package in needed.items():
        if shutil.which(program, path=program_path()) is None:
            return f"{program} is missing: install the package {package}"
    return None


def _hung(command: list[str], results: Path, deadline_s: float, silent_s: float) -> bool:
    """Run the machine until it ends, reaches its deadline or hangs; return whether it hangs."""
    begun_s = time.monotonic()
    (results / ALIVE).unlink(missing_ok=True)
    with (
        (results / "qemu.log").open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(os.environ)
        ) as qemu,
    ):
        try:
            while time.monotonic() - begun_s < deadline_s:
                try:
                    qemu.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    if _silent_s(results / ALIVE) < silent_s:
                        continue
                    _note(results, f"no sign of life for {silent_s:.0f} s: the machine hangs")
                    return True
                return False
            _note(results, f"deadline of {deadline_s:.0f} s met, guest ended")
            return False
        finally:
            qemu.kill()


def _silent_s(alive: Path) -> float:
    """Seconds since the last sign of life; 0 before the first, because booting may take longer."""
    try:
        return time.time() - alive.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _note(results: Path, line: str) -> None:
    with (results / CONSOLE).open("a") as console:
        console.write(f"\nvmtest: {line}\n")


def _exit_code(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None
