# SPDX-License-Identifier: Apache-2.0
"""EDGE: examines the node for ``hvprobe doctor`` and for the agent's path ``/doctor``.

Owns what is read beside the report, and for how long. Must not judge it, nor print anything.
"""

from collections.abc import Sequence

from probes.command.deadline import RefreshTimeoutError, within
from probes.command.settings import NodeSettings
from probes.host.features import find_features
from probes.host.kvm_support_reader import KvmSupportReader
from probes.host.node import KernelFeatures
from probes.judge.accelerator_absence import AbsenceFound, absence_of
from probes.render import doctor
from probes.report.model import NodeReport

ABSENCE_DEADLINE_S = 5.0
"""How long ``doctor`` reads why the node has no KVM."""


def examine(
    settings: NodeSettings, report: NodeReport
) -> tuple[Sequence[doctor.Check], doctor.Ability]:
    """Return all checks of the node, and how certain its verdicts can be."""
    kernel = features(settings)
    absence = None if kernel.kvm_device else accelerator_absence(settings)
    return doctor.checks(report, kernel, absence), doctor.ability(report)


def features(settings: NodeSettings) -> KernelFeatures:
    """Return what the kernel and this process's privileges permit."""
    return find_features(proc_root=settings.proc_root, sys_root=settings.sys_root)


def accelerator_absence(settings: NodeSettings) -> AbsenceFound:
    """Return why the node has no KVM, which only a node without it is to be asked."""
    reader = KvmSupportReader(proc_root=settings.proc_root, sys_root=settings.sys_root)
    try:
        return absence_of(within(reader.read, deadline_s=ABSENCE_DEADLINE_S))
    except RefreshTimeoutError:
        return absence_of(reader.unread(f"a file blocked for {ABSENCE_DEADLINE_S:g} s"))
