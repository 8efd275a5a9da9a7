# SPDX-License-Identifier: Apache-2.0
"""The chart and the overlays are one truth: equal choices give equal objects."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import helm_tools
from tests.support.deploy_render import Json
from tests.support.helm_render import (
    NO_MONITORING,
    OWN_NAMESPACE,
    Choice,
    by_identity,
    kustomized,
    rendered_chart,
)
from tests.support.required import require

pytestmark = pytest.mark.timeout(300)
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
TLS: Json = {"mode": "certManager"}
AUTHORIZATION: Json = {"authorization": "kubernetes"}
FLEET: Json = {"fleet": {"enabled": True}}


def patch(kind: str, *operations: tuple[str, str, object]) -> Json:
    """A kustomization's patch of the object hvprobe of a kind."""
    steps = [
        {"op": verb, "path": path} | ({} if verb == "remove" else {"value": value})
        for verb, path, value in operations
    ]
    return {"target": {"kind": kind, "name": "hvprobe"}, "patch": json.dumps(steps)}


NO_SCRAPER: Json = {
    "apiVersion": "cert-manager.io/v1",
    "kind": "Certificate",
    "metadata": {"name": "hvprobe-scraper", "namespace": "hvprobe"},
    "$patch": "delete",
}
_POD = "/spec/template/spec"
_AGENT = f"{_POD}/containers/0"
_TOLERATIONS = [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}]
_RESOURCES = {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
CHOICES: Mapping[str, Choice] = {
    "privileged": Choice(
        values={"variant": "privileged"},
        resources=("overlays/privileged",),
    ),
    "capabilities": Choice(
        values={},
        resources=("overlays/capabilities",),
    ),
    "tls": Choice(
        values={"tls": TLS},
        resources=("overlays/tls",),
    ),
    "openshift": Choice(
        values={"openshift": {"enabled": True}},
        resources=("overlays/openshift",),
    ),
    "openshift-without-monitoring": Choice(
        values={"openshift": {"enabled": True}, "monitoring": NO_MONITORING},
        resources=("base",),
        components=("capabilities", "openshift"),
    ),
    "openshift-tls": Choice(
        values={"openshift": {"enabled": True}, "tls": TLS},
        resources=("overlays/openshift",),
        components=("tls",),
    ),
    "tls-without-client-certificates": Choice(
        values={"tls": {**TLS, "clientCertificates": {"enabled": False}}},
        resources=("overlays/tls",),
        more={
            "patches": [
                {"patch": json.dumps(NO_SCRAPER)},
                patch("DaemonSet", ("remove", "/spec/template/spec/containers/0/env/0", None)),
                patch(
                    "PodMonitor",
                    ("remove", "/spec/podMetricsEndpoints/0/tlsConfig/cert", None),
                    ("remove", "/spec/podMetricsEndpoints/0/tlsConfig/keySecret", None),
                ),
            ]
        },
    ),
    "authorization": Choice(
        values=AUTHORIZATION,
        resources=("overlays/capabilities",),
        components=("authorization",),
    ),
    "authorization-without-monitoring": Choice(
        values={**AUTHORIZATION, "monitoring": NO_MONITORING},
        resources=("base",),
        components=("capabilities", "authorization"),
    ),
    "fleet": Choice(
        values=FLEET,
        resources=("overlays/capabilities",),
        components=("fleet",),
    ),
    "fleet-with-addresses": Choice(
        values={"fleet": {"enabled": True, "apiServerCIDRs": ["192.0.2.0/28", "2001:db8::/64"]}},
        resources=("overlays/capabilities",),
        components=("fleet",),
        more={
            "patches": [
                patch(
                    "NetworkPolicy",
                    (
                        *("add", "/spec/ingress/1/from"),
                        [
                            {"ipBlock": {"cidr": "192.0.2.0/28"}},
                            {"ipBlock": {"cidr": "2001:db8::/64"}},
                        ],
                    ),
                )
            ]
        },
    ),
    "any-namespace": Choice(
        values={"networkPolicy": {"monitoringNamespaces": ["*"]}},
        resources=("overlays/capabilities",),
        components=("any-namespace",),
    ),
    "openshift-authorization-fleet": Choice(
        values={"openshift": {"enabled": True}, "tls": TLS, **AUTHORIZATION, **FLEET},
        resources=("overlays/openshift",),
        components=("tls", "authorization", "fleet"),
    ),
    "everything-on-privileged": Choice(
        values={
            "variant": "privileged",
            "tls": TLS,
            "events": True,
            **AUTHORIZATION,
            **FLEET,
            "networkPolicy": {"monitoringNamespaces": ["*"]},
        },
        resources=("overlays/privileged",),
        components=("tls", "authorization", "events", "fleet", "any-namespace"),
    ),
    "events": Choice(
        values={"events": True},
        resources=("overlays/capabilities",),
        components=("events",),
    ),
    "without-monitoring": Choice(
        values={"variant": "privileged", "monitoring": NO_MONITORING},
        resources=("base",),
        components=("privileged",),
    ),
    "digest": Choice(
        values={"image": {"repository": "registry.example/hvprobe", "digest": DIGEST}},
        resources=("overlays/capabilities",),
        more={
            "images": [{"name": "hvprobe", "newName": "registry.example/hvprobe", "digest": DIGEST}]
        },
    ),
    "tag": Choice(
        values={"image": {"repository": "registry.example/hvprobe", "tag": "9.9"}},
        resources=("overlays/capabilities",),
        more={
            "images": [{"name": "hvprobe", "newName": "registry.example/hvprobe", "newTag": "9.9"}]
        },
    ),
    "seccomp": Choice(
        values={"seccompProfile": "RuntimeDefault"},
        resources=("overlays/capabilities",),
        more={
            "patches": [
                patch(
                    "DaemonSet",
                    ("replace", f"{_AGENT}/securityContext/seccompProfile/type", "RuntimeDefault"),
                )
            ]
        },
    ),
    "own-settings": Choice(
        values={
            "vcpuStats": True,
            "logging": {"format": "json", "level": "warning"},
            "extraArgs": ["--ledger-capacity", "8192"],
            "resources": _RESOURCES,
            "tolerations": _TOLERATIONS,
            "nodeSelector": {"pool": "vms"},
            "affinity": {"nodeAffinity": None, "podAffinity": {}},
            "updateStrategy": {"maxUnavailable": 2},
            "priorityClass": {"name": "hvprobe", "value": 2000000},
            "image": {"pullPolicy": "Always", "pullSecrets": ["registry"]},
            "networkPolicy": {"monitoringNamespaces": ["metrics"], "apiServerPorts": [8443]},
            "monitoring": {"labels": {"release": "kube-prometheus-stack"}},
        },
        resources=("overlays/capabilities",),
        more={
            "patches": [
                patch(
                    "DaemonSet",
                    (
                        *("add", f"{_AGENT}/env/0"),
                        {"name": "HVPROBE_LOG_LEVEL", "value": "warning"},
                    ),
                    ("add", f"{_AGENT}/env/0", {"name": "HVPROBE_LOG_FORMAT", "value": "json"}),
                    ("add", f"{_AGENT}/env/0", {"name": "HVPROBE_VCPU_STATS", "value": "true"}),
                    ("replace", f"{_AGENT}/args", ["agent", "--ledger-capacity", "8192"]),
                    ("replace", f"{_AGENT}/resources", _RESOURCES),
                    ("replace", f"{_AGENT}/imagePullPolicy", "Always"),
                    ("replace", f"{_POD}/tolerations", _TOLERATIONS),
                    ("add", f"{_POD}/nodeSelector", {"pool": "vms"}),
                    ("replace", f"{_POD}/affinity", {"podAffinity": {}}),
                    ("add", f"{_POD}/imagePullSecrets", [{"name": "registry"}]),
                    ("replace", "/spec/updateStrategy/rollingUpdate/maxUnavailable", 2),
                ),
                patch("PriorityClass", ("replace", "/value", 2000000)),
                patch(
                    "NetworkPolicy",
                    (
                        *("replace", "/spec/ingress/0/from/0/namespaceSelector"),
                        {"matchLabels": {"kubernetes.io/metadata.name": "metrics"}},
                    ),
                    ("replace", "/spec/egress/0/ports", [{"port": 8443, "protocol": "TCP"}]),
                ),
                *(
                    patch(kind, ("add", "/metadata/labels/release", "kube-prometheus-stack"))
                    for kind in ("PodMonitor", "PrometheusRule")
                ),
            ]
        },
    ),
}
"""Values, and the kustomization that chooses the same. The chart makes the namespace as well."""


@pytest.mark.parametrize("name", CHOICES)
def test_the_chart_renders_what_kustomize_renders(name: str, tmp_path: Path) -> None:
    """Each object is equal, field by field and in the order of lists, but for helm's labels."""
    require("helm", helm_tools.missing())
    choice = CHOICES[name]
    chart = by_identity(rendered_chart({**choice.values, **OWN_NAMESPACE}))
    overlay = by_identity(kustomized(tmp_path, choice.kustomization))
    assert sorted(chart) == sorted(overlay)
    for identity, expected in overlay.items():
        assert chart[identity] == expected, identity
