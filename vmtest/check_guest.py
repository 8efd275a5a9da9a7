# SPDX-License-Identifier: Apache-2.0
"""Runs inside a guest of vmtest: proves that the guest provides what the project's tests rely on.

Makes a KVM guest in its own process and drives it through a prime number of exits to user space.
BPF counts them at a kprobe on kvm_vcpu_ioctl and at the raw tracepoints kvm_exit and
kvm_userspace_exit, and the counts are compared with the workload and with KVM's own counter. Uses
nothing of the project but its stub headers, so a failure here is a fault of vmtest and not of the
project.

Prints one line per check. The first check that fails ends it with a traceback. With a file name, it
also writes the versions of this guest's software to that file as JSON. With --facts-only before
the name it checks nothing, because some kernels do not permit what is checked.
"""

import ctypes
import fcntl
import json
import mmap
import os
import platform
import struct
import subprocess
import sys
import time
from pathlib import Path

RUNS = 3001
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
# x86
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
# arm64
KVM_SET_ONE_REG = 0x4010AEAC
KVM_ARM_VCPU_INIT = 0x4020AEAE
KVM_ARM_PREFERRED_TARGET = 0x8020AEAF
REGISTER_X1 = 0x6030_0000_0010_0002
REGISTER_PC = 0x6030_0000_0010_0040
KVM_EXIT_IO, KVM_EXIT_MMIO = 2, 6

CODE_ADDRESS = 0x1000
UNMAPPED_ADDRESS = 0x10_0000

PROGRAM = r"""
#include <uapi/linux/ptrace.h>
BPF_ARRAY(counts, u64, 3);
static int is_ours(void) { return bpf_get_current_pid_tgid() >> 32 == TGID; }
int on_vcpu_ioctl(struct pt_regs *ctx) {
    if (is_ours() && PT_REGS_PARM2(ctx) == 0xae80) counts.atomic_increment(0);
    return 0;
}
int on_exit(void *ctx) { if (is_ours()) counts.atomic_increment(1); return 0; }
int on_userspace_exit(void *ctx) { if (is_ours()) counts.atomic_increment(2); return 0; }
"""


