# SPDX-License-Identifier: Apache-2.0
"""What kustomize makes of deploy/: exactly this, for each overlay, and it fits together."""

from pathlib import Path

import pytest
import yaml

from probes.serve.endpoints import OPEN_TO_ALL
from tests.support.deploy_render import GOLDEN, NAMES, examples, rendered, rendered_beside

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("overlay", NAMES)
def test_renders_the_golden_output(overlay: str) -> None:
    """Each overlay renders as committed (tests/support/deploy_render.py writes the files again)."""
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
    mounts = rendered(overlay).container["volumeMounts"]
    assert [mount for mount in mounts if not mount.get("readOnly")] == []


@pytest.mark.parametrize("overlay", NAMES)
def test_is_scheduled_where_vms_can_be(overlay: str) -> None:
    """The pod runs on every node that virt-handler knows, whatever its taints, and evicts no VM."""
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
    # MustRunAs without a level takes the namespace's, and then the container's has to be the same
    # (apiserver-library-go, sccmatching/matcher.go and selinux/mustrunas.go).
    assert constraint["seLinuxContext"] == {"type": "RunAsAny"}
    assert "level" not in context["seLinuxOptions"]
    assert constraint["readOnlyRootFilesystem"] is context["readOnlyRootFilesystem"] is True
    # A profile that is not named would be refused; names are the old annotations' (the same,
    # seccomp/strategy.go).
    assert context["seccompProfile"] == {"type": "Unconfined"}
    assert "unconfined" in constraint["seccompProfiles"]
    assert objects.pod["hostPID"] is constraint["allowHostPID"] is True
    assert constraint["allowHostDirVolumePlugin"] is True
    assert constraint["allowPrivilegeEscalation"] is context["allowPrivilegeEscalation"] is False
    assert constraint["allowPrivilegedContainer"] is False
    kinds = {kind for volume in objects.pod["volumes"] for kind in volume if kind != "name"}
    # Kubernetes adds the service account's token as a projected volume.
    assert kinds | {"projected", "secret"} == set(constraint["volumes"])
    roles = {role["metadata"]["name"]: role["rules"] for role in objects.of_kind("Role")}
    assert roles.pop("hvprobe-scc")[0]["resourceNames"] == [constraint["metadata"]["name"]]
    # The other is for the platform's Prometheus, which reads only.
    ((rule,),) = roles.values()
    assert rule["verbs"] == ["get", "list", "watch"]
    bindings = objects.of_kind("RoleBinding")
    bound = {binding["roleRef"]["name"]: binding["subjects"] for binding in bindings}
    assert bound["hvprobe-prometheus"][0]["namespace"] == "openshift-monitoring"
    assert bound["hvprobe-scc"][0]["name"] == objects.one("ServiceAccount")["metadata"]["name"]


