"""QEMU as virt-launcher runs it: of user 107, which hvprobe is not."""

import subprocess

from kernel_world import QEMU, Started, machine_arguments

QEMU_USER = 107
"""KubeVirt's and libvirt's qemu user."""


class QemuAsUser(Started):
    """A guest whose process belongs to user 107 and dies with the test."""

    def __init__(self, name: str, accel: str) -> None:
        # The user changes after preexec_fn, which makes the kernel forget PR_SET_PDEATHSIG.
        become = ["setpriv", f"--reuid={QEMU_USER}", f"--regid={QEMU_USER}", "--clear-groups"]
        super().__init__(
            [
                *(*become, "--pdeathsig=KILL", "--", QEMU, "-accel", accel),
                *("-name", f"guest={name},debug-threads=on", *machine_arguments(accel)),
                *("-display", "none", "-nodefaults", "-m", "64"),
            ],
            stderr=subprocess.DEVNULL,
        )
