# SPDX-License-Identifier: Apache-2.0
"""The chart as the real helm renders it, and kustomizations as the real kubectl renders them.

Owns what helm is asked, and the choices that both ways of installation offer. ``python -m
tests.support.helm_render`` writes what the chart renders now to tests/golden/helm.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.deploy_render import ROOT, Json, Rendered
from tests.support.helm_tools import helm, kubectl

CHART = ROOT / "deploy/helm/hvprobe"
GOLDEN = ROOT / "tests/golden/helm"
HELM_LABELS = ("app.kubernetes.io/managed-by", "helm.sh/chart")
"""The labels that only the chart's objects have."""
OWN_NAMESPACE: Json = {"namespace": {"name": "hvprobe", "create": True}}
"""Values with which the chart makes the namespace, as the overlays do."""
NO_MONITORING: Json = {"podMonitor": {"enabled": False}, "prometheusRule": {"enabled": False}}
GOLDEN_VALUES: Mapping[str, Json] = {
    "defaults": {},
    "privileged": {"variant": "privileged", "monitoring": NO_MONITORING, "events": True},
    "openshift": {**OWN_NAMESPACE, "openshift": {"enabled": True}, "monitoring": NO_MONITORING},
    "tls": {
        "tls": {"mode": "certManager"},
        "monitoring": {"prometheusRule": {"enabled": False}},
    },
    "authorization": {
        "authorization": "kubernetes",
        "fleet": {"enabled": True, "apiServerCIDRs": ["192.0.2.0/28"]},
        "monitoring": {"prometheusRule": {"enabled": False}},
    },
}
"""The choices whose renderings are in tests/golden/helm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What an operator chooses, as values of the chart and as a kustomization beside deploy/."""

    values: Json
    resources: tuple[str, ...]
    components: tuple[str, ...] = ()
    more: Json = field(default_factory=dict)

    @property
    def kustomization(self) -> str:
        text: str = yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"../deploy/{name}" for name in self.resources],
                "components": [f"../deploy/components/{name}" for name in self.components],
                **self.more,
            }
        )
        return text


def run_helm(*words: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm, which reaches no cluster. given: standard input."""
    return subprocess.run(
        [helm(), *words], check=False, capture_output=True, text=True, input=given
    )


def template(values: Json, namespace: str = "default") -> subprocess.CompletedProcess[str]:
    """The result of `helm template` of the chart with these values."""
    command = ("template", "hvprobe", CHART, "--namespace", namespace, "--values", "-")
    return run_helm(*command, given=json.dumps(values))


def rendered_chart(values: Json, namespace: str = "default") -> Rendered:
    """What the chart renders. Raises AssertionError with helm's error when it refuses values."""
    done = template(values, namespace)
    assert done.returncode == 0, done.stderr
    objects = tuple(found for found in yaml.safe_load_all(done.stdout) if found is not None)
    return Rendered(text=done.stdout, objects=objects)


def kustomized(tmp_path: Path, kustomization: str) -> Rendered:
    """What `kubectl kustomize` makes of a kustomization in a folder beside deploy/."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(kustomization)
    done = subprocess.run(
        [kubectl(), "kustomize", own], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Rendered(text=done.stdout, objects=tuple(yaml.safe_load_all(done.stdout)))


def by_identity(rendered: Rendered) -> dict[str, Any]:
    """Objects by kind, namespace and name, without the labels that only helm gives."""
    made: dict[str, Any] = {}
    for found in rendered.objects:
        metadata = dict(found["metadata"])
        labels = {
            name: value
            for name, value in metadata.pop("labels", {}).items()
            if name not in HELM_LABELS
        }
        if labels:
            metadata["labels"] = labels
        identity = f"{found['kind']} {metadata.get('namespace', '-')}/{metadata['name']}"
        assert identity not in made
        made[identity] = {**found, "metadata": metadata}
    return made


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, values in GOLDEN_VALUES.items():
        (GOLDEN / f"{name}.yaml").write_text(rendered_chart(values).text)


if __name__ == "__main__":
    main()
