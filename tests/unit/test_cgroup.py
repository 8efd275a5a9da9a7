"""From the text of /proc/PID/cgroup to the pod: every spelling, and no exception for any text."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probes.cgroup import PodCgroup, PodUid, canonical_pod_uid, pod_of

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


@pytest.mark.parametrize(("path", "expected"), PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("prefix", ["0::", "4:memory:", "1:name=systemd:", "7:cpu,cpuacct:"])
def test_a_path_names_its_pod(prefix: str, path: str, expected: PodCgroup | None) -> None:
    """Every known form of a pod's cgroup gives uid and conmon, in v1 and in v2."""
    assert pod_of(f"{prefix}{path}\n") == expected


TEXTS = {
    "v2": (f"0::{BURSTABLE}/crio-{ID}.scope\n", pod()),
    "v1": (
        (
            f"12:pids:/kubepods/burstable/pod{UID}/{ID}\n11:memory:/kubepods/burstable/pod{UID}/{ID}\n"
            f"1:name=systemd:/kubepods/burstable/pod{UID}/{ID}\n"
        ),
        pod(),
    ),
    "v1, some controllers at the root": (
        f"12:rdma:/\n11:misc:/\n10:cpuset:/kubepods/pod{UID}/{ID}\n",
        pod(),
    ),
    "hybrid, pod only in v1": (
        f"11:memory:{BURSTABLE}/crio-{ID}.scope\n0::/system.slice/crio.service\n",
        pod(),
    ),
    "hybrid, pod only in v2": (f"5:memory:/\n1:name=systemd:/\n0::{BURSTABLE}\n", pod()),
    "hybrid, v2 decides": (f"5:memory:/kubepods/pod{OTHER}/{ID2}\n0::{BURSTABLE}/{ID}\n", pod()),
    "no newline at the end": (f"0::/kubepods/pod{UID}/{ID}", pod()),
    "no process": ("", None),
    "kernel thread": ("0::/\n", None),
    "no colons": (f"/kubepods/pod{UID}/{ID}\n", None),
    "a line without colons before the pod's": (f"x\n0::/kubepods/pod{UID}/{ID}\n", pod()),
    "one colon": (f"0:/kubepods/pod{UID}/{ID}\n", None),
    "other line separators are part of a name": (f"0::/x\v0::/kubepods/pod{UID}\v\n", None),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_a_whole_file_names_one_pod(text: str, expected: PodCgroup | None) -> None:
    """v1, hybrid and v2 files give one answer; the v2 line decides where it names a pod."""
    assert pod_of(text) == expected


@given(st.text())
@example("\x00")
@example("0::" + "/.." * 4000)
@example("::::::")
@example("0::/kubepods/pod\udcff")
def test_no_text_raises(text: str) -> None:
    """Whatever stands in the file, the answer is a pod or None, never an exception."""
    found = pod_of(text)
    assert found is None or canonical_pod_uid(found.uid) == found.uid


_PIECES = st.sampled_from(
    [
        *["/", "-", ":", "..", "0::", "\n", "kubepods", "pod", UID, U, STATIC, ID, ".slice"],
        *[".scope", "crio-", "crio-conmon-", "cri-containerd-", "container", " (deleted)", "\xe9"],
    ]
)


@given(st.lists(_PIECES, max_size=40).map("".join))
def test_pieces_of_real_paths_in_any_order_never_raise(text: str) -> None:
    """A path made of real pieces in a wrong order gives a well-formed answer or none."""
    found = pod_of(text)
    assert found is None or found.uid in {UID, STATIC}


@given(st.uuids(), st.text("0123456789abcdef", min_size=64, max_size=64))
def test_systemd_and_cgroupfs_spellings_agree(uuid: object, container: str) -> None:
    """The two kubelet drivers' names of one container give the same pod."""
    uid = str(uuid)
    systemd = f"0::/kubepods.slice/kubepods-pod{uid.replace('-', '_')}.slice/crio-{container}.scope"
    cgroupfs = f"0::/kubepods/pod{uid}/{container}"
    assert pod_of(systemd) == pod_of(cgroupfs) == pod(uid)


def test_a_long_hostile_path_costs_linear_time() -> None:
    """A path of the length the kernel allows cannot make the parser backtrack for long."""
    segment = "kubepods" + "-pod" + "0" * 31 + "-pod" * 60
    text = "0::" + ("/" + segment[:255]) * 400
    began = time.process_time()
    assert pod_of(text) is None
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("text", ["", "pod", UID[:-1], UID + "0", STATIC[:-1], f" {UID}", "g" * 32])
def test_a_uid_has_one_form(text: str) -> None:
    """What is no uid is refused rather than guessed at."""
    assert canonical_pod_uid(text) is None


def test_a_claim_is_nested_only_in_another_pod() -> None:
    """A pod of its own is the better claim."""
    alone = pod_of(f"0::/kubepods/pod{UID}/{ID}")
    assert alone is not None
    assert alone.nested is False
