# SPDX-License-Identifier: Apache-2.0
"""A node whose VMs come, move and go at random, and what may be shown of it. For test_scale.

Events of the API server reach the cache late and in order. Some never reach it until the VMIs are
listed again. Processes start and end at any time. What a refresh must show follows only from the
last events that the cache received and from the processes that are alive at that moment.
"""

from __future__ import annotations

import copy
import random
import uuid
from collections import deque
from dataclasses import replace

from ebpf.ledger import LedgerEntry
from probes.host.hypervisors import HypervisorType
from probes.host.process import QemuCommandLine, VmmId, VmmProcess
from probes.report.collector import NodeCollector
from probes.report.model import NodeReport
from probes.report.ports import HostEdges
from probes.vmi.kube.cache import VmiCache
from probes.vmi.kube.vmi_object import parse_vmi
from tests.support.doubles import Books, Node, Pods, Trials
from tests.support.facts import entry, kernel, kvm_process, process, tcg_process
from tests.support.vmi_objects import (
    Vmi,
    deleting,
    encoded,
    migrated,
    migrating,
    migration_failed,
    vmi,
)

HERE, THERE = "node-a", "node-b"
Key = tuple[str, str]
_NAMES: list[Key] = [(space, f"vm-{number}") for space in ("lab", "ops") for number in range(10)]
_TGIDS = range(100, 160)
"""Few names, so that they are often used again."""


