# SPDX-License-Identifier: Apache-2.0
"""Many VMs at once, and many events in sequence: every refresh shows every VM as it is."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.support.apiserver import ApiServer
from tests.support.churn import Churn
from tests.support.cluster_node import NODE, UNKNOWN, Scrape, Shown, answer_of
from tests.support.kernel_agent import Agent
from tests.support.kernel_world import Started, wait_for
from tests.support.pod_cgroups import CgroupTree, put
from tests.support.vmi_objects import pod_uid, vmi

VMS = 1000
EXITS = 7
"""The number of returns to user space that each VM makes."""


def test_a_thousand_vms(
    guests_required: None, api: ApiServer, cgroups: CgroupTree, kvmload: Path
) -> None:
    """With 1000 KVM processes in the pods of 1000 VMIs, one scrape has each VM and every exit.

    When all processes have ended, every VM is shown as unknown. When the VMIs are deleted, no VM is
    shown.
    """
    pods = [cgroups.pod(pod_uid("default", f"vm-{number}")) for number in range(VMS)]
    for number in range(VMS):
        api.store.create(vmi(f"vm-{number}", architecture=None))
    load: list[str | Path] = [kvmload, "--processes", str(VMS), "--userspace-exits", str(EXITS)]
    with Agent("--kubeconfig", str(api.kubeconfig()), "--node", NODE) as agent:
        wait_for(lambda: answer_of(agent, "/readyz")[0] == 200, "ready")
        ready_s = time.monotonic()
        with Started(load) as started:
            for pod in pods:
                put(json.loads(started.line())["tgid"], pod)
            wait_for(lambda: time.monotonic() - ready_s > 1, "a scrape makes its own refresh")
            scrape = Scrape(agent)
            expected = Shown(type="kvm", verified=True, fallback=False)
            assert scrape.vms() == {f"default/vm-{number}": expected for number in range(VMS)}
            assert scrape.by_vm("kubevirt_vmi_vcpu_userspace_exits_total") == {
                f"default/vm-{number}": EXITS for number in range(VMS)
            }
            assert scrape.value("hvprobe_processes", state="attributed") == VMS
            assert scrape.value("hvprobe_ledger_dropped_total") == 0
            started.popen.terminate()
            assert started.popen.wait(20) == 0
        gone = {f"default/vm-{number}": UNKNOWN for number in range(VMS)}
        wait_for(lambda: Scrape(agent).vms() == gone, "no process is left")
        for number in range(VMS):
            api.store.delete("default", f"vm-{number}")
        wait_for(lambda: Scrape(agent).vms() == {}, "no VMI is left")


def test_ten_thousand_events() -> None:
    """A refresh after each of 10000 events shows exactly the right VMs with the right processes.

    VMIs are created, run, migrate both ways, fail to migrate and are deleted. Processes start, are
    replaced, end late, and take over the PIDs of others. The API server reports late, is lost and
    comes back.
    """
    churn = Churn(seed=1)
    shown = 0
    while churn.events < 10000:
        churn.step()
        report = churn.refresh()
        found = {
            (vmi.vm.namespace, vmi.vm.name): (vmi.verdict.type, vmi.vmm) for vmi in report.vmis
        }
        assert found == churn.expected(), f"after event {churn.events}"
        shown += sum(vmm is not None for _, vmm in found.values())
    assert shown > 10000