def test_tls_is_expected_where_it_is_served() -> None:
    """Certificate, mount, flags, probes and PodMonitor of the TLS overlay agree."""
    objects = rendered("tls")
    certificate = next(
        found
        for found in objects.of_kind("Certificate")
        if found["metadata"]["name"] == "hvprobe-tls"
    )["spec"]
    (endpoint,) = objects.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert [endpoint["tlsConfig"]["serverName"]] == certificate["dnsNames"]
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == certificate["secretName"]
    (volume,) = [volume for volume in objects.pod["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    (mount,) = [
        mount for mount in objects.container["volumeMounts"] if mount["name"] == volume["name"]
    ]
    values = {variable["name"]: variable.get("value", "") for variable in objects.container["env"]}
    assert values["HVPROBE_TLS_CERT"] == f"{mount['mountPath']}/tls.crt"
    assert values["HVPROBE_TLS_KEY"] == f"{mount['mountPath']}/tls.key"
    for kind in ("startup", "liveness", "readiness"):
        assert objects.container[f"{kind}Probe"]["httpGet"]["scheme"] == "HTTPS"


def test_tls_admits_the_clients_of_its_ca() -> None:
    """Prometheus gets a certificate of the CA that the agent is given; the probes need none."""
    objects = rendered("tls")
    certificates = {
        certificate["metadata"]["name"]: certificate["spec"]
        for certificate in objects.of_kind("Certificate")
    }
    scraper, server = certificates["hvprobe-scraper"], certificates["hvprobe-tls"]
    assert scraper["issuerRef"] == server["issuerRef"]
    assert "client auth" in scraper["usages"]
    assert "client auth" not in server["usages"]
    (endpoint,) = objects.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["tlsConfig"]["cert"]["secret"]["name"] == scraper["secretName"]
    assert endpoint["tlsConfig"]["keySecret"] == {"name": scraper["secretName"], "key": "tls.key"}
    assert endpoint["tlsConfig"]["ca"]["secret"]["name"] == server["secretName"]
    (mount,) = [mount for mount in objects.container["volumeMounts"] if mount["name"] == "tls"]
    values = {variable["name"]: variable.get("value", "") for variable in objects.container["env"]}
    assert values["HVPROBE_TLS_CLIENT_CA"] == f"{mount['mountPath']}/ca.crt"
    for kind in ("startup", "liveness", "readiness"):
        probe = objects.container[f"{kind}Probe"]["httpGet"]
        assert probe["scheme"] == "HTTPS"
        assert probe["path"] in OPEN_TO_ALL


@pytest.mark.parametrize("overlay", NAMES)
def test_only_monitoring_may_scrape(overlay: str) -> None:
    """The policy admits the pods of one namespace: Prometheus', and on OpenShift the platform's."""
    (rule,) = rendered(overlay).one("NetworkPolicy")["spec"]["ingress"]
    namespace = "openshift-monitoring" if overlay == "openshift" else "monitoring"
    labels = {"kubernetes.io/metadata.name": namespace}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": labels}}]


def test_the_manual_shows_how_to_have_events_written(tmp_path: Path) -> None:
    """Its fourth adds the flag, and the right to create Events, which no variant has otherwise."""
    _, _, _, example, _ = examples("docs/operators.md")
    objects = rendered_beside(tmp_path, example)
    expected = rendered("privileged")
    roles = {role["metadata"]["name"]: role["rules"] for role in objects.of_kind("ClusterRole")}
    assert roles.pop("hvprobe-events") == [
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}
    ]
    assert roles == {"hvprobe": expected.one("ClusterRole")["rules"]}
    (binding,) = [
        found
        for found in objects.of_kind("ClusterRoleBinding")
        if found["metadata"]["name"] == "hvprobe-events"
    ]
    assert binding["roleRef"]["name"] == "hvprobe-events"
    assert binding["subjects"] == expected.one("ClusterRoleBinding")["subjects"]
    objects.container["env"].remove({"name": "HVPROBE_EVENTS", "value": "true"})
    objects.container["image"] = expected.container["image"]
    assert objects.container == expected.container
    assert len(objects.objects) == len(expected.objects) + 2


def test_the_manual_shows_how_to_name_the_image(tmp_path: Path) -> None:
    """The manual's first example is the overlay with an image of one's own, and nothing else."""
    example, _, _, _, _ = examples("docs/operators.md")
    objects = rendered_beside(tmp_path, example)
    expected = rendered("privileged")
    assert objects.container["image"].startswith("registry.example/hvprobe@sha256:")
    objects.container["image"] = expected.container["image"]
    assert objects.objects == expected.objects


def test_the_manual_shows_how_to_do_without_prometheus_operator(tmp_path: Path) -> None:
    """Its second has the agent as in the overlay and no monitoring."""
    _, example, _, _, _ = examples("docs/operators.md")
    objects = rendered_beside(tmp_path, example)
    expected = rendered("capabilities")
    objects.container["image"] = expected.container["image"]
    monitoring = {"PodMonitor", "PrometheusRule"}
    assert objects.objects == tuple(
        found for found in expected.objects if found["kind"] not in monitoring
    )


def test_the_manual_shows_how_to_be_stricter(tmp_path: Path) -> None:
    """Its last leaves all as it is but for the seccomp profile."""
    _, _, _, _, example = examples("docs/operators.md")
    objects = rendered_beside(tmp_path, example)
    context = objects.container["securityContext"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    context["seccompProfile"]["type"] = "Unconfined"
    assert objects.objects == rendered("capabilities").objects


def test_monitoring_can_be_loaded_for_a_release(tmp_path: Path) -> None:
    """The example for kube-prometheus-stack labels PodMonitor and PrometheusRule."""
    (example,) = examples("deploy/monitoring/README.md")
    objects = rendered_beside(tmp_path, example).objects
    assert {found["kind"] for found in objects} == {"PodMonitor", "PrometheusRule"}
    (wanted,) = yaml.safe_load(example)["labels"]
    for found in objects:
        assert found["metadata"]["labels"].items() >= wanted["pairs"].items()
