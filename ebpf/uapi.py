# SPDX-License-Identifier: Apache-2.0
"""Defines numbers of the kernel's user interface that Python and the BPF text share. Pure.

A test compares them with the ``#define`` of the same name in the BPF text.
"""

KVM_CREATE_VM = 0xAE01
"""ioctl request of /dev/kvm (include/uapi/linux/kvm.h)."""
KVM_RUN = 0xAE80
"""ioctl request of a vCPU descriptor (include/uapi/linux/kvm.h)."""
MSHV_RUN_VP = 0x8100B800
"""ioctl request of an mshv_vp descriptor (include/uapi/linux/mshv.h)."""
