# SPDX-License-Identifier: Apache-2.0
"""Loads the programs of this node: those of the ledger, and the one that reads KVM's statistics.

Owns what a command does without when something cannot be loaded, and what the log says of it. Must
not know what is done with a session.
"""

import logging
from dataclasses import dataclass

from ebpf.errors import BpfUnavailableError
from ebpf.loader_process import LoaderProcess
from ebpf.privileges import in_initial_pid_namespace
from ebpf.session import Session
from ebpf.statistics.session import StatisticsSession
from probes.command.settings import NodeSettings
from probes.host.vcpu_counts import STATISTICS

log = logging.getLogger(__name__)

WITHOUT_BPF = (
    "no BPF: VMs on KVM are verified only by what /proc shows, emulated ones are inferred, "
    "and only KVM's statistics count exits"
)
"""What is left without any hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """The programs of this node that could be loaded."""

    ledger: Session | None
    error: BpfUnavailableError | None
    """Why there is no ledger; None: there is one."""
    statistics: StatisticsSession | None
    """None: KVM's statistics are read through copies of descriptors."""

    def close(self) -> None:
        """Detach and release everything."""
        for session in (self.ledger, self.statistics):
            if session is not None:
                session.close()


def open_sessions(settings: NodeSettings) -> Sessions:
    """Load the programs. What cannot be loaded is left out, and the log says why.

    The second text saves time at each refresh, but takes longer than one refresh does, so a command
    that refreshes once does without it.
    """
    with LoaderProcess() as loader:
        ledger, error = _open_ledger(settings, loader)
        statistics = None if settings.refreshes_once else _open_statistics(settings, loader)
    return Sessions(ledger=ledger, error=error, statistics=statistics)


def _open_statistics(settings: NodeSettings, loader: LoaderProcess) -> StatisticsSession | None:
    """Load the program that reads KVM's statistics in memory; None: that is impossible."""
    try:
        _require_initial_pid_namespace()
        session = StatisticsSession(
            counts=1 + len(STATISTICS) * settings.reads_vcpu_statistics,
            sys_root=settings.sys_root,
            loader=loader,
        )
    except BpfUnavailableError as err:
        log.info("KVM's statistics are read through copies of descriptors: %s", err)
        return None
    log.info(
        "KVM's statistics are read in the kernel's memory: room for %d vCPUs, %.1f MiB",
        session.capacity,
        session.memory_bytes / (1 << 20),
    )
    return session


def _require_initial_pid_namespace() -> None:
    """Raise BpfUnavailableError in another one."""
    if not in_initial_pid_namespace():
        raise BpfUnavailableError(
            "hvprobe runs in a PID namespace of its own, in which the kernel's process IDs are "
            "meaningless: give the pod hostPID: true"
        )


def _open_ledger(
    settings: NodeSettings, loader: LoaderProcess
) -> tuple[Session | None, BpfUnavailableError | None]:
    try:
        _require_initial_pid_namespace()
        session = Session(
            capacity=settings.ledger_capacity, sys_root=settings.sys_root, loader=loader
        )
    except BpfUnavailableError as err:
        log.warning("%s: %s", WITHOUT_BPF, err)
        return None, err
    _log_size(session)
    for status in session.hooks:
        if not status.attached and not status.unneeded:
            log.info("hook %s is not attached: %s", status.hook.name, status.reason)
    return session, None


def _log_size(session: Session) -> None:
    """Log how much memory the ledger takes, which grows with the node's CPUs."""
    log.info(
        "ledger: room for %d processes on up to %d CPUs, %.1f MiB of kernel memory",
        session.capacity,
        session.cpus,
        session.memory_bytes / (1 << 20),
    )
