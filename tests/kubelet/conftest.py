# SPDX-License-Identifier: Apache-2.0
"""The cluster that tests of this folder share, and the VMs in it."""

from collections.abc import Iterator

import pytest

from tests.support import image_build, kube_build
from tests.support.image_container import workplace
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import Cluster, prepared
from tests.support.kube_objects import VMI_RESOURCE, VMS, load_images
from tests.support.kube_world import ALPHA, BETA, add_vm, create
from tests.support.required import missing_for_guests, require


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A node that is ready, with the built image, KubeVirt's resource and no agent."""
    require("kubelet", kube_build.missing() or missing_for_guests("buildah", "debootstrap"))
    image_build.build()
    with workplace() as work, prepared(work) as made:
        made.start()
        load_images(made.first)
        create(made, VMI_RESOURCE)
        made.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        yield made


@pytest.fixture(scope="session")
def vms(cluster: Cluster) -> Cluster:
    """vms/alpha on KVM and vms/beta emulated, each in its pod, and Running by their VMIs."""
    cluster.kubectl("create", "namespace", VMS)
    wait_for(
        lambda: cluster.kubectl_try("-n", VMS, "get", "serviceaccount", "default").returncode == 0,
        "the namespace has its service account",
    )
    for vm, accel in ((ALPHA, "kvm"), (BETA, "tcg")):
        add_vm(cluster, vm, accel)
    return cluster
