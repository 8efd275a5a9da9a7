# SPDX-License-Identifier: Apache-2.0
"""Inside a guest that boots with SELinux: its policy, and the labels of containers and VMs.

Owns what udev, a container runtime and libvirt do about labels on a node. The root file system that
the guest shares with its host holds none, so a container's root is an overlay that is mounted with
one label for everything, as runtimes mount it. Must not know what is expected of an agent.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmtest.platforms import SELINUX_POLICY

Json = dict[str, Any]
POLICY = Path("/results") / SELINUX_POLICY
_SELINUXFS = Path("/sys/fs/selinux")
_FILES = "system_u:object_r:container_file_t:s0"
"""The label of a container's files."""
_DEVICES = {
    "kvm": "kvm_device_t",
    "null": "null_device_t",
    "zero": "zero_device_t",
    "full": "null_device_t",
    "random": "random_device_t",
    "urandom": "urandom_device_t",
}
"""The types of devices, which udev sets on a node."""
_VM_TYPES = {"kvm": "svirt_t", "tcg": "svirt_prot_exec_t"}
"""The types that libvirt gives VMs: one that emulates may execute what it wrote."""
_CATEGORIES = "s0:c281,c745"
"""Those of one VM: libvirt gives each its own."""


def load() -> None:
    """Load the policy, and label the devices that were made before it."""
    # Without this file runcon and the like take SELinux for absent (libselinux, init.c).
    Path("/etc/selinux").mkdir(exist_ok=True)
    Path("/etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=default\n")
    _run("mount", "-t", "selinuxfs", "selinuxfs", str(_SELINUXFS))
    with (_SELINUXFS / "load").open("wb", buffering=0) as loading:
        loading.write(POLICY.read_bytes())
    assert (_SELINUXFS / "enforce").read_text() == "1"
    Path("/proc/sys/kernel/printk_ratelimit").write_text("0")  # the console gets all denials
    for name, kind in _DEVICES.items():
        _run("chcon", f"system_u:object_r:{kind}:s0", f"/dev/{name}")


def mount_labelled(root: Path, shares: Sequence[str]) -> None:
    """Mount the guest's root and what is mounted into it a second time, labelled for containers."""
    for source, target in (("/", root), *((f"/{share}", root / share) for share in shares)):
        written = Path("/tmp/labelled") / target.name
        for each in ("data", "work"):
            (written / each).mkdir(parents=True)
        layers = f"lowerdir={source},upperdir={written}/data,workdir={written}/work"
        _run("mount", "-t", "overlay", "-o", f"{layers},context={_FILES}", "overlay", str(target))


def as_vm(accel: str) -> Sequence[str]:
    """A command that runs another one as libvirt runs a VM."""
    return ("runcon", f"system_u:system_r:{_VM_TYPES[accel]}:{_CATEGORIES}")


def type_of(security_context: Json) -> str:
    """The type of a container, as CRI runtimes choose it."""
    wanted: str | None = security_context.get("seLinuxOptions", {}).get("type")
    return wanted or ("spc_t" if security_context.get("privileged") else "container_t")


def label(config: Json, kind: str) -> None:
    """Give a container its type, and its mounts the label of containers' files."""
    config["process"]["selinuxLabel"] = f"system_u:system_r:{kind}:s0"
    config["linux"]["mountLabel"] = _FILES


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
