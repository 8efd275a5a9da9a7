# SPDX-License-Identifier: Apache-2.0
"""Finds the pod of a process in the text of /proc/PID/cgroup. Pure.

Owns every way in which kubelet, the CRI runtimes, systemd and kind spell a pod's cgroup. Must not
know how the text was read, what a VMI is, or which pod uids exist.

A line is ``hierarchy:controllers:path`` (cgroups(7)); v2 is the line ``0::path``. kubelet names a
pod's cgroup ``pod<uid>``: below ``kubepods[/qos]`` with the cgroupfs driver, and as
``kubepods[-qos]-pod<uid>.slice`` with the systemd driver, which writes the uid's ``-`` as ``_``
(kubelet cm/pod_container_manager_linux.go and cm/cgroup_manager_linux.go).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import NewType

PodUid = NewType("PodUid", str)
"""A pod's uid as the API server writes it: lower case, 8-4-4-4-12 with ``-``.

The uid of a static pod is 32 hex digits, because kubelet hashes the manifest.
"""

_UID = r"[0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12}|[0-9a-fA-F]{32}"
_UID_ALONE = re.compile(_UID)
_POD_SEGMENT = re.compile(rf"(?:[^/]*-)?pod({_UID})(?:\.slice)?")
# cri-containerd-<id>.scope, crio-<id>.scope, crio-conmon-<id>.scope, docker-<id>.scope, bare <id>.
_CONTAINER_SEGMENT = re.compile(r"(?:([a-z][a-z0-9_-]{0,63})-)?[0-9a-f]{64}(?:\.scope)?")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCgroup:
    """The place of a process in a pod."""

    uid: PodUid
    """The innermost pod of the path."""
    conmon: bool
    """Whether it is CRI-O's monitor, which is in the pod's cgroup but is none of its containers."""
    nested: bool = False
    """Whether the path also holds an outer pod (kind inside a pod).

    A process that may make cgroups inside a pod can write any uid here, so a claim that is not
    nested is preferred.
    """


def canonical_pod_uid(text: str) -> PodUid | None:
    """Spell a uid as the API server does; None: ``text`` is no pod uid."""
    if _UID_ALONE.fullmatch(text) is None:
        return None
    # The VMI and the processes of a pod share one copy of its uid.
    return PodUid(sys.intern(text.replace("_", "-").lower()))


def pod_of(cgroup_text: str) -> PodCgroup | None:
    """Return the pod that /proc/PID/cgroup names, or None. Never raises, whatever the text.

    The v2 line decides if it names a pod; otherwise the v1 hierarchies decide in the given order.
    On a hybrid host the ``0::`` line often ends at the runtime's service, while v1 names the pod.
    """
    unified: PodCgroup | None = None
    legacy: PodCgroup | None = None
    # Only "\n" ends a line: the kernel refuses it in a cgroup's name, and no other character.
    for line in cgroup_text.split("\n"):
        hierarchy, _, rest = line.partition(":")
        _, colon, path = rest.partition(":")
        if not colon:
            continue
        if hierarchy == "0":
            unified = unified or _pod_of_path(path)
        else:
            legacy = legacy or _pod_of_path(path)
    return unified or legacy


def _pod_of_path(path: str) -> PodCgroup | None:
    """Return the last pod of a path. Kind and other nested kubelets put one pod below another."""
    # A process can outlive its cgroup's directory; v2 then marks the path (proc_cgroup_show).
    segments = path.removesuffix(_DELETED).split("/")
    # Inside a cgroup namespace the path climbs with ``..`` and may hide ``kubepods``.
    inside_kubepods = len(segments) > 1 and segments[1] == ".."
    uid: PodUid | None = None
    pods = 0
    container: re.Match[str] | None = None
    for segment in segments:
        # containerd without its systemd driver writes ``<slice>:cri-containerd:<id>`` as one
        # segment.
        for part in segment.split(":"):
            inside_kubepods = inside_kubepods or "kubepods" in part
            pod = _POD_SEGMENT.fullmatch(part) if inside_kubepods else None
            if pod is not None:
                uid = canonical_pod_uid(pod[1])
                pods += 1
                container = None
            elif uid is not None and container is None:
                container = _CONTAINER_SEGMENT.fullmatch(part)
    if uid is None:
        return None
    runtime = "" if container is None else container[1] or ""
    return PodCgroup(
        uid=uid,
        conmon=runtime.endswith("conmon"),
        nested=pods > 1,
    )
