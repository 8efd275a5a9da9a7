# SPDX-License-Identifier: Apache-2.0
"""Holds what the vCPU threads of one process were in at one moment. Pure types.

Must not know how they were read, nor compare two moments.
"""

from dataclasses import dataclass

from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuThread:
    """One thread of a process that runs or emulates a vCPU."""

    tid: int
    comm: str
    """The thread's name, which the process chooses."""
    emulates: bool
    """Whether it is named like a thread of TCG."""
    on_cpu: bool
    """Whether it was on a CPU or waited for one."""
    run_call_of: HypervisorType | None
    """The hypervisor in whose run call it slept; None: in none, or it was on a CPU."""
    cpu_s: float
    """CPU time that it has consumed, that in guest code included."""
    guest_s: float
    """CPU time that the kernel accounted to it as guest time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadsReading:
    """The vCPU threads of one process, read at one moment."""

    vmm: VmmId
    at_s: float
    """When they were read (time.monotonic())."""
    threads: tuple[VcpuThread, ...]
    """At most MAX_VCPUS_READ, in the order of their numbers."""
    complete: bool
    """Whether every thread of the process was read."""
