# SPDX-License-Identifier: Apache-2.0
"""Processes that get the number of another one, and other users of BPF maps beside them.

Each owner of a number is forked and executes nothing: only its fork shows that it is another one.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator

from tests.support.kernel_agent import ROOT
from tests.support.kernel_world import Started

OWNERS = """
import ctypes, fcntl, json, mmap, os, platform, signal, struct, sys, threading

python = ctypes.PyDLL(None, use_errno=True)  # as os.fork() does it: with the interpreter's lock

def fork(number):
    \"\"\"fork(2); the child gets that number, if it is not 0.\"\"\"
    numbers = (ctypes.c_int * 1)(number)
    given = (ctypes.addressof(numbers), 1) if number else (0, 0)
    # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, its size
    packed = struct.pack("=10Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, *given)
    python.PyOS_BeforeFork()
    child = python.syscall(435, packed, len(packed))  # clone3, everywhere
    python.PyOS_AfterFork_Parent() if child else python.PyOS_AfterFork_Child()
    if child < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return child

def run(times):
    \"\"\"KVM_RUN that returns at once with EINTR.\"\"\"
    kvm = os.open("/dev/kvm", os.O_RDWR)
    vm = fcntl.ioctl(kvm, 0xAE01, 0)
    vcpu = fcntl.ioctl(vm, 0xAE41, 0)
    if platform.machine() == "aarch64":  # which does not run a vCPU that has no target
        target = bytearray(32)
        fcntl.ioctl(vm, 0x8020AEAF, target)  # KVM_ARM_PREFERRED_TARGET
        fcntl.ioctl(vcpu, 0x4020AEAE, target)  # KVM_ARM_VCPU_INIT
    state = mmap.mmap(vcpu, fcntl.ioctl(kvm, 0xAE04, 0))
    state[1] = 1  # immediate_exit
    for _ in range(times):
        python.ioctl(vcpu, ctypes.c_ulong(0xAE80), 0)  # fcntl.ioctl repeats what EINTR ended

def owner(number, times):
    \"\"\"A child that runs so often and then waits for its end, or for ours.\"\"\"
    out, into = os.pipe()
    child = fork(number)
    if child:
        os.close(into)
        os.read(out, 1)
        os.close(out)
        return child
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    run(times)
    os.write(into, b".")
    while True:
        signal.pause()

def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

for line in sys.stdin:
    command, number, times = json.loads(line)
    if command == "start":
        print(owner(number, times), flush=True)
    elif command == "end":
        end(number)
        print(number, flush=True)
    else:  # replace
        end(number)
        print(owner(number, times), flush=True)
"""


class Owners(Started):
    """Starts and ends processes that use KVM and execute nothing, under numbers of our choice."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-c", OWNERS], stderr=None)

    def start(self, runs: int) -> int:
        """A process that has made so many KVM_RUN calls; its number."""
        return self._ask("start", 0, runs)

    def replace(self, tgid: int, runs: int) -> None:
        """End that process, and give its number to another one in the same moment."""
        assert self._ask("replace", tgid, runs) == tgid

    def end(self, tgid: int) -> None:
        assert self._ask("end", tgid, 0) == tgid

    def _ask(self, command: str, tgid: int, runs: int) -> int:
        self.say(json.dumps([command, tgid, runs]) + "\n")
        return int(self.line())


MAP_USER = """
import ctypes
from ebpf.bpf_syscall import bpf
from ebpf.maps import HashMap

# map_type, key_size, value_size, max_entries, map_flags: a hash, BPF_F_NO_PREALLOC
fd = bpf(0, (ctypes.c_uint32 * 5)(1, 4, 4, 1 << 18, 1))
everything = HashMap(fd, key_bytes=4, value_bytes=4, capacity=1)
print("ready", flush=True)
while True:
    everything.items()
"""
"""Walks over the buckets of an empty hash: nearly all of its time is inside of one call."""


@contextlib.contextmanager
def busy_users_of_maps() -> Iterator[None]:
    """On each CPU a process that is in a call on a map whenever it runs.

    While it is there, no kprobe and no classic tracepoint program runs on its CPU, not even for a
    process that takes the CPU from it there, nor in an interrupt.
    """
    with contextlib.ExitStack() as stack:
        for cpu in os.sched_getaffinity(0):
            command = ["taskset", "-c", str(cpu), sys.executable, "-c", MAP_USER]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            user = stack.enter_context(Started(command, environment=environment, stderr=None))
            assert user.line() == "ready\n"
        yield
