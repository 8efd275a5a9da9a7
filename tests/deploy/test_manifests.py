"""What kustomize makes of deploy/: exactly this, for each overlay, and it fits together."""

from pathlib import Path

import pytest
from deploy_render import GOLDEN, NAMES, rendered, rendered_at

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("overlay", NAMES)
def test_renders_the_golden_output(overlay: str) -> None:
    """Each overlay renders as committed (tests/deploy/deploy_render.py writes the files anew)."""
    assert rendered(overlay).text == (GOLDEN / f"{overlay}.yaml").read_text()


@pytest.mark.parametrize("overlay", NAMES)
def test_asks_the_cluster_for_vmis_only(overlay: str) -> None:
    """The only right in the cluster is to read VirtualMachineInstances."""
    role = rendered(overlay).one("ClusterRole")
    assert role["rules"] == [
        {
            "apiGroups": ["kubevirt.io"],
            "resources": ["virtualmachineinstances"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    binding = rendered(overlay).one("ClusterRoleBinding")
    account = rendered(overlay).one("ServiceAccount")["metadata"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]


@pytest.mark.parametrize("overlay", NAMES)
def test_monitoring_finds_the_agents(overlay: str) -> None:
    """PodMonitor and NetworkPolicy select the DaemonSet's pods, by its port's name."""
    objects = rendered(overlay)
    template = objects.one("DaemonSet")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    monitor, policy = objects.one("PodMonitor")["spec"], objects.one("NetworkPolicy")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= labels
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert objects.one("DaemonSet")["spec"]["selector"]["matchLabels"].items() <= labels
    assert monitor["namespaceSelector"]["matchNames"] == [
        objects.one("Namespace")["metadata"]["name"]
    ]
    (port,) = objects.container["ports"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert port["name"] == endpoint["port"] == "metrics"
    assert policy["ingress"][0]["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    probes = [objects.container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness")]
    assert {probe["port"] for probe in probes} == {"metrics"}


@pytest.mark.parametrize("overlay", NAMES)
def test_mounts_nothing_else_of_the_node(overlay: str) -> None:
    """Of the node the pod gets its process numbers and tracefs, read-only."""
    pod = rendered(overlay).pod
    assert pod["hostPID"] is True
    assert not {"hostNetwork", "hostIPC"} & set(pod)
    hosts = [volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume]
    assert hosts == ["/sys/kernel/tracing"]
    writable = [it for it in rendered(overlay).container["volumeMounts"] if not it.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]


@pytest.mark.parametrize("overlay", NAMES)
def test_is_scheduled_where_vms_can_be(overlay: str) -> None:
    """Every node that virt-handler knows, whatever its taints, and no VM is displaced for it."""
    pod = rendered(overlay).pod
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert {"key": "kubevirt.io/schedulable", "operator": "Exists"} in term["matchExpressions"]
    assert pod["tolerations"] == [{"operator": "Exists"}]
    priority = rendered(overlay).one("PriorityClass")
    assert pod["priorityClassName"] == priority["metadata"]["name"]
    assert priority["preemptionPolicy"] == "Never"


def test_openshift_permits_what_is_asked_for() -> None:
    """The security context constraint allows the pod's own wishes and no capability more."""
    objects = rendered("openshift")
    constraint = objects.one("SecurityContextConstraints")
    context = objects.container["securityContext"]
    assert sorted(constraint["allowedCapabilities"]) == sorted(context["capabilities"]["add"])
    assert constraint["seLinuxContext"]["seLinuxOptions"] == context["seLinuxOptions"]
    assert constraint["readOnlyRootFilesystem"] is context["readOnlyRootFilesystem"] is True
    assert constraint["allowPrivilegedContainer"] is False
    kinds = {kind for volume in objects.pod["volumes"] for kind in volume if kind != "name"}
    # Kubernetes adds the service account's token as a projected volume.
    assert kinds | {"projected", "secret"} == set(constraint["volumes"])
    assert objects.one("Role")["rules"][0]["resourceNames"] == [constraint["metadata"]["name"]]


def test_tls_is_expected_where_it_is_served() -> None:
    """Certificate, mount, flags, probes and PodMonitor of the TLS overlay agree."""
    objects = rendered("tls")
    certificate = next(
        it for it in objects.of_kind("Certificate") if it["metadata"]["name"] == "hvprobe-tls"
    )["spec"]
    (endpoint,) = objects.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert [endpoint["tlsConfig"]["serverName"]] == certificate["dnsNames"]
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == certificate["secretName"]
    (volume,) = [it for it in objects.pod["volumes"] if "secret" in it]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    (mount,) = [it for it in objects.container["volumeMounts"] if it["name"] == volume["name"]]
    values = {it["name"]: it.get("value", "") for it in objects.container["env"]}
    assert values["HVPROBE_TLS_CERT"] == f"{mount['mountPath']}/tls.crt"
    assert values["HVPROBE_TLS_KEY"] == f"{mount['mountPath']}/tls.key"
    for kind in ("startup", "liveness", "readiness"):
        assert objects.container[f"{kind}Probe"]["httpGet"]["scheme"] == "HTTPS"


def test_the_kvm_device_can_be_asked_for(tmp_path: Path) -> None:
    """The component kvm-device adds KubeVirt's device to the capabilities variant, nothing else."""
    deploy = GOLDEN.parents[2] / "deploy"
    copied = tmp_path / "deploy"
    copied.symlink_to(deploy)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "resources: [../deploy/overlays/capabilities]\n"
        "components: [../deploy/components/kvm-device]\n"
    )
    container = rendered_at(overlay).container
    assert container["resources"]["limits"].pop("devices.kubevirt.io/kvm") == "1"
    assert container == rendered("capabilities").container
