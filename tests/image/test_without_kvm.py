# SPDX-License-Identifier: Apache-2.0
"""The image on a node where every VM is emulated, and the agent may not try /dev/kvm."""

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


def test_says_that_it_cannot_tell_a_fallback(
    image: Image, crio_seccomp: Json, emulated: None
) -> None:
    """In the capabilities variant neither series is there: not known is not 0."""
    manifest = rendered("capabilities").one("DaemonSet")
    with running(image, manifest, crio_seccomp) as agent:
        wait_for(lambda: verified(agent), "the guest is verified")
        known = agent.samples("kubevirt_node_hypervisor_available")
        assert bool(fallback(agent)) == bool(known)
        if not others_use_kvm():
            assert fallback(agent) == []
            doctor = agent.execute("hvprobe", "doctor").stdout
            assert "mount its /dev/kvm into the container" in doctor


def test_tells_a_fallback_where_it_may_try(
    image: Image, crio_seccomp: Json, emulated: None
) -> None:
    """In the privileged variant, which has the device, the guest is emulated without need."""
    assert os.access("/dev/kvm", os.R_OK | os.W_OK)
    manifest = rendered("privileged").one("DaemonSet")
    with running(image, manifest, crio_seccomp) as agent:
        wait_for(lambda: verified(agent), "the guest is verified")
        assert fallback(agent) == [1.0]
