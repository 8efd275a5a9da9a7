# SPDX-License-Identifier: Apache-2.0
"""A node of a cluster: real guests in real pod cgroups, and real agents with their reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_world import Qemu, Started
from tests.support.pod_cgroups import CgroupTree

NODE, TARGET_NODE = "node-a", "node-b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One VM as one scrape shows it."""

    type: str
    verified: bool
    fallback: bool | None


KVM = Shown(type="kvm", verified=True, fallback=False)
TCG_FALLBACK = Shown(type="tcg", verified=True, fallback=True)
TCG = Shown(type="tcg", verified=True, fallback=False)
UNKNOWN = Shown(type="unknown", verified=False, fallback=False)


class Scrape:
    """The samples of one answer of /metrics."""

    def __init__(self, agent: Agent, node: str = NODE) -> None:
        self.samples = [
            sample
            for family in text_string_to_metric_families(agent.get("/metrics"))
            for sample in family.samples
        ]
        self._node = node

    def value(self, metric: str, **labels: str) -> float | None:
        """Return the value of the only sample with these labels; None: there is none."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == metric and sample.labels == labels
        ]
        assert len(found) <= 1, (metric, labels, found)
        return found[0] if found else None

    def by_vm(self, metric: str) -> dict[str, float]:
        """Return the values by namespace/name, and assert that each VM has one series."""
        found: dict[str, float] = {}
        for sample in self.samples:
            if sample.name == metric:
                assert sample.labels.keys() - {"hypervisor_type"} == {"node", "namespace", "name"}
                assert sample.labels["node"] == self._node
                vm = f"{sample.labels['namespace']}/{sample.labels['name']}"
                assert vm not in found, f"{vm} is there twice"
                found[vm] = sample.value
        return found

    def vms(self) -> dict[str, Shown]:
        """Return every VM by namespace/name."""
        info = self.by_vm("kubevirt_vmi_hypervisor_info")
        verified = self.by_vm("kubevirt_vmi_hypervisor_verified")
        fallback = self.by_vm("kubevirt_vmi_hypervisor_fallback")
        assert set(info.values()) <= {1.0}
        assert info.keys() == verified.keys() >= fallback.keys()
        labels = [
            sample.labels
            for sample in self.samples
            if sample.name == "kubevirt_vmi_hypervisor_info"
        ]
        types = {f"{of['namespace']}/{of['name']}": of["hypervisor_type"] for of in labels}
        return {
            vm: Shown(
                type=types[vm],
                verified=verified[vm] == 1.0,
                fallback=fallback[vm] == 1.0 if vm in fallback else None,
            )
            for vm in info
        }


class Guests:
    """QEMU guests, each started inside the cgroup of a pod. ``close`` ends them all."""

    def __init__(self, cgroups: CgroupTree) -> None:
        self._cgroups = cgroups
        self._stack = ExitStack()

    def start(
        self, pod: str, name: str | None, *arguments: str, accel: Sequence[str] = ("kvm",)
    ) -> Qemu:
        """Start a guest in the compute container of a pod."""
        with self._cgroups.entered(self._cgroups.pod(pod)):
            return self._stack.enter_context(Qemu(name, *arguments, accel=accel))

    def start_in(self, pod: str, program: Sequence[str], *, container_id: str) -> Started:
        """Start another process in another container of a pod."""
        with self._cgroups.entered(self._cgroups.pod(pod, container_id)):
            return self._stack.enter_context(Started(program))

    def close(self) -> None:
        self._stack.close()


class Monitor:
    """QEMU's monitor (QMP), spoken over the standard streams of a guest with ``-qmp stdio``."""

    def __init__(self, guest: Qemu) -> None:
        self._guest = guest
        assert "QMP" in json.loads(guest.line())
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Execute a command and return its answer."""
        self._guest.say(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        while True:
            answer = json.loads(self._guest.line())
            if "event" not in answer:
                return answer["return"]


def answer_of(agent: Agent, path: str) -> tuple[int, str]:
    """Return the status and text of an answer, whether it is a success or an error."""
    try:
        return 200, agent.get(path)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def ended_log(agent: Agent) -> str:
    """End the agent, which must take less than 2 s, and return its complete log."""
    assert agent.end(15, 2.0) == 0
    assert agent.popen.stderr is not None
    return "".join(agent.log) + agent.popen.stderr.read()


def hvprobe(
    *arguments: str, before: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of hvprobe to its end. ``before`` is the program that runs it, if any."""
    return subprocess.run(
        [*before, sys.executable, "-m", "probes", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
