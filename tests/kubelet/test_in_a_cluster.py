# SPDX-License-Identifier: Apache-2.0
"""The DaemonSet in a real cluster: admitted, scheduled, run by kubelet and containerd, scraped.

The cluster is Kubernetes 1.20, the newest whose source Debian has, with containerd 1.6. Its VMs are
QEMU processes in pods of their own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deploy_render import rendered
from tests.support.image_container import CAPABILITIES, possible_capabilities
from tests.support.kernel_agent import program_exists, program_ids, samples_of
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import NODE, Cluster
from tests.support.kube_objects import VMS
from tests.support.kube_world import (
    ALPHA,
    BETA,
    NAMESPACE,
    VM_NODE_LABEL,
    agent_pod,
    agent_pods,
    install,
    main_tgid,
    manifests,
    node_restored,
    of_vm,
    pod_is_ready,
    scrape,
    shows_both,
    until_ready,
    without_api_server,
    without_right,
    without_vmi,
)

pytestmark = pytest.mark.timeout(1800)
INFO = "kubevirt_vmi_hypervisor_info"


@pytest.fixture(scope="module")
def installed(vms: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster with the capabilities variant, installed as the manual says."""
    given = manifests("capabilities", tmp_path_factory.mktemp("own"))
    install(vms, given)
    yield vms
    vms.kubectl("delete", "--ignore-not-found", "-f", "-", given=given)


def tgid(cluster: Cluster) -> int:
    """The agent's process number on this machine."""
    return main_tgid(cluster.first, agent_pod(cluster))


def test_names_what_runs(installed: Cluster) -> None:
    """VMs in kubelet's pods are shown with their types, verified, and with their VMIs' names."""
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)
    text = scrape(installed)
    assert samples_of(text, "hvprobe_processes")[(("state", "attributed"),)] == 2.0
    # It has no /dev/kvm, and knows all the same that the node can do better.
    assert samples_of(text, "kubevirt_vmi_hypervisor_fallback")[of_vm(BETA)] == 1.0
    assert scrape(installed, "/readyz") == "ready\n"


def test_is_verified_as_the_manual_says(installed: Cluster) -> None:
    """The three commands of the manual's section Verify show what the manual says."""
    doctor = installed.kubectl_try(
        *("-n", NAMESPACE, "exec", "daemonset/hvprobe", "--", "hvprobe", "doctor")
    )
    assert doctor.returncode == 0, doctor.stdout
    shown = installed.kubectl(
        *("-n", NAMESPACE, "exec", "daemonset/hvprobe", "--", "hvprobe", "live", "--once")
    )
    assert re.search(r"vms/alpha.*kvm", shown)
    assert re.search(r"vms/beta.*tcg", shown)
    account = f"system:serviceaccount:{NAMESPACE}:hvprobe"
    rights = installed.kubectl("auth", "can-i", "--list", "--as", account)
    (line,) = [line for line in rights.splitlines() if "kubevirt" in line]
    assert sorted(re.findall(r"\w+", line.rpartition("[")[2])) == ["get", "list", "watch"]


def test_follows_the_cluster(installed: Cluster) -> None:
    """Without its VMI a VM has no series and counts as unattributed, until the VMI is back.

    Other VMs of this machine have no VMI either, so they are counted as well.
    """
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)
    named, unnamed = (("state", "attributed"),), (("state", "unattributed"),)
    with without_vmi(installed, BETA) as gone:
        wait_for(
            lambda: (
                samples_of(text := scrape(installed), INFO)
                == {of_vm(ALPHA, hypervisor_type="kvm"): 1.0}
                and (processes := samples_of(text, "hvprobe_processes"))[named] == 1.0
                and processes[unnamed] >= 1.0
            ),
            "beta has no series",
        )
        pod = installed.get("-n", VMS, "pod", f"virt-launcher-{BETA}")
        assert gone["status"]["activePods"] == {pod["metadata"]["uid"]: NODE}
    wait_for(lambda: shows_both(scrape(installed)), "beta is shown again")


