# SPDX-License-Identifier: Apache-2.0
"""Two guests to look at: one accelerated by KVM, one emulated, named as KubeVirt names them.

Run by ``make demo``. Starts the guests, prints what to type to see them, and ends them on Ctrl-C,
SIGTERM, SIGHUP, or when either of them or the parent of this process dies. Needs nothing but the
standard library and leaves no file: the boot disk is a memory file that the guests inherit.
"""

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import FrameType

QEMU = "qemu-system-x86_64"
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""
EXIT_FAILED = 1

BOOT_CODE = bytes.fromhex(
    "fb"  #      sti              the timer may interrupt
    "b99001"  #  mov cx, 400
    "e680"  #    out 0x80, al     the POST port: each one makes KVM_RUN return to QEMU
    "e2fc"  #    loop the out
    "f4"  #      hlt              until the timer ticks, 18 times a second
    "ebf6"  #    jmp to the mov
)
BOOT_SECTOR_BYTES = 512
BOOT_SIGNATURE = b"\x55\xaa"
DISK_BYTES = 2 << 20
"""SeaBIOS does not boot from a disk too small to have a cylinder."""


class DemoError(Exception):
    """The demo cannot go on; the text is the one line for the user."""


class Accelerator(Enum):
    """QEMU's name of what runs the guest's code."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest to start."""

    namespace: str
    """Kubernetes namespace the guest claims to be of."""
    name: str
    """Name of the VirtualMachineInstance it claims to be."""
    accelerator: Accelerator
    """What runs it."""


def kvm_refusal() -> str | None:
    """Why no guest can be accelerated here; None: one can."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return f"the demo's guests are x86 and this machine is {platform.machine()}"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        return f"/dev/kvm does not open: {err.strerror}"
    return None


def boot_disk() -> int:
    """Return the file descriptor of a memory file with a boot sector that never stops working."""
    disk = os.memfd_create("hvprobe-demo-disk", os.MFD_CLOEXEC)
    os.truncate(disk, DISK_BYTES)
    padding = bytes(BOOT_SECTOR_BYTES - len(BOOT_CODE) - len(BOOT_SIGNATURE))
    os.write(disk, BOOT_CODE + padding + BOOT_SIGNATURE)
    return disk


def command_line(guest: Guest, qemu: str, disk: int) -> list[str]:
    """Return what libvirt's command line is like, without the devices a demo can do without."""
    return [
        qemu,
        "-name",
        f"guest={guest.namespace}_{guest.name},debug-threads=on",
        "-machine",
        "q35",
        "-accel",
        guest.accelerator.value,
        "-m",
        "32",
        "-display",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-drive",
        f"if=none,id=boot,format=raw,readonly=on,file=/proc/self/fd/{disk}",
        "-device",
        "virtio-blk-pci,drive=boot",
    ]


def die_with_parent(death_signal: signal.Signals, parent_tgid: int) -> Callable[[], None]:
    """Return a function that ties the calling process's life to its parent's."""
    libc = ctypes.CDLL(None, use_errno=True)

    def tie() -> None:
        if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent_tgid:  # it died before we asked
            os.kill(os.getpid(), death_signal)

    return tie


def start(guest: Guest, qemu: str, disk: int) -> subprocess.Popen[bytes]:
    """Start a guest that the kernel kills should this process die in any way."""
    return subprocess.Popen(
        command_line(guest, qemu, disk),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # What QEMU has to say about CPU features it cannot offer is of no interest here, and
        # what it says when it cannot start is.
        stderr=subprocess.PIPE,
        pass_fds=[disk],
        # A group of its own: Ctrl-C is for this process, which then ends the guests.
        process_group=0,
        preexec_fn=die_with_parent(signal.SIGKILL, os.getpid()),  # noqa: PLW1509 - one thread
    )


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the guests and wait until they are gone."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_end(guests: dict[int, Guest], processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a guest ends by itself, which is an error; a signal's exception ends the wait."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    if ended is None:
        return
    process = next(process for process in processes if process.pid == ended.si_pid)
    guest = guests[ended.si_pid]
    said = process.stderr.read().decode(errors="replace").split("\n") if process.stderr else []
    last = next((line for line in reversed(said) if line), "it said nothing")
    raise DemoError(
        f"guest {guest.namespace}/{guest.name} (TGID {process.pid}) ended by itself: {last}: "
        f"try {QEMU} -accel {guest.accelerator.value} by hand"
    )


def explain(guests: dict[int, Guest]) -> None:
    """Print who runs and what to type to see it."""
    for tgid, guest in guests.items():
        print(f"demo: TGID {tgid}: {guest.accelerator.value}, VMI {guest.namespace}/{guest.name}")
    first = next(iter(guests))
    print(
        f"""
In another terminal, as root, in this folder:

  make run                              # the agent; leave it running
  curl -s http://127.0.0.1:9747/metrics | grep ^kubevirt_
  .venv/bin/hvprobe live
  .venv/bin/hvprobe live --once --pid {first}
  .venv/bin/hvprobe snapshot

Ctrl-C here ends the guests.""",
        flush=True,
    )


def interrupt(signum: int, _frame: FrameType | None) -> None:
    """Turn a signal that asks for the end into the exception that Ctrl-C is."""
    raise KeyboardInterrupt(signum)


def demo() -> None:
    """Run the guests until the user ends the demo."""
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise DemoError(f"{QEMU} is not installed: make demo installs it, as root")
    wanted = [Guest(namespace="lab", name="beta", accelerator=Accelerator.TCG)]
    refusal = kvm_refusal()
    if refusal is None:
        wanted.insert(0, Guest(namespace="default", name="alpha", accelerator=Accelerator.KVM))
    else:
        print(f"demo: no accelerated guest: {refusal}")
    processes: list[subprocess.Popen[bytes]] = []
    guests: dict[int, Guest] = {}
    disk = boot_disk()
    try:
        for guest in wanted:
            process = start(guest, qemu, disk)
            processes.append(process)
            guests[process.pid] = guest
        explain(guests)
        wait_for_end(guests, processes)
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        stop(processes)
        print("demo: guests ended", flush=True)


def main() -> int:
    """Return the exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)
    die_with_parent(signal.SIGTERM, os.getppid())()
    try:
        demo()
    except KeyboardInterrupt:
        return 0
    except DemoError as err:
        print(f"demo: error: {err}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
