# SPDX-License-Identifier: Apache-2.0
"""What KubeVirt has in a cluster, as far as hvprobe sees it: its resource, VMs' pods, their VMIs.

Owns images and objects. A launcher's pod runs QEMU itself where KubeVirt's run libvirt around it;
QEMU is the machine's own, of user 107. Must not know how the cluster is run.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.image_build import NATIVE, store, tag
from tests.support.image_qemu import QEMU_USER
from tests.support.kernel_world import QEMU, machine_arguments
from tests.support.kube_cluster import NODE
from tests.support.kube_node import PAUSE_IMAGE, KubeNode
from tests.support.vmi_objects import vmi

AGENT_IMAGE = "localhost/hvprobe"
AGENT_TAG = "test"
LAUNCHER_IMAGE = "localhost/hvprobe-test/launcher:1"
VMS = "vms"
"""The namespace of VMs."""
Json = dict[str, Any]

VMI_RESOURCE: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "virtualmachineinstances.kubevirt.io"},
    "spec": {
        "group": "kubevirt.io",
        "scope": "Namespaced",
        "names": {
            "plural": "virtualmachineinstances",
            "singular": "virtualmachineinstance",
            "kind": "VirtualMachineInstance",
            "shortNames": ["vmi", "vmis"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
"""KubeVirt's without its schema (its pkg/virt-operator/resource/generate/components/crds.go)."""


def load_images(node: KubeNode) -> None:
    """Give the node's runtime the built image, and the two that pods of a test need."""
    _load(node, tag(NATIVE), f"{AGENT_IMAGE}:{AGENT_TAG}")
    with tempfile.TemporaryDirectory() as directory:
        pause, launcher = Path(directory, "pause"), Path(directory, "launcher")
        pause.mkdir()
        (pause / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (pause / "busybox").chmod(0o755)
        for name in ("usr", "etc", "tmp"):
            (launcher / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (launcher / name).symlink_to(f"usr/{name}")
        _load_made(node, pause, PAUSE_IMAGE, ["/busybox", "tail", "-f", "/dev/null"])
        _load_made(node, launcher, LAUNCHER_IMAGE, [])


def _load_made(node: KubeNode, root: Path, name: str, entrypoint: list[str]) -> None:
    container = store("from", "scratch")
    try:
        store("add", "--quiet", container, str(root), "/")
        words = ", ".join(f'"{word}"' for word in entrypoint)
        store("config", "--entrypoint", f"[{words}]", container)
        store("commit", "--quiet", container, name)
    finally:
        store("rm", container)
    _load(node, name, name)
    store("rmi", name)


def copy_images(source: KubeNode, target: KubeNode) -> None:
    """Give another node's runtime what `load_images` gave this one's."""
    names = (f"{AGENT_IMAGE}:{AGENT_TAG}", PAUSE_IMAGE, LAUNCHER_IMAGE)
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "images"
        done = source.containerd("images", "export", archive, *names)
        assert done.returncode == 0, done.stderr
        done = target.containerd("images", "import", "--no-unpack", archive)
        assert done.returncode == 0, done.stderr


def _load(node: KubeNode, stored: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "image"
        store("push", "--quiet", stored, f"oci-archive:{archive}:{name}")
        done = node.containerd("images", "import", "--no-unpack", archive)
        assert done.returncode == 0, done.stderr


def launcher_pod(
    vm: str, accel: str, *, node: str = NODE, name: str | None = None, options: Sequence[str] = ()
) -> Json:
    """A pod as virt-controller makes it for a VMI, with the machine's QEMU.

    The container that uses KVM is privileged, for it has no device plugin to get /dev/kvm from.
    name: if it is not the VM's only pod. options: further words for QEMU.
    """
    qemu = " ".join(
        [
            *("exec", "setpriv", f"--reuid={QEMU_USER}", f"--regid={QEMU_USER}", "--clear-groups"),
            *("--", QEMU, "-accel", accel, "-name", f"guest={VMS}_{vm},debug-threads=on"),
            *machine_arguments(accel),
            *("-display", "none", "-nodefaults", "-m", "64", *options),
        ]
    )
    device = "chmod 666 /dev/kvm; " if accel == "kvm" else ""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"virt-launcher-{vm}",
            "namespace": VMS,
            "labels": {"kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": vm},
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "dnsPolicy": "Default",
            "containers": [
                {
                    "name": "compute",
                    "image": LAUNCHER_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", device + qemu],
                    "securityContext": {"privileged": accel == "kvm"},
                    "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "usr", "hostPath": {"path": "/usr", "type": "Directory"}}],
        },
    }


def running_vmi(vm: str, pod_uid: str, *, node: str = NODE) -> Json:
    """The VMI that virt-handler reports for this pod."""
    found = vmi(vm, namespace=VMS, node=node)
    found["status"]["activePods"] = {pod_uid: node}
    # What only a server writes; and an owner that is not there, with which it would be collected.
    for field in ("creationTimestamp", "finalizers", "generation", "managedFields", "uid"):
        del found["metadata"][field]
    del found["metadata"]["ownerReferences"]
    return found
