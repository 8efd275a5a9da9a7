# SPDX-License-Identifier: Apache-2.0
"""The Helm chart by the real helm: lint, renderings, refused values, notes and package."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import helm_tools
from tests.support.deploy_render import ROOT, Json
from tests.support.helm_render import (
    CHART,
    GOLDEN,
    GOLDEN_VALUES,
    NO_MONITORING,
    rendered_chart,
    run_helm,
    template,
)
from tests.support.required import require

pytestmark = pytest.mark.timeout(300)
SECRET: Json = {"mode": "secret", "secret": {"name": "own"}}
NOT_A_VALUE = ("global",)
"""Keys of the schema that Helm itself sets for charts inside another chart."""


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("helm", helm_tools.missing())


def test_passes_helms_own_lint() -> None:
    """`helm lint --strict` finds no fault and no warning."""
    done = run_helm("lint", "--strict", "--quiet", CHART)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", GOLDEN_VALUES)
def test_renders_the_golden_output(name: str) -> None:
    """The chart renders as committed (tests/support/helm_render.py writes the files again)."""
    assert rendered_chart(GOLDEN_VALUES[name]).text == (GOLDEN / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"variant": "root"},
            "- at '/variant': value must be one of 'capabilities', 'privileged'",
        ),
        ({"imge": {"tag": "1"}}, "- at '': additional properties 'imge' not allowed"),
        ({"image": {"tga": "1"}}, "- at '/image': additional properties 'tga' not allowed"),
        (
            {"image": {"digest": "sha256:12"}},
            "- at '/image/digest': 'sha256:12' does not match pattern '^(sha256:[0-9a-f]{64})?$'",
        ),
        (
            {"tls": {"mode": "certmanager"}},
            "- at '/tls/mode': value must be one of "
            + ", ".join(("'off'", "false", "'selfSigned'", "'certManager'", "'secret'")),
        ),
        (
            {"authorization": "rbac"},
            "- at '/authorization': value must be one of 'none', 'kubernetes'",
        ),
        (
            {"tls": {"selfSigned": {"validityDays": 1}}},
            "- at '/tls/selfSigned/validityDays': minimum: got 1, want 3",
        ),
        ({"openshift": {"enabled": "yes"}}, "- at '/openshift/enabled': got string, want boolean"),
        ({"extraArgs": "--events"}, "- at '/extraArgs': got string, want array"),
        (
            {"networkPolicy": {"apiServerPorts": [70000]}},
            "- at '/networkPolicy/apiServerPorts/0': maximum: got 70,000, want 65,535",
        ),
        (
            {"logging": {"level": "trace"}},
            "- at '/logging/level': value must be one of '', 'debug', 'info', 'warning', 'error'",
        ),
    ],
)
def test_the_schema_refuses_a_wrong_value(values: Json, line: str) -> None:
    """One line names the value and says what is expected."""
    done = template(values)
    assert done.returncode != 0
    assert [found for found in done.stderr.splitlines() if found.startswith("- at")] == [line]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"openshift": {"enabled": True}, "variant": "privileged"},
            "openshift.enabled needs variant: capabilities",
        ),
        (
            {"seccompProfile": "RuntimeDefault", "variant": "privileged"},
            "seccompProfile needs variant: capabilities",
        ),
        ({"tls": {"mode": "secret"}}, "tls.mode secret needs tls.secret.name"),
        ({"tls": {"secret": {"name": "own"}}}, "tls.secret.name is set, but tls.mode is off"),
        ({"tls": SECRET}, "tls.mode secret needs tls.clientCertificates.secretName"),
        ({"fleet": {"apiServerCIDRs": ["192.0.2.0/28"]}}, "but fleet.enabled is false"),
        ({"namespace": {"create": True}}, "namespace.create cannot make the namespace"),
        ({"priorityClass": {"name": ""}}, "priorityClass.create needs priorityClass.name"),
    ],
)
def test_refuses_values_that_contradict_each_other(values: Json, reason: str) -> None:
    """A sentence says which other value is needed."""
    done = template(values)
    assert done.returncode != 0
    assert reason in done.stderr


def test_accepts_off_without_quotes() -> None:
    """YAML reads it as false, which the chart takes for "off"."""
    assert yaml.safe_load("off") is False
    assert rendered_chart({"tls": {"mode": False}}).text == rendered_chart({}).text


def test_serves_with_a_secret_that_exists() -> None:
    """With mode secret nothing of cert-manager is made, and pods and Prometheus use the Secrets."""
    clients = {"secretName": "scraper"}
    tls = {**SECRET, "serverName": "agents.example", "clientCertificates": clients}
    chart = rendered_chart({"tls": tls})
    assert chart.of_kind("Certificate") + chart.of_kind("Issuer") == []
    (volume,) = [volume for volume in chart.pod["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == "own"
    (endpoint,) = chart.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {
        "serverName": "agents.example",
        "ca": {"secret": {"name": "own", "key": "ca.crt"}},
        "cert": {"secret": {"name": "scraper", "key": "tls.crt"}},
        "keySecret": {"name": "scraper", "key": "tls.key"},
    }


def test_a_secret_without_a_certificate_for_prometheus() -> None:
    """A token replaces it, and so does an agent that asks for none; the agents' flags agree."""
    for more, wanted in (
        ({"tls": SECRET, "authorization": "kubernetes"}, True),
        ({"tls": {**SECRET, "clientCertificates": {"enabled": False}}}, False),
    ):
        chart = rendered_chart(more)
        (endpoint,) = chart.one("PodMonitor")["spec"]["podMetricsEndpoints"]
        assert "cert" not in endpoint["tlsConfig"]
        assert ("authorization" in endpoint) is wanted
        names = {variable["name"] for variable in chart.container["env"]}
        assert ({"HVPROBE_TLS_CLIENT_CA", "HVPROBE_AUTHORIZATION"} <= names) is wanted


