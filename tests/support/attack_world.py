# SPDX-License-Identifier: Apache-2.0
"""A node under attack: the agent as it is scraped, the collector with its reasons, a bystander VM.

The bystander is started after the agent and after the attack. It must keep its verdict and its
counter, whatever happens beside it, and the agent must answer as Prometheus wants it to.
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
"""The default of scrape_timeout; where processors are emulated nothing is that fast."""
EXITS, MORE_EXITS = 1009, 7
TYPE, VERIFIED = "kubevirt_vmi_hypervisor_info", "kubevirt_vmi_hypervisor_verified"
RETURNS, VM_EXITS = "kubevirt_vmi_vcpu_userspace_exits_total", "kubevirt_vmi_vcpu_exits_total"

_NUMBERS = itertools.count()


def new_name(label: str) -> str:
    """Of a VM: what an earlier one was told to be is never taken for what this one is."""
    return of_this_run(f"{label}{next(_NUMBERS)}")


class Scraped:
    """One answer of /metrics, given in time."""

    def __init__(self, agent: Agent) -> None:
        begun_s = time.monotonic()
        self.text = agent.get("/metrics")
        took_s = time.monotonic() - begun_s
        assert EMULATED or took_s < PROMETHEUS_TIMEOUT_S

    def of(self, name: str, metric: str) -> dict[Labels, float]:
        """The samples of a VM of ours, by its name."""
        found = samples_of(self.text, metric).items()
        return {labels: value for labels, value in found if ("name", name) in labels}

    def value(self, name: str, metric: str) -> float | None:
        """The only sample; None: there is none."""
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
    """A VM that runs on KVM and has made a known number of exits."""

    def __init__(self, program: Path, name: str | None = None) -> None:
        self.name = name or new_name("bystander")
        named = ("-name", f"guest=default_{self.name}")
        super().__init__(program, *named, "--step", "--userspace-exits", str(EXITS))
        self.finish_counted_part()

    @property
    def returns(self) -> int:
        return int(self.totals["userspace_exits"] + self.totals["eintr"])

    def assert_unharmed(self, agent: Agent) -> None:
        """Its verdict is right, and its counter is exact and goes on."""
        for more in (0, MORE_EXITS):
            if more:
                self.step(more)
            wait_for(
                lambda: self._shown(agent) == ("kvm", 1.0, self.returns), "all of it is reported"
            )

    def _shown(self, agent: Agent) -> tuple[str | None, float | None, float | None]:
        scraped = Scraped(agent)
        verified, returns = (scraped.value(self.name, it) for it in (VERIFIED, RETURNS))
        assert scraped.type(self.name) in {None, "kvm", "unknown"}
        assert returns is None or 0 < returns <= self.returns
        return scraped.type(self.name), verified, returns


class Watched:
    """An agent of its own process and a collector in this one, both of this node."""

    def __init__(self, *arguments: str, before: Sequence[str] = ()) -> None:
        self.agent = Agent("--standalone", "--node", NODE, *arguments, before=before)
        self.node = Node()
        self.node.report()

    def vmi(self, name: str) -> tuple[VmiReport | None, ProcessReport | None]:
        """Look now: a VM of ours and the process that it is."""
        report = self.node.report()
        vmi = next((it for it in report.vmis if it.vm.name == name), None)
        vmm = vmi.vmm if vmi is not None else None
        return vmi, next((it for it in report.processes if it.vmm == vmm), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.close()
        self.agent.kill()


class Attacker(KvmLoad):
    """kvmload as a VM of its own name, misbehaving as a tenant does."""

    def __init__(self, program: Path, label: str, *arguments: str, says_more: bool = False) -> None:
        self.name = new_name(label)
        named = ("-name", f"guest=default_{self.name}")
        super().__init__(program, *named, "--tenant", *arguments)
        self.finish_counted_part()
        self.said = self.line().split() if says_more else []


def called_qemu(kvmload: Path, folder: Path) -> Path:
    """The program under a name that hvprobe takes for a VMM's."""
    program = folder / "qemu-kvm"
    shutil.copy(kvmload, program)
    return program
