# SPDX-License-Identifier: Apache-2.0
"""The Microsoft hypervisor's program, as far as a node without that hypervisor can test it.

The program is attached to KVM's vCPU ioctl instead. A KVM vCPU refuses the request that the program
counts, but the call shows that the program loads, matches the complete number, and counts for the
right process.
"""

import sys
from dataclasses import replace

import pytest

from ebpf.hooks import HOOKS, KVM, MSHV_VP_IOCTL, AttachPoint, Backend
from ebpf.session import Session
from tests.support.kernel_world import Started, wait_for

ASK_A_KVM_VCPU = """
import fcntl, os, sys
kvm = os.open("/dev/kvm", os.O_RDWR)
vcpu = fcntl.ioctl(fcntl.ioctl(kvm, 0xAE01, 0), 0xAE41, 0)
for request in [0x8100B800] * 101 + [0xB800] * 7:
    try:
        fcntl.ioctl(vcpu, request, bytes(256) if request == 0x8100B800 else 0)
    except OSError:
        pass
print("done", flush=True)
sys.stdin.read()
"""


def test_counts_its_own_number_only() -> None:
    """The program counts all 101 MSHV_RUN_VP, and no request that shares only the lower half."""
    elsewhere = AttachPoint(backend=Backend.KPROBE, target="kvm_vcpu_ioctl")
    hook = replace(MSHV_VP_IOCTL, points=(elsewhere,), driver=KVM, optional=False)
    rest = [other for other in HOOKS if other.driver is None]
    with Session(hooks=[hook, *rest]) as session:
        if not session.hooks[0].attached:
            pytest.skip(str(session.hooks[0].reason))
        with Started([sys.executable, "-c", ASK_A_KVM_VCPU], stderr=None) as process:
            assert process.line() == "done\n"
            entry = wait_for(lambda: session.read().entries.get(process.tgid), "it is recorded")
            assert (entry.counters["mshv_runs"], entry.counters["runs"]) == (101, 0)
