# SPDX-License-Identifier: Apache-2.0
"""The PodMonitor as shipped, translated to a scrape job as prometheus-operator does it.

Owns the way from a PodMonitor and pods to a plain Prometheus configuration, so no test has a copy
of the relabelling. prometheus-operator generates the relabelling of a pod's labels first and adds
the PodMonitor's own after it (``generatePodMonitorConfig`` in its pkg/prometheus/promcfg.go).
Instead of Kubernetes' service discovery, the targets are listed with the meta labels that it gives
to a pod. Must not know what is scraped.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.rule_files import MONITORING

POD_MONITOR = MONITORING / "podmonitor.yaml"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod of an agent, as its API object describes it, and where it can be reached."""

    name: str
    node: str
    address: str
    """``host:port`` of the port ``metrics``."""
    path: str | None = None
    """Where the metrics are, if not where the PodMonitor says."""

    @property
    def target(self) -> Json:
        """The pod as one target group of Prometheus."""
        labels = {
            "__meta_kubernetes_namespace": "hvprobe",
            "__meta_kubernetes_pod_name": self.name,
            "__meta_kubernetes_pod_node_name": self.node,
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_container_name": "agent",
            "__meta_kubernetes_pod_container_port_name": "metrics",
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": "hvprobe",
            "__meta_kubernetes_pod_labelpresent_app_kubernetes_io_name": "true",
        }
        if self.path is not None:
            labels["__metrics_path__"] = self.path
        return {"targets": [self.address], "labels": labels}


def shipped() -> Json:
    """The PodMonitor of deploy/monitoring."""
    monitor: Json = yaml.safe_load(POD_MONITOR.read_text(encoding="utf-8"))
    return monitor


def scrape_job(discovery: Json, *, interval: str, monitor: Json | None = None) -> Json:
    """The scrape job of a PodMonitor: the shipped one unless another is given.

    discovery: ``listed`` or ``in_file``. interval: instead of the PodMonitor's, for tests that
    cannot wait as long.
    """
    monitor = shipped() if monitor is None else monitor
    spec, metadata = monitor["spec"], monitor["metadata"]
    (endpoint,) = spec["podMetricsEndpoints"]
    return {
        "job_name": f"podMonitor/{metadata['namespace']}/{metadata['name']}/0",
        "honor_labels": endpoint.get("honorLabels", False),
        "scrape_interval": interval,
        "scrape_timeout": _not_longer(endpoint["scrapeTimeout"], interval),
        "metrics_path": endpoint["path"],
        "scheme": endpoint["scheme"],
        **discovery,
        "relabel_configs": [
            *_generated(spec, metadata, endpoint),
            *map(_relabeling, endpoint.get("relabelings", [])),
        ],
        "metric_relabel_configs": [*map(_relabeling, endpoint.get("metricRelabelings", []))],
    }


def listed(pods: Iterable[Pod]) -> Json:
    """Discovery of pods that stay as they are."""
    return {"static_configs": [pod.target for pod in pods]}


def in_file(path: Path) -> Json:
    """Discovery of the pods that `write_pods` has written last. Prometheus watches the file."""
    return {"file_sd_configs": [{"files": [str(path)], "refresh_interval": "1s"}]}


def write_pods(path: Path, pods: Iterable[Pod]) -> None:
    """Replace the discovered pods at once, as the API server's answer would."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps([pod.target for pod in pods]), encoding="utf-8")
    new.replace(path)


def _generated(spec: Json, metadata: Json, endpoint: Json) -> list[Json]:
    """What prometheus-operator writes before the PodMonitor's own relabelling."""
    made: list[Json] = [
        {"source_labels": ["job"], "target_label": "__tmp_prometheus_job_name"},
        {
            "source_labels": ["__meta_kubernetes_pod_phase"],
            "regex": "(Failed|Succeeded)",
            "action": "drop",
        },
    ]
    for name, value in spec["selector"]["matchLabels"].items():
        label = _meta(name)
        made.append(
            {
                "source_labels": [
                    f"__meta_kubernetes_pod_label_{label}",
                    f"__meta_kubernetes_pod_labelpresent_{label}",
                ],
                "regex": f"({value});true",
                "action": "keep",
            }
        )
    made.append(
        {
            "source_labels": ["__meta_kubernetes_pod_container_port_name"],
            "regex": endpoint["port"],
            "action": "keep",
        }
    )
    for source, target in (
        ("namespace", "namespace"),
        ("pod_container_name", "container"),
        ("pod_name", "pod"),
    ):
        made.append(
            {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": target},
        )
    made.append(
        {"target_label": "job", "replacement": f"{metadata['namespace']}/{metadata['name']}"}
    )
    if "jobLabel" in spec:
        made.append(
            {
                "source_labels": [f"__meta_kubernetes_pod_label_{_meta(spec['jobLabel'])}"],
                "target_label": "job",
                "regex": "(.+)",
                "replacement": "$1",
            }
        )
    made.append({"target_label": "endpoint", "replacement": endpoint["port"]})
    return made


def _meta(label: str) -> str:
    """The label's name as service discovery writes it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _relabeling(given: Json) -> Json:
    """A relabelling of the custom resource in the words of Prometheus' configuration."""
    return {re.sub(r"([A-Z])", r"_\1", name).lower(): value for name, value in given.items()}


def _not_longer(timeout: str, interval: str) -> str:
    """The timeout, or the interval if that is shorter: Prometheus refuses a longer timeout."""
    return min(timeout, interval, key=lambda text: int(text.removesuffix("s")))
