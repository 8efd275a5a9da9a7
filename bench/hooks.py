# SPDX-License-Identifier: Apache-2.0
"""The programs whose cost is compared, each loaded by the program that normally loads it.

Owns how they are obtained: from a real agent, from the distribution's tool, and from
reference.bpf.c. Must not know how they are measured. The agent and the tool end before the
measurement, because otherwise their own attachments would run beside it.

Each program is loaded several times. The kernel puts its code at a random place among those of
other programs (bpf_jit_binary_pack_alloc, kernel/bpf/core.c), which changes the time of a run by a
quarter, and so would the ratio of two programs.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.agent import ROOT, BenchAgent
from bench.bpf import RAW_TRACEPOINT, Program
from bench.peers import KVMEXIT_PEER, running

REFERENCE = Path(__file__).with_name("reference.bpf.c")
EMPTY, SLOT, PER_CPU_HASH, COMMON = "empty", "percpu_array", "percpu_hash", "hash_atomic"
CURRENT_PROCESS = "current_process"
OURS, OURS_USERSPACE, KVMEXIT = "hvprobe", "hvprobe, kvm_userspace_exit", "kvmexit-bpfcc"
LOADS = 8
"""How often each program is loaded. Rounds of a measurement are best a multiple of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPrograms:
    """The programs by name, and the reasons why some are absent."""

    loads: dict[str, list[Program]] = field(default_factory=dict)
    """Each program as often as it was loaded."""
    absent: dict[str, str] = field(default_factory=dict)
    """The reason why a program is absent, by name."""

    def next(self, name: str) -> Program:
        """The load of a program whose turn it is."""
        loads = self.loads[name]
        loads.append(loads.pop(0))
        return loads[-1]

    def type(self, name: str) -> int:
        """A program's type."""
        return self.loads[name][0].type

    def raw(self) -> list[str]:
        """The raw tracepoint programs, because only programs of one kind are comparable."""
        return [name for name in self.loads if self.type(name) == RAW_TRACEPOINT]


@contextmanager
def hook_programs() -> Iterator[HookPrograms]:
    """Load all programs; they are closed when the block ends."""
    with ExitStack() as stack:
        found = HookPrograms()

        def add(name: str, program: Program) -> None:
            stack.callback(program.close)
            found.loads.setdefault(name, []).append(program)

        for _ in range(LOADS):
            bpf = _compile()
            stack.callback(bpf.cleanup)
            for name in (EMPTY, SLOT, CURRENT_PROCESS, PER_CPU_HASH, COMMON):
                loaded = bpf.load_func(name.encode(), RAW_TRACEPOINT)
                add(name, Program(os.dup(loaded.fd)))
            with BenchAgent("--standalone") as agent:
                agent.wait_ready()
                add(OURS, Program.of_process(agent.tgid, "on_kvm_exit"))
                add(OURS_USERSPACE, Program.of_process(agent.tgid, "on_kvm_userspace_exit"))
            try:
                with running(KVMEXIT_PEER) as tgid:
                    add(KVMEXIT, Program.only_one_of(tgid))
            except OSError as err:
                found.absent[KVMEXIT] = str(err)
        yield found


def _compile() -> Any:  # noqa: ANN401 - bcc has no types
    os.environ["BCC_KERNEL_SOURCE"] = str(ROOT / "ebpf")
    return importlib.import_module("bcc").BPF(text=REFERENCE.read_bytes())
