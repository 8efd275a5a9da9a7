# SPDX-License-Identifier: Apache-2.0
"""QEMU as virt-launcher runs it: of user 107, which hvprobe is not."""

import subprocess

from tests.support.kernel_world import QEMU, Started, machine_arguments

QEMU_USER = 107
"""KubeVirt's and libvirt's qemu user."""

# A container's own /dev/kvm, which its user may open; the machine's keeps its owner and mode.
_OWN_DEVICE = """
set -e
numbers=$(stat -c '0x%t 0x%T' /dev/kvm)
mount -t tmpfs tmpfs /mnt
mknod -m 666 /mnt/kvm c $numbers
mount --bind /mnt/kvm /dev/kvm
exec "$@"
"""


class QemuAsUser(Started):
    """A guest whose process belongs to user 107 and dies with the test."""

    def __init__(self, name: str, accel: str, *, own_device: bool = True) -> None:
        """own_device: False where this user may open the machine's /dev/kvm itself."""
        # The user changes after preexec_fn, which makes the kernel forget PR_SET_PDEATHSIG.
        become = ["setpriv", f"--reuid={QEMU_USER}", f"--regid={QEMU_USER}", "--clear-groups"]
        enter = ["unshare", "--mount", "--", "sh", "-c", _OWN_DEVICE, "sh"]
        super().__init__(
            [
                *(
                    *(enter if own_device else ()),
                    *become,
                    "--pdeathsig=KILL",
                    "--",
                    QEMU,
                    "-accel",
                    accel,
                ),
                *("-name", f"guest={name},debug-threads=on", *machine_arguments(accel)),
                *("-display", "none", "-nodefaults", "-m", "64"),
            ],
            stderr=subprocess.DEVNULL,
        )
