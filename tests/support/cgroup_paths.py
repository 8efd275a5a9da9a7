# SPDX-License-Identifier: Apache-2.0
"""Every spelling of a pod's cgroup, and the pod it names."""

from __future__ import annotations

from probes.host.cgroup import PodCgroup, PodUid

UID = "7b4c2f1e-93d5-4a60-8e17-c0ffee12ab34"
OTHER = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
STATIC = "9d2f4c6b8a0e1357924680acebdf1357"
ID = "3f9a" * 16
ID2 = "c01d" * 16
U = UID.replace("-", "_")
O_ = OTHER.replace("-", "_")
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U}.slice"
GUARANTEED = f"/kubepods.slice/kubepods-pod{U}.slice"
KIND = f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{U}.slice"


def pod(uid: str = UID, *, conmon: bool = False, nested: bool = False) -> PodCgroup:
    return PodCgroup(uid=PodUid(uid), conmon=conmon, nested=nested)


PATHS = {
    "containerd, systemd driver": (f"{BURSTABLE}/cri-containerd-{ID}.scope", pod()),
    "CRI-O, runc": (f"{BURSTABLE}/crio-{ID}.scope", pod()),
    "CRI-O, crun": (f"{BURSTABLE}/crio-{ID}.scope/container", pod()),
    "housekeeping": (f"{BURSTABLE}/crio-{ID}.scope/housekeeping", pod()),
    "crun and housekeeping": (f"{BURSTABLE}/crio-{ID}.scope/container/housekeeping", pod()),
    "CRI-O cgroupfs": (f"/kubepods/burstable/pod{UID}/crio-{ID}", pod()),
    "conmon, systemd driver": (f"{BURSTABLE}/crio-conmon-{ID}.scope", pod(conmon=True)),
    "conmon, cgroupfs": (f"/kubepods/pod{UID}/crio-conmon-{ID}", pod(conmon=True)),
    "podman's conmon": (f"{BURSTABLE}/libpod-conmon-{ID}.scope", pod(conmon=True)),
    "docker": (f"{BURSTABLE}/docker-{ID}.scope", pod()),
    "libpod": (f"{GUARANTEED}/libpod-{ID}.scope/container", pod()),
    "cgroupfs": (f"/kubepods/burstable/pod{UID}/{ID}", pod()),
    "cgroupfs, besteffort (k3s)": (f"/kubepods/besteffort/pod{UID}/{ID}", pod()),
    "cgroupfs, guaranteed": (f"/kubepods/pod{UID}/{ID}", pod()),
    "k3s below its service": (f"/system.slice/k3s.service/kubepods/pod{UID}/{ID}", pod()),
    "guaranteed": (f"{GUARANTEED}/cri-containerd-{ID}.scope", pod()),
    "besteffort": (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U}.slice/crio-{ID}.scope",
        pod(),
    ),
    "static pod, systemd driver": (
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice"
            f"/cri-containerd-{ID}.scope"
        ),
        pod(STATIC),
    ),
    "static pod, cgroupfs": (f"/kubepods/burstable/pod{STATIC}/{ID}", pod(STATIC)),
    "kubelet.slice": (f"{KIND}/cri-containerd-{ID}.scope", pod()),
    "kind's kubelet root, cgroupfs": (f"/kubelet/kubepods/burstable/pod{UID}/{ID}", pod()),
    "kind in docker": (f"/docker/{ID2}{KIND}/cri-containerd-{ID}.scope", pod()),
    "kind in docker, systemd": (
        f"/system.slice/docker-{ID2}.scope{KIND}/cri-containerd-{ID}.scope",
        pod(),
    ),
    "kind in a pod: the last counts": (
        (
            f"/kubepods.slice/kubepods-pod{O_}.slice/cri-containerd-{ID2}.scope{KIND}"
            f"/cri-containerd-{ID}.scope"
        ),
        pod(nested=True),
    ),
    "kind in a pod, container not yet made": (
        f"/kubepods/pod{OTHER}/{ID2}/kubelet/kubepods/pod{UID}",
        pod(nested=True),
    ),
    "docker inside the container: the pod's own container counts": (
        f"{BURSTABLE}/cri-containerd-{ID}.scope/docker/{ID2}",
        pod(),
    ),
    "a container's cgroup called like a monitor: the pod's own container counts": (
        f"{BURSTABLE}/cri-containerd-{ID}.scope/crio-conmon-{ID2}.scope",
        pod(),
    ),
    "slice:cri-containerd:id": (
        f"/system.slice/containerd.service/kubepods-burstable-pod{U}.slice:cri-containerd:{ID}",
        pod(),
    ),
    "slice:cri-containerd:id, guaranteed": (
        f"/system.slice/containerd.service/kubepods-pod{U}.slice:cri-containerd:{ID}",
        pod(),
    ),
    "the pod's own cgroup": (BURSTABLE, pod()),
    "CRI-O infra leaf": (f"{BURSTABLE}/crio-{ID}", pod()),
    "relative, systemd driver": (
        f"/../../kubepods-burstable-pod{U}.slice/cri-containerd-{ID}.scope",
        pod(),
    ),
    "relative, cgroupfs hides kubepods": (f"/../../pod{UID}/{ID}", pod()),
    "relative, other qos": (f"/../../../burstable/pod{UID}/{ID}", pod()),
    "relative, sibling container": (f"/../{ID}", None),
    "own cgroup in its namespace": ("/", None),
    "deleted": (f"{BURSTABLE}/cri-containerd-{ID}.scope (deleted)", pod()),
    "deleted pod": (f"{BURSTABLE} (deleted)", pod()),
    "upper case": (f"/kubepods/pod{UID.upper()}/{ID}", pod()),
    "qos only": ("/kubepods.slice/kubepods-burstable.slice", None),
    "a system service": ("/system.slice/libvirtd.service", None),
    "docker without kubelet": (f"/docker/{ID}", None),
    "a user's directory called like a pod": (f"/user.slice/user-1000.slice/pod{UID}/{ID}", None),
    "uid too short": (f"/kubepods/pod{UID[:-1]}/{ID}", None),
    "uid with a tail": (f"/kubepods/pod{UID}0/{ID}", None),
    "a container that is no id": (f"/kubepods/pod{UID}/burst", pod()),
}