def test_outlives_the_api_server(installed: Cluster) -> None:
    """An outage of the API server loses no series, and then the same agent watches again."""
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)
    before, url = tgid(installed), f"http://{agent_pod(installed)['status']['podIP']}:9747"
    up = "hvprobe_vmi_watch_up"
    with without_api_server(installed):
        wait_for(
            lambda: list(samples_of(installed.fetch(f"{url}/metrics"), up).values()) == [0.0],
            "the agent reports that its watch is down",
            60,
        )
        assert shows_both(installed.fetch(f"{url}/metrics"))
    wait_for(
        lambda: list(samples_of(installed.fetch(f"{url}/metrics"), up).values()) == [1.0],
        "the watch is up again",
        60,
    )
    assert tgid(installed) == before
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)


def test_says_that_it_may_not_read(installed: Cluster) -> None:
    """Without its right the agent is not ready and names the right; with it, it becomes ready."""
    with without_right(installed):
        installed.kubectl("-n", NAMESPACE, "delete", "pod", "--all")
        pod = agent_pod(installed)["metadata"]["name"]

        def log() -> str:
            return installed.kubectl_try("-n", NAMESPACE, "logs", pod).stdout

        wait_for(lambda: "forbidden" in log(), "the agent says which right it lacks", 60)
        assert 'cannot list resource "virtualmachineinstances"' in log()
        assert not pod_is_ready(installed, NAMESPACE, pod)
    until_ready(installed, NAMESPACE, pod)
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)


def test_is_wherever_vms_can_be(installed: Cluster) -> None:
    """The agent runs on every node that virt-handler labels, whatever the label says.

    The node's taints do not matter either.
    """
    with node_restored(installed):
        installed.kubectl("label", "node", NODE, f"{VM_NODE_LABEL}-")
        wait_for(lambda: not agent_pods(installed), "no agent runs on a node without the label", 60)
        installed.kubectl("taint", "node", NODE, "dedicated=vms:NoSchedule")
        installed.kubectl("label", "node", NODE, f"{VM_NODE_LABEL}=false")
        until_ready(installed, NAMESPACE, agent_pod(installed)["metadata"]["name"])
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)


def test_has_what_the_manifest_asks_for(installed: Cluster) -> None:
    """containerd gives the agent the manifest's capabilities and a read-only root."""
    status = Path(f"/proc/{tgid(installed)}/status").read_text()
    found = re.search(r"^CapEff:\t(\w+)$", status, re.MULTILINE)
    assert found
    daemonset = rendered("capabilities")
    added = daemonset.container["securityContext"]["capabilities"]["add"]
    given = {f"CAP_{name}" for name in added} & possible_capabilities()
    assert int(found[1], 16) == sum(1 << CAPABILITIES[name] for name in given)
    tried = installed.kubectl_try(
        *("-n", NAMESPACE, "exec", "daemonset/hvprobe", "--", "touch", "/tmp/x")
    )
    assert "Read-only file system" in tried.stderr


def test_upgrades_and_leaves_nothing_behind(
    vms: Cluster, installed: Cluster, tmp_path: Path
) -> None:
    """One variant replaces the other. After the manual's `delete` nothing of hvprobe is left."""
    former = tgid(installed)
    programs = program_ids(former)
    assert programs
    given = manifests("privileged", tmp_path / "own")
    install(installed, given)
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)
    wait_for(lambda: not Path(f"/proc/{former}").exists(), "the former agent has ended", 60)
    assert not any(program_exists(number) for number in programs)
    text = scrape(installed)
    assert samples_of(text, "kubevirt_vmi_hypervisor_fallback")[of_vm(BETA)] == 1.0
    programs = program_ids(tgid(installed))
    assert programs
    vms.kubectl("delete", "-f", "-", given=given)
    wait_for(
        lambda: vms.kubectl_try("get", "namespace", NAMESPACE).returncode != 0,
        "the namespace is gone",
        120,
    )
    assert not any(program_exists(number) for number in programs)
    left = vms.kubectl("get", "clusterrole,clusterrolebinding,priorityclass", "-o", "name")
    assert "hvprobe" not in left
