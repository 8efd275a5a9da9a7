# SPDX-License-Identifier: Apache-2.0
"""The pod in the text of /proc/PID/cgroup: every spelling, and no exception for any text."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probes.host.cgroup import PodCgroup, canonical_pod_uid, pod_of
from tests.support.cgroup_paths import (
    BURSTABLE,
    ID,
    ID2,
    OTHER,
    PATHS,
    STATIC,
    UID,
    U,
    pod,
)


@pytest.mark.parametrize(("path", "expected"), PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("prefix", ["0::", "4:memory:", "1:name=systemd:", "7:cpu,cpuacct:"])
def test_a_path_names_its_pod(prefix: str, path: str, expected: PodCgroup | None) -> None:
    """Every known form of a pod's cgroup gives the uid and conmon, in v1 and in v2."""
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
def test_a_complete_file_names_one_pod(text: str, expected: PodCgroup | None) -> None:
    """v1, hybrid and v2 files give one answer. The v2 line decides if it names a pod."""
    assert pod_of(text) == expected


@given(st.text())
@example("\x00")
@example("0::" + "/.." * 4000)
@example("::::::")
@example("0::/kubepods/pod\udcff")
def test_no_text_raises(text: str) -> None:
    """For any text the answer is a pod or None, never an exception."""
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
    """A path of the greatest length that the kernel allows does not make the parser slow."""
    segment = "kubepods" + "-pod" + "0" * 31 + "-pod" * 60
    text = "0::" + ("/" + segment[:255]) * 400
    started_s = time.process_time()
    assert pod_of(text) is None
    assert time.process_time() - started_s < 1.0


@pytest.mark.parametrize("text", ["", "pod", UID[:-1], UID + "0", STATIC[:-1], f" {UID}", "g" * 32])
def test_a_uid_has_one_form(text: str) -> None:
    """Text that is not exactly a uid is refused."""
    assert canonical_pod_uid(text) is None


def test_a_pod_is_nested_only_in_another_pod() -> None:
    """A pod's cgroup that is not below another pod's is not nested."""
    alone = pod_of(f"0::/kubepods/pod{UID}/{ID}")
    assert alone is not None
    assert alone.nested is False