class TinyGuest:
    """A KVM guest whose program exits to user space once in each KVM_RUN."""

    def __init__(self) -> None:
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm = fcntl.ioctl(self._kvm, KVM_CREATE_VM, 0)
        self._memory = mmap.mmap(-1, 4096)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        region = struct.pack("IIQQQ", 0, 0, CODE_ADDRESS, 4096, address)
        fcntl.ioctl(self.vm, KVM_SET_USER_MEMORY_REGION, region)
        self._vcpu = fcntl.ioctl(self.vm, KVM_CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, fcntl.ioctl(self._kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
        self.exit_reason = {"x86_64": self._set_up_x86, "aarch64": self._set_up_arm64}[
            platform.machine()
        ]()

    def _set_up_x86(self) -> int:
        self._memory[:3] = bytes.fromhex("ee ebfd")  # again: out %al,(%dx); jmp again
        sregs = bytearray(fcntl.ioctl(self._vcpu, KVM_GET_SREGS, bytes(312)))
        struct.pack_into("Q", sregs, 0, 0)  # cs.base
        struct.pack_into("H", sregs, 12, 0)  # cs.selector
        fcntl.ioctl(self._vcpu, KVM_SET_SREGS, bytes(sregs))
        general = [0] * 16
        general[3] = 0x10  # rdx: a port that KVM does not handle in the kernel
        fcntl.ioctl(self._vcpu, KVM_SET_REGS, struct.pack("18Q", *general, CODE_ADDRESS, 2))
        return KVM_EXIT_IO

    def _set_up_arm64(self) -> int:
        self._memory[:8] = struct.pack("<II", 0xB9000020, 0x17FFFFFF)  # again: str w0,[x1]; b again
        target = fcntl.ioctl(self.vm, KVM_ARM_PREFERRED_TARGET, bytes(32))
        fcntl.ioctl(self._vcpu, KVM_ARM_VCPU_INIT, target)
        for register, value in ((REGISTER_X1, UNMAPPED_ADDRESS), (REGISTER_PC, CODE_ADDRESS)):
            slot = ctypes.c_uint64(value)
            one = struct.pack("QQ", register, ctypes.addressof(slot))
            fcntl.ioctl(self._vcpu, KVM_SET_ONE_REG, one)
        return KVM_EXIT_MMIO

    def run(self) -> int:
        """Make one KVM_RUN and return kvm_run.exit_reason."""
        fcntl.ioctl(self._vcpu, KVM_RUN, 0)
        reason: int = struct.unpack_from("I", self._run, 8)[0]
        return reason


def count_exactly() -> str:
    """Check that the BPF counts equal the workload and KVM's own counter."""
    from bcc import BPF

    begun_s = time.monotonic()
    bpf = BPF(text=PROGRAM, cflags=[f"-DTGID={os.getpid()}"])
    compiled_s = time.monotonic() - begun_s
    bpf.attach_kprobe(event="kvm_vcpu_ioctl", fn_name="on_vcpu_ioctl")
    bpf.attach_raw_tracepoint(tp="kvm_exit", fn_name="on_exit")
    bpf.attach_raw_tracepoint(tp="kvm_userspace_exit", fn_name="on_userspace_exit")
    guest = TinyGuest()
    wrong = sum(guest.run() != guest.exit_reason for _ in range(RUNS))
    runs, exits, userspace_exits = (bpf["counts"][index].value for index in range(3))
    own = Path(f"/sys/kernel/debug/kvm/{os.getpid()}-{guest.vm}/exits").read_text().strip()
    seen = f"{runs} KVM_RUN, {userspace_exits} userspace exits, {exits} exits, KVM says {own}"
    if (runs, userspace_exits, str(exits), wrong) != (RUNS, RUNS, own, 0):
        raise AssertionError(f"{seen}, {wrong} other exit reasons, {RUNS} runs")
    return f"{seen}; compiled in {compiled_s:.1f} s"


def cgroup_can_be_made() -> str:
    """Check that a group can be made in the unified hierarchy and that a process can enter it."""
    group = Path("/sys/fs/cgroup/check")
    group.mkdir()
    home = Path("/sys/fs/cgroup/cgroup.procs")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    seen = Path("/proc/self/cgroup").read_text().strip()
    home.write_text(str(os.getpid()))
    group.rmdir()
    if seen != "0::/check":
        raise AssertionError(seen)
    return seen


def libraries_load() -> str:
    """Check that the libraries that the project imports are installed."""
    import bcc
    import jinja2
    import prometheus_client
    import psutil
    import rich
    import tornado

    names = (bcc, jinja2, prometheus_client, psutil, rich, tornado)
    return f"python {platform.python_version()}, " + ", ".join(module.__name__ for module in names)


def facts() -> dict[str, str]:
    """Versions of the software in this guest that the project depends on."""
    import bcc

    qemu = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}[platform.machine()]
    version = subprocess.run([qemu, "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "bcc": bcc.__version__,
        "python": platform.python_version(),
        "qemu": version.split()[3],
    }


def main() -> int:
    repository = Path(__file__).resolve().parents[1]
    os.environ["BCC_KERNEL_SOURCE"] = str(repository / "ebpf")
    arguments = sys.argv[1:]
    facts_only = arguments[:1] == ["--facts-only"]
    for check in () if facts_only else (libraries_load, cgroup_can_be_made, count_exactly):
        begun_s = time.monotonic()
        seen = check()
        print(f"check_guest: {seen} ({time.monotonic() - begun_s:.1f} s)", flush=True)
    for file in arguments[facts_only:]:
        Path(file).write_text(json.dumps(facts(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
