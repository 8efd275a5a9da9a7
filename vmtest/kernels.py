# SPDX-License-Identifier: Apache-2.0
"""The kernels that vmtest boots: one line each.

Owns which distribution kernel is paired with which root file system, and the names that the rest
of vmtest derives from that. Must not know how anything is downloaded, built or booted.
"""

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vmtest.by_name import names_in, row_named

SELECTION_VARIABLE = "HVPROBE_KERNELS"


class Architecture(enum.Enum):
    """A machine architecture by its Debian name."""

    AMD64 = "amd64"
    ARM64 = "arm64"


class Suite(enum.Enum):
    """A Debian suite. Its BCC: bookworm 0.26, trixie 0.31, sid 0.37 or later."""

    BULLSEYE = "bullseye"
    BOOKWORM = "bookworm"
    TRIXIE = "trixie"
    SID = "sid"


class Transport(enum.Enum):
    """How a guest reaches folders of this machine, by its file system's name."""

    P9 = "9p"
    VIRTIOFS = "virtiofs"
    """Where the kernel has no 9p. It needs root on this machine (virtiofsd)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestKernel:
    """One kernel of vmtest and the world it boots into."""

    name: str
    """What users write in HVPROBE_KERNELS: the kernel's version, `-arm64` appended off amd64."""
    architecture: Architecture
    kernel_suite: Suite
    """Where the kernel package comes from."""
    root_suite: Suite
    """Where user space comes from: the suite whose BCC knows this kernel."""
    release: str
    """Pattern that `uname -r` matches completely; the newest match in the suite is taken."""
    kvm_modules: tuple[str, ...]
    """Modules that make /dev/kvm appear; empty where KVM is built in."""
    test_modules: tuple[str, ...] = field(default=(), repr=False)
    """Modules that its tests need besides; empty where they are built in or no test needs them."""
    transport: Transport = field(default=Transport.P9, repr=False)
    only_by_name: bool = field(default=False, repr=False)
    """Whether `all` leaves it out. It then runs where HVPROBE_KERNELS names it."""
    machine: tuple[str, ...] = field(default=(), repr=False)
    """Further options of QEMU for the machine that it runs on."""


_AMD = ("kvm_amd",)
_CONSTANT_TSC = (
    *("-cpu", "max,la57=off,hypervisor=off"),
    *("-smbios", "type=1,serial=VMware-emulated"),
)
"""A machine on which Linux takes the time stamp counter to be constant.

A real-time kernel has no KVM without that (Linux 6.12, __kvm_x86_vendor_init() in
arch/x86/kvm/x86.c), and QEMU does not emulate the flag in CPUID. Linux also believes it of
VMware's machines (vmware_set_capabilities() in arch/x86/kernel/cpu/vmware.c), which it knows by
their serial number and by a port that QEMU's machines have, too.
"""
_X86, _ARM = Architecture.AMD64, Architecture.ARM64


def _line(
    name: str,
    architecture: Architecture,
    kernel_suite: Suite,
    root_suite: Suite,
    release: str,
    kvm_modules: tuple[str, ...],
    *,
    machine: tuple[str, ...] = (),
    only_by_name: bool = False,
) -> GuestKernel:
    return GuestKernel(
        name=name,
        architecture=architecture,
        kernel_suite=kernel_suite,
        root_suite=root_suite,
        release=release,
        kvm_modules=kvm_modules,
        machine=machine,
        only_by_name=only_by_name,
    )


KERNELS: tuple[GuestKernel, ...] = (
    _line("5.10", _X86, Suite.BULLSEYE, Suite.BOOKWORM, r"5\.10\.[0-9.]+-\d+-amd64", _AMD),
    _line("6.1", _X86, Suite.BOOKWORM, Suite.BOOKWORM, r"6\.1\.[0-9.]+-\d+-amd64", _AMD),
    _line("6.12", _X86, Suite.TRIXIE, Suite.TRIXIE, r"6\.12\.[0-9.]+\+deb13-amd64", _AMD),
    _line(
        "6.12-rt",
        _X86,
        Suite.TRIXIE,
        Suite.TRIXIE,
        r"6\.12\.[0-9.]+\+deb13-rt-amd64",
        _AMD,
        machine=_CONSTANT_TSC,
        only_by_name=True,
    ),
    _line("7.2", _X86, Suite.SID, Suite.SID, r"7\.2\.[0-9.]+\+deb\d+-amd64", _AMD),
    replace(
        _line("6.1-arm64", _ARM, Suite.BOOKWORM, Suite.BOOKWORM, r"6\.1\.[0-9.]+-\d+-arm64", ()),
        test_modules=("fuse",),
    ),
    # Its QEMU holds the statistics of its vCPUs open, which that of 6.1-arm64 does not.
    _line(
        "6.12-arm64",
        _ARM,
        Suite.TRIXIE,
        Suite.TRIXIE,
        r"6\.12\.[0-9.]+\+deb13-arm64",
        (),
        only_by_name=True,
    ),
)


def kernel_named(name: str) -> GuestKernel:
    """The table's line of that name. Raises UnknownNameError."""
    return row_named(KERNELS, name, what="guest kernel")


def selected(environ: Mapping[str, str] = os.environ) -> tuple[GuestKernel, ...]:
    """The kernels that HVPROBE_KERNELS names, comma separated.

    `all` means each that need not be named, and so does an unset variable.
    """
    names = names_in(SELECTION_VARIABLE, environ)
    named = [kernel_named(name) for name in names if name != "all"]
    if named and "all" not in names:
        return tuple(named)
    return tuple(kernel for kernel in KERNELS if not kernel.only_by_name or kernel in named)
