# SPDX-License-Identifier: Apache-2.0
"""A live migration between two nodes, in the steps in which KubeVirt makes one.

QEMU itself moves the guest, from its pod on one node to its pod on the other. Owns both pods and
what virt-handler writes to the VMI at each step.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import Cluster
from tests.support.kube_objects import VMS, Json, launcher_pod, running_vmi
from tests.support.kube_world import create, until_ready
from tests.support.vmi_objects import migrated
from tests.support.vmi_objects import migrating as migrating_vmi

MOVING = "delta"
_MONITOR, _DATA = 4445, 4444
_SAY = r"""
exec 3<>/dev/tcp/127.0.0.1/{port}
echo '{line}' >&3
while IFS= read -r -t 2 answer <&3; do echo "$answer"; done
true
"""


class Migration:
    """A VM on its source node, to be moved to its target."""

    def __init__(self, cluster: Cluster, *, source: str, target: str) -> None:
        self.vm = MOVING
        self._cluster = cluster
        self._source, self._target = source, target
        self.pods = (f"virt-launcher-{MOVING}", f"virt-launcher-{MOVING}-target")
        self._moving: Json = {}

    def begin(self) -> None:
        """Run the VM on the source."""
        pod = self._pod(self.pods[0], self._source)
        create(self._cluster, running_vmi(self.vm, pod["metadata"]["uid"], node=self._source))

    def prepare(self) -> None:
        """Start the target's QEMU, which waits for the guest; the VMI names both pods."""
        waiting = ("-S", "-incoming", f"tcp:0.0.0.0:{_DATA}")
        pod = self._pod(self.pods[1], self._target, *waiting)
        moving = migrating_vmi(self._vmi(), self._target)
        uids = [*self._vmi()["status"]["activePods"], pod["metadata"]["uid"]]
        nodes = (self._source, self._target)
        moving["status"]["activePods"] = dict(zip(uids, nodes, strict=True))
        self._moving = moving
        self._replace(moving)

    def move(self) -> None:
        """Let QEMU move the guest. The VMI does not know yet."""
        address = self._cluster.get("-n", VMS, "pod", self.pods[1])["status"]["podIP"]
        self._say(self.pods[0], f"migrate -d tcp:{address}:{_DATA}")
        wait_for(
            lambda: "Migration status: completed" in self._say(self.pods[0], "info migrate"),
            "QEMU has moved the guest",
            60,
        )
        self._say(self.pods[1], "cont")

    def hand_over(self) -> None:
        """Let the VMI name the target, while the source's pod still ends."""
        self._replace(migrated(self._moving))

    def finish(self) -> None:
        """Remove the source's pod."""
        self._cluster.kubectl("-n", VMS, "delete", "pod", self.pods[0])

    def end(self) -> None:
        words = ("delete", "--ignore-not-found", "--grace-period=0", "--force")
        self._cluster.kubectl("-n", VMS, *words, "virtualmachineinstance", self.vm)
        self._cluster.kubectl("-n", VMS, *words, "pod", *self.pods)

    def _pod(self, name: str, node: str, *options: str) -> Json:
        monitor = ("-monitor", f"tcp:127.0.0.1:{_MONITOR},server=on,wait=off")
        pod = launcher_pod(self.vm, "tcg", node=node, name=name, options=(*monitor, *options))
        create(self._cluster, pod)
        until_ready(self._cluster, VMS, name)
        return self._cluster.get("-n", VMS, "pod", name)

    def _say(self, pod: str, line: str) -> str:
        """Return what a QEMU's monitor answers."""
        script = _SAY.format(port=_MONITOR, line=line)
        return self._cluster.kubectl("-n", VMS, "exec", pod, "--", "bash", "-c", script)

    def _vmi(self) -> Json:
        return self._cluster.get("-n", VMS, "virtualmachineinstance", self.vm)

    def _replace(self, obj: Json) -> None:
        obj["metadata"].pop("resourceVersion", None)
        self._cluster.kubectl("-n", VMS, "replace", "-f", "-", given=json.dumps(obj))


@contextmanager
def migrating(cluster: Cluster, *, source: str, target: str) -> Iterator[Migration]:
    """Run a VM on the source, to be moved by the block. Nothing of it is left after the block."""
    migration = Migration(cluster, source=source, target=target)
    try:
        migration.begin()
        yield migration
    finally:
        migration.end()
