# SPDX-License-Identifier: Apache-2.0
"""The programs whose cost is compared, each loaded by the program that normally loads it.

Owns how they are obtained: from a real agent, from the distribution's tool, and from
reference.bpf.c. Must not know how they are measured. The agent and the tool end before the
measurement, because otherwise their own attachments would run beside it.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.agent import ROOT, BenchAgent
from bench.bpf import RAW_TRACEPOINT, Program
from bench.peers import KVMEXIT_PEER, running

REFERENCE = Path(__file__).with_name("reference.bpf.c")
EMPTY, SLOT, PER_CPU_HASH, COMMON = "empty", "percpu_array", "percpu_hash", "hash_atomic"
CURRENT_PROCESS = "current_process"
OURS, OURS_USERSPACE, KVMEXIT = "hvprobe", "hvprobe, kvm_userspace_exit", "kvmexit-bpfcc"


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPrograms:
    """The programs by name, and the reasons why some are absent."""

    programs: dict[str, Program]
    absent: dict[str, str]
    """The reason why a program is absent, by name."""

    def raw(self) -> dict[str, Program]:
        """The raw tracepoint programs, because only programs of one kind are comparable."""
        return {
            name: program
            for name, program in self.programs.items()
            if program.type == RAW_TRACEPOINT
        }


@contextmanager
def hook_programs() -> Iterator[HookPrograms]:
    """Load all programs; they are closed when the block ends."""
    with ExitStack() as stack:
        programs: dict[str, Program] = {}
        absent: dict[str, str] = {}
        bpf = _compile()
        stack.callback(bpf.cleanup)
        for name in (EMPTY, SLOT, CURRENT_PROCESS, PER_CPU_HASH, COMMON):
            loaded = bpf.load_func(name.encode(), RAW_TRACEPOINT)
            programs[name] = Program(os.dup(loaded.fd))
        with BenchAgent("--standalone") as agent:
            agent.wait_ready()
            programs[OURS] = Program.of_process(agent.tgid, "on_kvm_exit")
            programs[OURS_USERSPACE] = Program.of_process(agent.tgid, "on_kvm_userspace_exit")
        try:
            with running(KVMEXIT_PEER) as tgid:
                programs[KVMEXIT] = Program.only_one_of(tgid)
        except OSError as err:
            absent[KVMEXIT] = str(err)
        for program in programs.values():
            stack.callback(program.close)
        yield HookPrograms(programs=programs, absent=absent)


def _compile() -> Any:  # noqa: ANN401 - bcc has no types
    os.environ["BCC_KERNEL_SOURCE"] = str(ROOT / "ebpf")
    return importlib.import_module("bcc").BPF(text=REFERENCE.read_bytes())