def test_takes_an_issuer_of_the_cluster() -> None:
    """With issuerRef both certificates come from it, and hvprobe makes no CA."""
    issuer = {"name": "vault", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    tls = {"mode": "certManager", "certManager": {"issuerRef": issuer}}
    chart = rendered_chart({"tls": tls})
    assert chart.of_kind("Issuer") == []
    issuers = [found["spec"]["issuerRef"] for found in chart.of_kind("Certificate")]
    assert issuers == [issuer, issuer]


def namespaces(node: object) -> Iterator[str]:
    """All values of fields that name a namespace, wherever they are in an object."""
    if isinstance(node, list):
        for each in node:
            yield from namespaces(each)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == "namespace" and isinstance(value, str):
                yield value
            elif name == "matchNames":
                yield from value
            elif name == "dnsNames":
                yield from (host.split(".")[1] for host in value)
            elif name != "groups":  # rules are about the namespaces of VMs
                yield from namespaces(value)


@pytest.mark.parametrize("namespace", ["monitoring", "1234"])
def test_works_in_any_namespace(namespace: str) -> None:
    """Every object is in the release's namespace and names no other one, digits or not."""
    more = {"authorization": "kubernetes", "fleet": {"enabled": True}}
    chart = rendered_chart({"tls": {"mode": "certManager"}, **more}, namespace)
    assert set(namespaces(list(chart.objects))) == {namespace}
    (endpoint,) = chart.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["tlsConfig"]["serverName"] == f"metrics.{namespace}.svc"


def test_has_the_dashboard_for_grafanas_sidecar() -> None:
    """The ConfigMap holds the file of deploy/monitoring, and has the label that is searched."""
    chart = rendered_chart({"monitoring": {"dashboard": {"enabled": True}}})
    dashboard = chart.one("ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    held = json.loads(dashboard["data"]["hvprobe.json"])
    assert held == json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())


def test_has_the_dashboard_for_perses() -> None:
    """It is the file of deploy/monitoring in the agents' namespace, without a datasource."""
    values = {"monitoring": {"persesDashboard": {"enabled": True, "labels": {"team": "vms"}}}}
    dashboard = rendered_chart(values, "vms-seen").one("PersesDashboard")
    shipped = yaml.safe_load((ROOT / "deploy/monitoring/perses-dashboard.yaml").read_text())
    assert dashboard["spec"] == shipped["spec"]
    assert dashboard["metadata"]["namespace"] == "vms-seen"
    assert shipped["metadata"]["labels"].items() <= dashboard["metadata"]["labels"].items()
    assert dashboard["metadata"]["labels"]["team"] == "vms"


def test_gives_the_perses_dashboard_its_datasource() -> None:
    """With a name, each query and variable uses that datasource, and nothing else changes."""
    perses = {"enabled": True, "datasource": "thanos-querier"}
    chart = rendered_chart({"monitoring": {"persesDashboard": perses}})
    config = chart.one("PersesDashboard")["spec"]["config"]
    plugins = [variable["spec"]["plugin"]["spec"] for variable in config["variables"]]
    plugins += [
        query["spec"]["plugin"]["spec"]
        for panel in config["panels"].values()
        for query in panel["spec"]["queries"]
    ]
    for plugin in plugins:
        named = {"kind": "PrometheusDatasource", "name": "thanos-querier"}
        assert plugin.pop("datasource") == named
    shipped = yaml.safe_load((ROOT / "deploy/monitoring/perses-dashboard.yaml").read_text())
    assert config == shipped["spec"]["config"]


def test_uses_a_priority_class_that_exists() -> None:
    """With create false the class of that name is used, and without a name none."""
    other = rendered_chart({"priorityClass": {"create": False, "name": "system-node-critical"}})
    assert other.of_kind("PriorityClass") == []
    assert other.pod["priorityClassName"] == "system-node-critical"
    none = rendered_chart({"priorityClass": {"create": False, "name": ""}})
    assert "priorityClassName" not in none.pod


def test_can_do_without_the_network_policy() -> None:
    """A cluster whose administrators write their own gets none."""
    assert rendered_chart({"networkPolicy": {"enabled": False}}).of_kind("NetworkPolicy") == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "named by a tag"),
        ({"monitoring": NO_MONITORING}, "No PodMonitor was made"),
        ({}, "Every pod of the namespaces in networkPolicy.monitoringNamespaces can read"),
        ({"networkPolicy": {"enabled": False}}, "Every pod of the cluster can read"),
        (
            {"networkPolicy": {"monitoringNamespaces": ["*"]}},
            "Every pod of the cluster can read",
        ),
        ({"authorization": "kubernetes"}, "Clients send their tokens unencrypted"),
        ({"tls": {"mode": "selfSigned"}}, "They end 3650 days after they were made"),
        (
            {"fleet": {"enabled": True}},
            "kubectl -n vms-seen create rolebinding sre-fleet --clusterrole hvprobe-fleet-agents",
        ),
        ({"openshift": {"enabled": True}}, "openshift.io/cluster-monitoring=true"),
    ],
)
def test_the_notes_say_how_to_verify(values: Json, said: str) -> None:
    """NOTES.txt has the manual's commands for this namespace, and what the choice needs besides."""
    command = ("install", "hvprobe", CHART, "--namespace", "vms-seen", "--dry-run=client")
    done = run_helm(*command, "--values", "-", given=json.dumps(values))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.rpartition("NOTES:")[2]
    assert "kubectl -n vms-seen exec daemonset/hvprobe -- hvprobe doctor" in notes
    assert "kubectl -n vms-seen exec daemonset/hvprobe -- hvprobe live --once" in notes
    assert said in notes


