# SPDX-License-Identifier: Apache-2.0
"""Says which security module confines a process, from its label. Pure.

Owns the forms of the labels that AppArmor and SELinux give a process, and what to do about each.
Must not know what was refused, nor read anything.

Sources: security/apparmor/procattr.c (aa_getprocattr); security/selinux/hooks.c
(selinux_getprocattr); fs/proc/base.c, whose folder attr/apparmor exists since Linux 6413f852ce08
("apparmor: add proc subdir to attrs") (v5.8).
"""

import re
from dataclasses import dataclass

CONFIDENTIALITY = "confidentiality"
"""The lockdown mode that forbids kprobes and, set at boot, leaves tracefs empty."""
_APPARMOR = re.compile(r"(?P<profile>.+) \((?P<mode>\w+)\)")
_SELINUX = re.compile(r"[^:\s]+:[^:\s]+:(?P<type>[^:\s]+)(:\S+)?")
_PERMISSIVE = "0"
_COMPLAIN = "complain"
"""The mode of a profile that denies nothing."""
_UNCONFINED_TYPES = ("spc_t", "unconfined_t")
"""SELinux types that a policy hardly restricts; a denial is then the node's own rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What confines this process."""

    phrase: str
    """As the subject of a sentence."""
    remedy: str


def confinement(*, apparmor: str, current: str, enforce: str) -> Confinement | None:
    """Return what confines a process, by the texts of two files of its ``attr`` and of selinuxfs.

    Each is empty where there is no such file. None: nothing that is known here.
    """
    return apparmor_confinement(apparmor or current) or selinux_confinement(
        current, enforce=enforce
    )


def apparmor_confinement(label: str) -> Confinement | None:
    """Return what an AppArmor label means; None: it does not confine."""
    found = _APPARMOR.fullmatch(label.rstrip("\n\0"))
    if found is None or found["mode"] == _COMPLAIN:
        return None
    return Confinement(
        phrase=f"the AppArmor profile {found['profile']}",
        remedy="run hvprobe unconfined (appArmorProfile.type: Unconfined)",
    )


def selinux_confinement(label: str, *, enforce: str) -> Confinement | None:
    """Return what an SELinux label means; None: it does not confine.

    enforce is the text of selinuxfs's file of that name, which is empty where that is not mounted.
    """
    found = _SELINUX.fullmatch(label.rstrip("\n\0"))
    if found is None or enforce.strip() == _PERMISSIVE:
        return None
    remedy = "the audit log of the node names the denial"
    if found["type"] not in _UNCONFINED_TYPES:
        remedy = f"run hvprobe as spc_t (seLinuxOptions.type: spc_t); {remedy}"
    return Confinement(phrase=f"SELinux (type {found['type']})", remedy=remedy)
