# SPDX-License-Identifier: Apache-2.0
"""Certificates that Helm makes: used by a real server and client, and kept by an upgrade.

Helm looks for them in a server that knows Secrets and nothing else; tests/kubelet has a real one.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from probes.serve.listen import TlsFiles
from tests.support import helm_tools
from tests.support.deploy_render import Json, Rendered
from tests.support.helm_render import CHART, rendered_chart, run_helm
from tests.support.required import require
from tests.support.serving import Peer, Serving, text

pytestmark = pytest.mark.timeout(300)
NAMESPACE = "hvprobe"
VALUES: Json = {"tls": {"mode": "selfSigned"}, "priorityClass": {"create": False}}
DAY_S = 86400


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("helm", helm_tools.missing())


class Secrets(ThreadingHTTPServer):
    """An API server that knows the kinds of the chart's objects, and has Secrets only."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.held: dict[str, Json] = {}
        """The Secrets of the namespace, by name."""
        kinds = {(one["apiVersion"], one["kind"]) for one in rendered_chart(VALUES).objects}
        self._kinds: dict[str, list[str]] = {}
        for version, kind in sorted(kinds):
            self._kinds.setdefault(version, []).append(kind)

    def answer(self, path: str) -> Json | None:
        secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets/"
        if path.startswith(secrets):
            held = self.held.get(path.removeprefix(secrets))
            return None if held is None else _installed(held)
        groups = [
            {
                "name": version.partition("/")[0],
                "versions": [{"groupVersion": version, "version": version.partition("/")[2]}],
            }
            for version in self._kinds
            if "/" in version
        ]
        found: dict[str, Json] = {
            "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        }
        for version, kinds in self._kinds.items():
            resources = [
                {"name": f"{kind.lower()}s", "kind": kind, "namespaced": True, "verbs": ["get"]}
                for kind in kinds
            ]
            root = "/apis" if "/" in version else "/api"
            found[f"{root}/{version}"] = {
                "kind": "APIResourceList",
                "groupVersion": version,
                "resources": resources,
            }
        return found.get(path)


def _installed(secret: Json) -> Json:
    """A Secret as Helm stores it: with the release that owns it."""
    found: Json = json.loads(json.dumps(secret))
    owner = {"meta.helm.sh/release-name": "hvprobe", "meta.helm.sh/release-namespace": NAMESPACE}
    found["metadata"].setdefault("annotations", {}).update(owner)
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Secrets

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = self.server.answer(path)
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(missing if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def cluster() -> Iterator[Secrets]:
    server = Secrets()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def upgraded(cluster: Secrets, values: Json = VALUES) -> dict[str, Json]:
    """The Secrets that the chart renders where Helm can look into the cluster; it then has them."""
    server = f"http://127.0.0.1:{cluster.server_address[1]}"
    command = ("template", "hvprobe", CHART, "--namespace", NAMESPACE, "--dry-run=server")
    words = ("--show-only", "templates/self-signed.yaml", "--disable-openapi-validation")
    where = ("--kube-apiserver", server, "--values", "-")
    done = run_helm(*command, *words, *where, given=json.dumps(values))
    assert done.returncode == 0, done.stderr
    made = secrets_of(Rendered(text=done.stdout, objects=_documents(done.stdout)))
    cluster.held = made
    return made


def _documents(rendered: str) -> tuple[Json, ...]:

    return tuple(found for found in yaml.safe_load_all(rendered) if found is not None)


def secrets_of(chart: Rendered) -> dict[str, Json]:
    return {found["metadata"]["name"]: found for found in chart.of_kind("Secret")}


def written(secret: Json, directory: Path) -> Path:
    """The files of a Secret, as kubelet mounts them."""
    directory.mkdir()
    for name, value in secret["data"].items():
        (directory / name).write_bytes(base64.b64decode(value))
    return directory


def openssl(*words: str | Path) -> str:
    done = subprocess.run(["openssl", *words], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The files of the agents and of Prometheus."""
    made = secrets_of(rendered_chart(VALUES, NAMESPACE))
    assert set(made) == {"hvprobe-tls", "hvprobe-scraper"}
    assert {secret["type"] for secret in made.values()} == {"kubernetes.io/tls"}
    agents, scraper = made["hvprobe-tls"], made["hvprobe-scraper"]
    assert set(agents["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    assert set(scraper["data"]) == {"tls.crt", "tls.key"}
    return written(agents, tmp_path / "agents"), written(scraper, tmp_path / "scraper")


def test_a_server_and_a_client_use_them(folders: tuple[Path, Path]) -> None:
    """Prometheus, which expects the name of the PodMonitor, is admitted; others are not."""
    agents, scraper = folders
    chart = rendered_chart(VALUES, NAMESPACE)
    (endpoint,) = chart.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    config = endpoint["tlsConfig"]
    assert config["ca"] == {"secret": {"name": "hvprobe-tls", "key": "ca.crt"}}
    assert config["cert"] == {"secret": {"name": "hvprobe-scraper", "key": "tls.crt"}}
    assert config["keySecret"] == {"name": "hvprobe-scraper", "key": "tls.key"}
    values = {variable["name"]: variable.get("value") for variable in chart.container["env"]}
    assert values["HVPROBE_TLS_CLIENT_CA"] == "/etc/hvprobe/tls/ca.crt"
    files = TlsFiles(cert=agents / "tls.crt", key=agents / "tls.key", client_ca=agents / "ca.crt")
    known = ssl.create_default_context(cafile=str(agents / "ca.crt"))
    known.check_hostname = True
    unknown = ssl.create_default_context(cafile=str(agents / "ca.crt"))
    known.load_cert_chain(scraper / "tls.crt", scraper / "tls.key")
    with Serving({"/metrics": text("samples")}, tls=files) as serving:
        for context, status in ((known, 200), (unknown, 403)):
            with Peer(serving.port, tls=context, name=config["serverName"]) as peer:
                peer.get("/metrics")
                assert peer.answer().status == status


def test_they_last_as_long_as_the_value_says(tmp_path: Path) -> None:
    """Certificates and CA end together, and are to be renewed after two thirds of that time."""
    values = {**VALUES, "tls": {"mode": "selfSigned", "selfSigned": {"validityDays": 9}}}
    made = secrets_of(rendered_chart(values, NAMESPACE))
    agents = written(made["hvprobe-tls"], tmp_path / "agents")
    scraper = written(made["hvprobe-scraper"], tmp_path / "scraper")
    for certificate in (agents / "tls.crt", agents / "ca.crt", scraper / "tls.crt"):
        for days, valid in ((8.9, True), (9.1, False)):
            command = ["openssl", "x509", "-noout", "-checkend", str(int(days * DAY_S)), "-in"]
            done = subprocess.run([*command, certificate], check=False, capture_output=True)
            assert (done.returncode == 0) is valid, (certificate, days)
    renew_s = int(made["hvprobe-tls"]["metadata"]["annotations"]["hvprobe.io/renew-after"])
    assert 5.9 * DAY_S < renew_s - time.time() < 6.1 * DAY_S


def test_the_key_of_the_ca_is_kept_nowhere(folders: tuple[Path, Path]) -> None:
    """No object holds it, so nothing that the agents would admit can be signed later."""
    agents, scraper = folders
    ca = openssl("x509", "-noout", "-pubkey", "-in", agents / "ca.crt")
    for key in (agents / "tls.key", scraper / "tls.key"):
        assert openssl("pkey", "-in", key, "-pubout") != ca
    for certificate in (agents / "tls.crt", scraper / "tls.crt"):
        purposes = openssl("x509", "-noout", "-ext", "extendedKeyUsage", "-in", certificate)
        # As docs/security.md says. If Helm's functions learn better, so should the page.
        assert "TLS Web Server Authentication, TLS Web Client Authentication" in purposes


def test_an_upgrade_keeps_them(cluster: Secrets) -> None:
    """What the cluster has is rendered again, byte for byte, also when other values change."""
    first = upgraded(cluster)
    assert upgraded(cluster) == first
    assert upgraded(cluster, {**VALUES, "events": True}) == first


def test_without_a_cluster_they_are_new() -> None:
    """`helm template` cannot look, so that each rendering makes others."""
    one, other = (secrets_of(rendered_chart(VALUES, NAMESPACE)) for _ in range(2))
    assert one["hvprobe-tls"]["data"] != other["hvprobe-tls"]["data"]


def _late(held: dict[str, Json]) -> None:
    annotations = held["hvprobe-tls"]["metadata"]["annotations"]
    annotations["hvprobe.io/renew-after"] = str(int(time.time()) - 1)


def _without(secret: str, key: str) -> object:
    return lambda held: held[secret]["data"].pop(key)


@pytest.mark.parametrize(
    "spoil",
    [
        _late,
        lambda held: held["hvprobe-tls"]["metadata"].pop("annotations"),
        lambda held: held.pop("hvprobe-tls"),
        lambda held: held.pop("hvprobe-scraper"),
        lambda held: held["hvprobe-scraper"].pop("data"),
        _without("hvprobe-tls", "ca.crt"),
        _without("hvprobe-tls", "tls.key"),
        _without("hvprobe-scraper", "tls.crt"),
    ],
    ids=["late", "foreign", "no-agents", "no-scraper", "empty", "no-ca", "no-key", "no-cert"],
)
def test_an_upgrade_makes_all_of_them_again(cluster: Secrets, spoil: object) -> None:
    """When it is time, or one is missing, both Secrets are made by one new CA."""
    first = json.loads(json.dumps(upgraded(cluster)))
    assert callable(spoil)
    spoil(cluster.held)
    second = upgraded(cluster)
    for name in ("hvprobe-tls", "hvprobe-scraper"):
        for key, value in first[name]["data"].items():
            assert second[name]["data"][key] != value, (name, key)
    assert upgraded(cluster) == second


def test_another_name_needs_another_certificate(cluster: Secrets) -> None:
    """A certificate for another name than Prometheus expects is replaced."""
    first = upgraded(cluster)
    tls = {"mode": "selfSigned", "serverName": "agents.example"}
    second = upgraded(cluster, {**VALUES, "tls": tls})
    assert second["hvprobe-tls"]["data"]["tls.crt"] != first["hvprobe-tls"]["data"]["tls.crt"]
    assert upgraded(cluster, {**VALUES, "tls": tls}) == second
