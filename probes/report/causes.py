# SPDX-License-Identifier: Apache-2.0
"""Finds the cause of each process that emulates, from what a refresh found out. Pure.

Owns which VMI and which accelerator a process is compared with. Must not read anything, and must
not know the rules (judge/cause.py).
"""

from collections.abc import Iterable, Mapping

from probes.host.emulation import EmulationFacts
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator
from probes.host.process import VmmId
from probes.judge.cause import CauseFound, cause_facts, cause_of
from probes.judge.emulation_tracker import KnownEmulation
from probes.judge.tracked import TrackedProcess
from probes.vmi.attribution import Attribution

_UNREAD = EmulationFacts.unread("the process has ended, or hvprobe may not read it")


def causes_of(
    processes: Iterable[TrackedProcess],
    known: KnownEmulation,
    vms: Iterable[Attribution],
    *,
    accelerators: Iterable[Accelerator],
    machine: str,
) -> Mapping[VmmId, CauseFound]:
    """Return why each of these processes emulates; one that does not emulate is left out.

    machine is the node's architecture in ``uname -m`` words.
    """
    emulating = [each for each in processes if each.verdict.type is HypervisorType.TCG]
    if not emulating:
        return {}
    architectures = {vm.vmm: vm.architecture for vm in vms}
    available = is_any_available(accelerators)
    return {
        process.vmm: cause_of(
            cause_facts(
                known.facts.get(process.vmm, _UNREAD),
                machine=machine,
                vmi_architecture=architectures.get(process.vmm),
                accelerator_available=available,
                registered=known.registered,
                start_s=process.vmm.start_ticks / known.ticks_per_s,
            )
        )
        for process in emulating
    }


def is_any_available(accelerators: Iterable[Accelerator]) -> bool | None:
    """Whether the node has an accelerator that works; None: none could be tried."""
    known = [tried.available for tried in accelerators if tried.available is not None]
    return any(known) if known else None
