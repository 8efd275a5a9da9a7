# SPDX-License-Identifier: Apache-2.0
"""The image on a node where every VM is emulated, with and without /dev/kvm in its container."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deploy_render import rendered
from tests.support.image_build import Image
from tests.support.image_container import Container, running
from tests.support.image_qemu import QemuAsUser
from tests.support.kernel_world import wait_for
from tests.support.required import missing_for_guests, require

pytestmark = pytest.mark.timeout(900)
Json = dict[str, Any]
BETA = {"namespace": "lab", "name": "beta", "node": "worker-1"}


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    """lab/beta, emulated, and no VM of these tests on KVM."""
    require("image", missing_for_guests())
    with QemuAsUser("lab_beta", "tcg"):
        yield


def others_use_kvm() -> bool:
    """Whether some process of the machine holds a vCPU of KVM."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink().name.startswith("anon_inode:kvm-vcpu"):
                return True
        except OSError:
            continue
    return False


def fallback(agent: Container) -> list[float]:
    """Values of kubevirt_vmi_hypervisor_fallback of beta: one or none."""
    found = agent.samples("kubevirt_vmi_hypervisor_fallback")
    return [value for labels, value in found.items() if set(BETA.items()) <= set(labels)]


def verified(agent: Container) -> bool:
    found = agent.samples("kubevirt_vmi_hypervisor_verified")
    by_name = {dict(labels)["name"]: value for labels, value in found.items()}
    return by_name.get("beta") == 1.0


def available(agent: Container) -> list[float]:
    """Values of kubevirt_node_hypervisor_available of KVM: one or none."""
    found = agent.samples("kubevirt_node_hypervisor_available")
    return [value for labels, value in found.items() if dict(labels)["hypervisor_type"] == "kvm"]


def test_tells_a_fallback_by_the_registration(
    image: Image, crio_seccomp: Json, emulated: None
) -> None:
    """The capabilities variant, without the device, knows by sysfs that the node has KVM."""
    manifest = rendered("capabilities").one("DaemonSet")
    with running(image, manifest, crio_seccomp) as agent:
        wait_for(lambda: verified(agent), "the guest is verified")
        assert (available(agent), fallback(agent)) == ([1.0], [1.0])
        if not others_use_kvm():
            doctor = agent.execute("hvprobe", "doctor").stdout
            assert "the kernel has registered it" in doctor
            assert "not tried, because of /dev/kvm: No such file or directory" in doctor


def test_tells_a_fallback_where_it_may_try(
    image: Image, crio_seccomp: Json, emulated: None
) -> None:
    """In the privileged variant, which has the device, the guest is emulated without need."""
    assert os.access("/dev/kvm", os.R_OK | os.W_OK)
    manifest = rendered("privileged").one("DaemonSet")
    with running(image, manifest, crio_seccomp) as agent:
        wait_for(lambda: verified(agent), "the guest is verified")
        assert (available(agent), fallback(agent)) == ([1.0], [1.0])
