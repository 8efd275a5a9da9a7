# SPDX-License-Identifier: Apache-2.0
"""How the running kernel preempts, and real users of BPF that work beside hvprobe."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_world import Started, wait_for

EXPECTED_VARIABLE = "HVPROBE_PREEMPTION_EXPECTED"
"""In the guests of ``make test-preemption``: what ``preemption()`` is to find."""
REAL_TIME, FULL = "rt", "full"
_CHOSEN = re.compile(r"\(([a-z]+)\)")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Distributions install tools of BPF for root."""
_BPFTRACE_COUNTS = "bpftrace counts"
_BPFTRACE = f"""
tracepoint:kvm:kvm_userspace_exit {{ @returns[pid] = count(); }}
kprobe:kvm_vcpu_ioctl {{ @calls[pid] = count(); }}
interval:ms:100 {{ printf("{_BPFTRACE_COUNTS}\\n"); print(@returns); print(@calls); }}
"""
"""bpftrace says that it attaches before it does, and prints what its probes say only once all are
attached."""

Seen = Callable[[int], int]
"""What a user of BPF has seen of a process so far; 0: nothing yet."""
User = Callable[[], contextlib.AbstractContextManager[Seen]]


def preemption(sys_root: Path = Path("/sys")) -> str:
    """How threads are preempted in the kernel: rt, or full, lazy, voluntary, none as it names them.

    Without debugfs the kernel's version may name it, as ``PREEMPT(full)``.
    """
    with contextlib.suppress(OSError):
        if (sys_root / "kernel/realtime").read_text().strip() == "1":
            return REAL_TIME
    with contextlib.suppress(OSError):
        chosen = _CHOSEN.search((sys_root / "kernel/debug/sched/preempt").read_text())
        if chosen:
            return chosen[1]
    named = re.search(r"PREEMPT\((\w+)\)", os.uname().version)
    return named[1] if named else "unknown"


def missing_tool(name: str | None) -> str | None:
    """The reason why a tool cannot be run; None: it can."""
    if name is None or shutil.which(name, path=_PATH):
        return None
    return f"this needs {name}"


@contextlib.contextmanager
def bpftrace() -> Iterator[Seen]:
    """bpftrace counts returns and calls by process in maps that it reads ten times a second."""
    with _tool(_BPFTRACE_COUNTS, "bpftrace", "-e", _BPFTRACE) as text:

        def seen(tgid: int) -> int:
            counts = re.findall(rf"@returns\[{tgid}\]: (\d+)", text())
            return int(counts[-1]) if counts else 0

        yield seen


@contextlib.contextmanager
def funccount() -> Iterator[Seen]:
    """BCC's funccount counts calls of a function in a map that it reads and clears each second."""
    with _tool("Tracing", "funccount-bpfcc", "-i", "1", "kvm_vcpu_ioctl") as text:
        yield lambda _: sum(map(int, re.findall(r"kvm_vcpu_ioctl\s+(\d+)$", text(), re.MULTILINE)))


@contextlib.contextmanager
def argdist() -> Iterator[Seen]:
    """BCC's argdist counts returns by their reason in a hash that it reads and clears each second.

    (funccount of BCC 0.26 ends with an error when it is to print the hits of a tracepoint.)
    """
    event = "t:kvm:kvm_userspace_exit():u32:args->reason"
    with _tool("COUNT", "argdist-bpfcc", "-i", "1", "-C", event) as text:
        yield lambda _: sum(map(int, re.findall(r"^\s+(\d+)\s+args->reason", text(), re.MULTILINE)))


@contextlib.contextmanager
def second_agent() -> Iterator[Seen]:
    """Another hvprobe, an agent that is asked for a snapshot."""
    with Agent("--standalone") as agent:

        def seen(tgid: int) -> int:
            processes = json.loads(agent.get("/snapshot"))["processes"]
            found = [each for each in processes if each["tgid"] == tgid]
            return (found[0]["vcpu_userspace_exits_total"] or 0) if found else 0

        yield seen


USERS: dict[str, tuple[str | None, User]] = {
    "bpftrace": ("bpftrace", bpftrace),
    "funccount": ("funccount-bpfcc", funccount),
    "argdist": ("argdist-bpfcc", argdist),
    "a second hvprobe": (None, second_agent),
}
"""Real users of BPF: the program that each needs besides hvprobe, and what starts it."""

NEED_KPROBES = frozenset({"bpftrace", "funccount"})


@contextlib.contextmanager
def _tool(ready: str, name: str, *arguments: str) -> Iterator[Callable[[], str]]:
    """Run a tool until the block ends. What it has written so far is the answer of the function.

    ready is what it writes once its programs are attached.
    """
    program = shutil.which(name, path=_PATH)
    assert program is not None, f"{name} is not installed"
    # BCC compiles against hvprobe's stubs of kernel headers, because guests have no real ones.
    environment = {
        **os.environ,
        "BCC_KERNEL_SOURCE": str(ROOT / "ebpf"),
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.NamedTemporaryFile("r", prefix="bpf-user-") as output:
        into = ["sh", "-c", 'exec "$@" >"$0" 2>&1', output.name]
        with Started([*into, program, *arguments], environment=environment) as started:

            def text() -> str:
                output.seek(0)
                return output.read()

            def attached() -> bool:
                code = started.popen.poll()
                assert code is None, f"{name} ended with {code}: {text()[-600:]}"
                return ready in text()

            wait_for(attached, f"{name} has attached its programs")
            yield text