def test_the_package_holds_the_files_themselves(tmp_path: Path) -> None:
    """`helm package` follows the links to deploy/monitoring, and the package renders the same."""
    done = run_helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("hvprobe-*.tgz")
    with tarfile.open(package) as packed:
        for name in (
            "podmonitor.yaml",
            "prometheusrule.yaml",
            "dashboard.json",
            "perses-dashboard.yaml",
        ):
            member = packed.extractfile(f"hvprobe/files/{name}")
            assert member is not None
            assert member.read() == (ROOT / "deploy/monitoring" / name).read_bytes()
    rendered = run_helm("template", "hvprobe", package)
    assert rendered.stdout == rendered_chart({}).text


def leaves(schema: Json, prefix: str = "") -> Iterator[str]:
    """The paths of the schema's values; an object that lists no values is one itself."""
    for name, found in schema["properties"].items():
        path = f"{prefix}{name}"
        if path in NOT_A_VALUE:
            continue
        inner = found.get("properties")
        if inner and not found.get("description"):
            yield from leaves(found, f"{path}.")
        else:
            yield path


def test_the_readme_has_a_row_for_each_value() -> None:
    """The values of README.md, of the schema and of values.yaml are the same, in this order."""
    rows = re.findall(r"^\| `([a-zA-Z.]+)` \|", (CHART / "README.md").read_text(), re.MULTILINE)
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert rows == list(leaves(schema))
    for row in rows:
        held = defaults
        for name in row.split("."):
            held = held[name]
