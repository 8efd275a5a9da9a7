# SPDX-License-Identifier: Apache-2.0
"""Converts a report to the JSON that the agent serves at ``/snapshot``. Pure.

It is the JSON of ``hvprobe snapshot``, plus what only an agent can say, because it has observed the
node for longer: rates.
"""

from ebpf.counters import EXITS
from probes.render.rates import rates_by_vm
from probes.report.model import NodeReport, to_json, vmi_json


def served_snapshot(report: NodeReport, previous: NodeReport | None) -> dict[str, object]:
    """Convert a report to plain JSON values. previous is an older one, for rates; None: no rates.

    Keys are a public interface.
    """
    rates = rates_by_vm(report, previous)
    return to_json(report) | {
        "vmis": [
            vmi_json(vmi) | {"vcpu_exits_per_second": rates.get(vmi.vm, {}).get(EXITS.name)}
            for vmi in report.vmis
        ]
    }
