# SPDX-License-Identifier: Apache-2.0
"""The pods of the test API server, and the proxy to what listens in them.

The proxy does what kube-apiserver does (pkg/registry/core/pod and apimachinery's proxy handler): it
passes the path and the headers on, but not Authorization, which authentication has removed; it
checks no certificate of a pod and shows none of its own; and what it cannot reach is a Status 503.
"""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.apistore import JsonObject, matcher

LIST = re.compile(r"/api/v1(?:/namespaces/([^/]+))?/pods")
PROXY = re.compile(
    r"/api/v1/namespaces/([^/]+)/pods/(?:(https?):)?([^/:]+)(?::([0-9]+))?/proxy(/.*)"
)
TOKEN = re.compile(r"/api/v1/namespaces/([^/]+)/serviceaccounts/([^/]+)/token")
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}
PORT = 9747


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxied:
    """What the proxy sends back."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class UnreachableError(Exception):
    """The proxy cannot reach a pod; the message is Kubernetes'."""


@dataclass(slots=True)
class PodStore:
    """The pods of the cluster, and where those that listen really listen."""

    objects: list[JsonObject] = field(default_factory=list)
    addresses: dict[tuple[str, str], int] = field(default_factory=dict)
    """Port on the loopback address, by namespace and name."""
    may_list: set[str | None] = field(default_factory=lambda: {None})
    """Namespaces in which every user may list pods; None: in all."""
    may_proxy: bool = True
    may_have_token: bool = True
    seen: list[dict[str, str]] = field(default_factory=list)
    """Headers of the requests that reached pods, names in lower case."""
    page: int = 2
    """Pods in one page of a list, however many are requested, so that lists have several."""

    def add(
        self,
        node: str | None,
        *,
        port: int | None = None,
        namespace: str = "hvprobe",
        name: str | None = None,
        https: bool = False,
        phase: str = "Running",
        waiting: str | None = None,
    ) -> JsonObject:
        """Add an agent's pod as deploy/ makes it. port is where it really listens."""
        name = name or f"hvprobe-{node}"
        probe = {"httpGet": {"path": "/readyz", "port": "metrics"}}
        if https:
            probe["httpGet"]["scheme"] = "HTTPS"
        ports = [{"name": "metrics", "containerPort": PORT, "protocol": "TCP"}]
        state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
        pod: JsonObject = {
            "metadata": {
                "namespace": namespace,
                "name": name,
                "creationTimestamp": f"2026-01-01T00:00:{len(self.objects):02}Z",
                "labels": {"app.kubernetes.io/name": "hvprobe"},
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "agent", "ports": ports, "readinessProbe": probe}],
            },
            "status": {
                "phase": phase,
                "containerStatuses": [{"name": "agent", "state": state, "ready": not waiting}],
            },
        }
        self.objects.append(pod)
        if port is not None:
            self.addresses[(namespace, name)] = port
        return pod

    def listed(self, namespace: str | None, params: Mapping[str, str]) -> JsonObject:
        """Return one page of a list."""
        matches = matcher(params.get("labelSelector", ""), "", namespace)
        found = [pod for pod in self.objects if matches(pod)]
        start = int(params.get("continue") or 0)
        end = start + min(self.page, int(params.get("limit") or self.page))
        metadata = {"resourceVersion": "1"}
        if end < len(found):
            metadata["continue"] = str(end)
        return {
            "kind": "PodList",
            "apiVersion": "v1",
            "metadata": metadata,
            "items": found[start:end],
        }

    def proxied(self, found: re.Match[str], query: str, headers: Mapping[str, str]) -> Proxied:
        """Send a request on to a pod. Raises UnreachableError when nothing answers there."""
        namespace, scheme, name, _, path = found.groups()
        port = self.addresses.get((namespace, name))
        if port is None:
            raise UnreachableError("dial tcp 10.0.0.7:9747: connect: connection refused")
        passed = {key: value for key, value in headers.items() if key.lower() != "authorization"}
        self.seen.append({key.lower(): value for key, value in passed.items()})
        connection: http.client.HTTPConnection
        if scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", f"{path}?{query}" if query else path, headers=passed)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as err:
            raise UnreachableError(f"read tcp 10.0.0.7:9747: {type(err).__name__}") from err
        finally:
            connection.close()
        kept = {key: value for key, value in answer.getheaders() if key.lower() not in _HOP_BY_HOP}
        return Proxied(status=answer.status, body=body, headers=kept)
