# SPDX-License-Identifier: Apache-2.0
"""A node under attack, with a scraped agent, a collector that shows reasons, and a bystander VM.

The bystander starts after the agent and after the attack. Whatever the attack does, the bystander
must keep its verdict and its counter, and the agent must answer within Prometheus's timeout.
"""

import itertools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from probes.report.model import ProcessReport, VmiReport
from tests.support.kernel_agent import Agent, Labels, samples_of
from tests.support.kernel_node import Node
from tests.support.kernel_world import EMULATED, KvmLoad, of_this_run, wait_for

NODE = "attacked"
PROMETHEUS_TIMEOUT_S = 10.0
"""The default of scrape_timeout. With emulated CPUs the agent is slower, so it is not checked."""
EXITS, MORE_EXITS = 1009, 7
TYPE, VERIFIED = "kubevirt_vmi_hypervisor_info", "kubevirt_vmi_hypervisor_verified"
RETURNS, VM_EXITS = "kubevirt_vmi_vcpu_userspace_exits_total", "kubevirt_vmi_vcpu_exits_total"

_NUMBERS = itertools.count()


def new_name(label: str) -> str:
    """A name that no VM had before, so that what was reported of another VM is not mistaken."""
    return of_this_run(f"{label}{next(_NUMBERS)}")


class Scraped:
    """One answer of /metrics, which must arrive in time."""

    def __init__(self, agent: Agent) -> None:
        begun_s = time.monotonic()
        self.text = agent.get("/metrics")
        took_s = time.monotonic() - begun_s
        assert EMULATED or took_s < PROMETHEUS_TIMEOUT_S

    def of(self, name: str, metric: str) -> dict[Labels, float]:
        """The samples of a test's VM, by its name."""
        found = samples_of(self.text, metric).items()
        return {labels: value for labels, value in found if ("name", name) in labels}

    def value(self, name: str, metric: str) -> float | None:
        """The value of the VM's only sample; None: it has none."""
        found = list(self.of(name, metric).values())
        assert len(found) <= 1, found
        return found[0] if found else None

    def verified(self, name: str) -> bool | None:
        found = self.value(name, VERIFIED)
        return None if found is None else found == 1.0

    def type(self, name: str) -> str | None:
        found = [dict(labels)["hypervisor_type"] for labels in self.of(name, TYPE)]
        assert len(found) <= 1, found
        return found[0] if found else None


class Bystander(KvmLoad):
    """A VM that runs on KVM and makes a known number of exits."""

    def __init__(self, program: Path, name: str | None = None) -> None:
        self.name = name or new_name("bystander")
        named = ("-name", f"guest=default_{self.name}")
        super().__init__(program, *named, "--step", "--userspace-exits", str(EXITS))
        self.finish_counted_part()

    @property
    def returns(self) -> int:
        return int(self.totals["userspace_exits"] + self.totals["eintr"])

    def assert_unharmed(self, agent: Agent) -> None:
        """Check that the verdict is right, and that the counter is exact and keeps counting."""
        for more in (0, MORE_EXITS):
            if more:
                self.step(more)
            wait_for(
                lambda: self._shown(agent) == ("kvm", 1.0, self.returns), "every exit is reported"
            )

    def _shown(self, agent: Agent) -> tuple[str | None, float | None, float | None]:
        scraped = Scraped(agent)
        verified = scraped.value(self.name, VERIFIED)
        returns = scraped.value(self.name, RETURNS)
        assert scraped.type(self.name) in {None, "kvm", "unknown"}
        assert returns is None or 0 < returns <= self.returns
        return scraped.type(self.name), verified, returns


class Watched:
    """An agent in a separate process and a collector in this one, both of this node."""

    def __init__(self, *arguments: str, before: Sequence[str] = ()) -> None:
        self.agent = Agent("--standalone", "--node", NODE, *arguments, before=before)
        self.node = Node()
        self.node.report()

    def vmi(self, name: str) -> tuple[VmiReport | None, ProcessReport | None]:
        """Refresh, and return a test's VM and its process; None: not in the report."""
        report = self.node.report()
        vmi = next((found for found in report.vmis if found.vm.name == name), None)
        vmm = vmi.vmm if vmi is not None else None
        return vmi, next((process for process in report.processes if process.vmm == vmm), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.close()
        self.agent.kill()


class Attacker(KvmLoad):
    """A kvmload with a VM name of its own, which misbehaves as a tenant can."""

    def __init__(self, program: Path, label: str, *arguments: str, says_more: bool = False) -> None:
        self.name = new_name(label)
        named = ("-name", f"guest=default_{self.name}")
        super().__init__(program, *named, "--tenant", *arguments)
        self.finish_counted_part()
        self.said = self.line().split() if says_more else []


def called_qemu(kvmload: Path, folder: Path) -> Path:
    """A copy of the program under a name that hvprobe takes for a VMM's."""
    program = folder / "qemu-kvm"
    shutil.copy(kvmload, program)
    return program