class Churn:
    """The VMIs of the cluster, the events that the cache received, and the node's processes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._truth: dict[Key, Vmi] = {}
        self._told: dict[Key, Vmi] = {}
        self._inbox: deque[tuple[Key, Vmi | None]] = deque()
        self._guests: dict[str, tuple[VmmProcess, HypervisorType]] = {}
        self._others: list[VmmProcess] = []
        self._entries: dict[int, LedgerEntry] = {}
        self._ticks = 10_000
        self._lost = False
        self.events = 0
        self._node = Node()
        self._books = Books()
        self._cache = VmiCache(lambda _: None, lambda: float(self._ticks))
        self._relist()
        self._collector = NodeCollector(
            node=HERE,
            version="test",
            ledger=self._books,
            ledger_error=None,
            host=HostEdges(
                processes=self._node, virtualization=Trials(), emulation=Pods(), device=Pods()
            ),
            vmis=self._cache,
        )

    def step(self) -> None:
        """Make one random event happen."""
        self.events += 1
        key = self._random.choice(_NAMES)
        obj = self._truth.get(key)
        if obj is None:
            self._create(key)
        else:
            self._random.choice(self._EVENTS)(self, key, obj)
        if self._random.random() < 0.02:
            self._lose_or_find_the_api_server()
        if not self._lost:
            for _ in range(self._random.choice((0, 1, 1, 2, 5))):
                self._deliver()

    def refresh(self) -> NodeReport:
        """Return the report of a new refresh."""
        self._books.says = kernel(*self._entries.values())
        return self._collector.refresh()

    def expected(self) -> dict[Key, tuple[HypervisorType, VmmId | None]]:
        """Return what a refresh must show: the cache's VMs that run here, with their processes."""
        found: dict[Key, tuple[HypervisorType, VmmId | None]] = {}
        for key, obj in self._told.items():
            status = obj["status"]
            if status["phase"] == "Running" and status["nodeName"] == HERE:
                pod = next((uid for uid, at in status["activePods"].items() if at == HERE), "")
                guest = self._guests.get(pod)
                found[key] = (guest[1], guest[0].vmm) if guest else (HypervisorType.UNKNOWN, None)
        return found

    def _create(self, key: Key) -> None:
        node = self._random.choice((HERE, HERE, HERE, THERE))
        obj = vmi(key[1], namespace=key[0], node=node, phase="Scheduled")
        obj["status"]["activePods"] = {str(uuid.UUID(int=self._random.getrandbits(128))): node}
        self._write(key, obj)

    def _run(self, key: Key, obj: Vmi) -> None:
        running = copy.deepcopy(obj)
        running["status"]["phase"] = "Running"
        self._write(key, running)

    def _finish(self, key: Key, obj: Vmi) -> None:
        finished = copy.deepcopy(obj)
        finished["status"]["phase"] = self._random.choice(("Succeeded", "Failed"))
        self._write(key, finished)

    def _migrate(self, key: Key, obj: Vmi) -> None:
        status = obj["status"]
        if len(status["activePods"]) > 1:
            done = self._random.choice((migrated, migration_failed))(obj)
            if self._random.random() < 0.5:
                # The label by which VMIs are watched may change later than status.nodeName.
                late = copy.deepcopy(done)
                late["metadata"]["labels"] = obj["metadata"]["labels"]
                self._write(key, late)
            self._write(key, done)
        elif status["phase"] == "Running":
            target = THERE if status["nodeName"] == HERE else HERE
            moving = migrating(obj, target)
            new = str(uuid.UUID(int=self._random.getrandbits(128)))
            moving["status"]["activePods"] = {**status["activePods"], new: target}
            self._write(key, moving)

    def _ask_deletion(self, key: Key, obj: Vmi) -> None:
        self._write(key, deleting(obj))

    def _delete(self, key: Key, _: Vmi) -> None:
        """Delete the object; its process lives on until ``_reap``."""
        self._write(key, None)

    def _start_guest(self, key: Key, obj: Vmi) -> None:
        """Start a guest in a pod of this VM on this node, in place of a guest that is there."""
        for uid, node in obj["status"]["activePods"].items():
            if node == HERE:
                self._end_guest_of(uid)
                self._guests[uid] = self._guest(f"{key[0]}_{key[1]}", uid)

    def _end_guest(self, _: Key, obj: Vmi) -> None:
        for uid in obj["status"]["activePods"]:
            self._end_guest_of(uid)

    def _start_other(self, key: Key, obj: Vmi) -> None:
        """Start a process that is no guest: libvirt's probe, or a QEMU outside of any VM's pod."""
        vmm = self._new_vmm()
        line = QemuCommandLine(guest_name=f"{key[0]}_{key[1]}")
        uid = next(iter(obj["status"]["activePods"]))
        other = replace(
            self._random.choice(
                (
                    process(vmm, command_line=replace(line, machine="none")),
                    tcg_process(vmm, guest_name=line.guest_name or ""),
                )
            )
        )
        if other.command_line.machine != "none":
            uid = str(uuid.UUID(int=self._random.getrandbits(128)))
        self._appear(replace(other, cgroup=_cgroup(uid)), runs=0)
        self._others.append(self._node.processes[vmm.tgid])

    def _reap(self, _: Key, __: Vmi) -> None:
        """End the processes that no longer belong to a VMI."""
        known = {uid for obj in self._truth.values() for uid in obj["status"]["activePods"]}
        for uid in set(self._guests) - known:
            self._end_guest_of(uid)
        for other in self._others:
            self._vanish(other)
        self._others.clear()

    _EVENTS = (
        _run, _run, _run, _finish, _migrate, _migrate, _ask_deletion, _delete,
        _start_guest, _start_guest, _start_guest, _end_guest, _start_other, _reap,
    )  # fmt: skip

    def _guest(self, name: str, uid: str) -> tuple[VmmProcess, HypervisorType]:
        vmm = self._new_vmm()
        kind = self._random.choice((HypervisorType.KVM, HypervisorType.TCG))
        paused = self._random.random() < 0.2
        made = (
            kvm_process(vmm, guest_name=name)
            if kind is HypervisorType.KVM
            else tcg_process(vmm, guest_name=name, ticks=0 if paused else 40)
        )
        made = replace(made, cgroup=_cgroup(uid))
        self._appear(made, runs=int(kind is HypervisorType.KVM and not paused))
        return made, kind

    def _new_vmm(self) -> VmmId:
        self._ticks += 1
        free = [tgid for tgid in _TGIDS if tgid not in self._node.processes]
        if not free:
            self._reap(*next(iter(self._truth.items())))
            free = [tgid for tgid in _TGIDS if tgid not in self._node.processes]
        return VmmId(tgid=self._random.choice(free), start_ticks=self._ticks)

    def _appear(self, made: VmmProcess, *, runs: int) -> None:
        tgid, began_ns = made.vmm.tgid, made.vmm.start_ticks * 10_000_000 + 500
        self._node.processes[tgid] = made
        self._entries[tgid] = entry(tgid, first_ns=began_ns, runs=runs)

    def _vanish(self, made: VmmProcess) -> None:
        del self._node.processes[made.vmm.tgid]
        del self._entries[made.vmm.tgid]

    def _end_guest_of(self, uid: str) -> None:
        guest = self._guests.pop(uid, None)
        if guest is not None:
            self._vanish(guest[0])

    def _write(self, key: Key, obj: Vmi | None) -> None:
        if obj is None:
            del self._truth[key]
        else:
            self._truth[key] = obj
        self._inbox.append((key, obj))

    def _deliver(self) -> None:
        """Deliver the next change, as a watch with the node's label selector does."""
        if not self._inbox:
            return
        key, obj = self._inbox.popleft()
        if obj is not None and _selected(obj):
            self._told[key] = obj
            self._cache.put(encoded(obj))
        elif key in self._told:
            self._cache.drop(encoded(self._told.pop(key)))

    def _lose_or_find_the_api_server(self) -> None:
        self._lost = not self._lost
        if self._lost:
            self._cache.lost("connection refused")
        else:
            self._relist()

    def _relist(self) -> None:
        self._inbox.clear()
        self._told = {key: obj for key, obj in self._truth.items() if _selected(obj)}
        self._cache.replace_all([parse_vmi(encoded(obj)) for obj in self._told.values()])
        self._cache.opened()


def _selected(obj: Vmi) -> bool:
    return bool(obj["metadata"]["labels"].get("kubevirt.io/nodeName") == HERE)


def _cgroup(uid: str) -> str:
    return f"0::/kubepods/burstable/pod{uid}/{'c' * 64}\n"
