# SPDX-License-Identifier: Apache-2.0
"""Tokens and rights by a real kube-apiserver: what it says, and whom the agent answers then."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from probes.vmi.access import Presented, User
from probes.vmi.kube.answer import Answer
from probes.vmi.kube.review_api import access_review, allowed_by, token_review, user_of
from tests.support.apireviews import ACCESS, TOKENS, ReviewStore
from tests.support.deploy_render import ROOT
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import Cluster
from tests.support.kube_objects import VMS
from tests.support.kube_world import ALPHA, BETA, NAMESPACE, agent_pod, create, install, manifests

pytestmark = pytest.mark.timeout(1800)
WHERE = {"server": "the API server", "credentials": "kubectl"}
OTHER = "other"


@pytest.fixture(scope="module")
def installed(vms: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster with the privileged variant and the components authorization and fleet."""
    folder = tmp_path_factory.mktemp("own")
    given = manifests("privileged", folder, "authorization", "fleet")
    install(vms, given)
    create(vms, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": OTHER}})
    yield vms
    vms.kubectl("delete", "serviceaccount", OTHER)
    vms.kubectl("delete", "--ignore-not-found", "-f", "-", given=given)
    wait_for(
        lambda: vms.kubectl_try("get", "namespace", NAMESPACE).returncode != 0,
        "the namespace is gone",
        120,
    )


def token_of(cluster: Cluster, namespace: str, account: str, *audiences: str) -> str:
    """A new token of a service account."""
    spec = {"audiences": [*audiences]} if audiences else {}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    made = json.loads(
        cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(request))
    )
    token: str = made["status"]["token"]
    return token


def scraper_token(cluster: Cluster) -> str:
    """The token that the PodMonitor gives Prometheus."""

    def found() -> str | None:
        secret = cluster.get("-n", NAMESPACE, "secret", "hvprobe-scraper-token")
        data: dict[str, Any] = secret.get("data", {})
        return base64.b64decode(data["token"]).decode() if "token" in data else None

    return wait_for(found, "the Secret has a token", 60)


def reviewed(cluster: Cluster, path: str, body: bytes) -> Answer:
    """The real server's answer to a review."""
    shown = cluster.kubectl("create", "--raw", path, "-f", "-", given=body.decode())
    return Answer(status=201, body=shown.encode(), retry_after_s=None)


def status(cluster: Cluster, path: str, *headers: str) -> int:
    """The status of the agent's answer, on its pod's own address."""
    address = agent_pod(cluster)["status"]["podIP"]
    return cluster.status_of(f"http://{address}:9747{path}", *headers)


@pytest.mark.parametrize("made_for", ["server", "agents", "others"])
@pytest.mark.parametrize("asked_for", [None, "hvprobe"])
def test_the_review_of_a_token(made_for: str, asked_for: str | None, installed: Cluster) -> None:
    """The real server accepts a token for the audience that is asked for only; so does the tests'.

    A token for an audience of its own is no token for the API server.
    """
    audiences = {"server": (), "agents": ("hvprobe",), "others": ("others",)}[made_for]
    token = token_of(installed, "default", OTHER, *audiences)
    presented = Presented(token=token, audience=asked_for)
    user = user_of(reviewed(installed, TOKENS, token_review(presented)), presented, **WHERE)

    store = ReviewStore()
    stored = store.token("default", OTHER, audience=audiences[0] if audiences else None)
    double = Presented(token=stored, audience=asked_for)
    body = json.dumps(store.review(TOKENS, token_review(double))).encode()
    expected = user_of(Answer(status=201, body=body, retry_after_s=None), double, **WHERE)

    valid = (made_for, asked_for) in {("server", None), ("agents", "hvprobe")}
    assert (user is not None) is (expected is not None) is valid
    if user is not None and expected is not None:
        assert user.name == expected.name == f"system:serviceaccount:default:{OTHER}"
        assert sorted(user.groups) == sorted(expected.groups)
        assert user.uid


def test_the_review_of_a_token_that_is_made_up(installed: Cluster) -> None:
    """The real server answers with no user, and the answer is understood as that."""
    presented = Presented(token="made.up.token", audience=None)
    answer = reviewed(installed, TOKENS, token_review(presented))
    assert user_of(answer, presented, **WHERE) is None


@pytest.mark.parametrize("path", ["/metrics", "/snapshot", "/why/vms/alpha", "/why", "/whyever"])
@pytest.mark.parametrize("account", ["hvprobe-scraper", "hvprobe-fleet"])
def test_the_review_of_access(account: str, path: str, installed: Cluster) -> None:
    """RBAC decides about a path by nonResourceURLs, for both servers alike."""
    user = User(
        name=f"system:serviceaccount:{NAMESPACE}:{account}",
        groups=("system:serviceaccounts", "system:authenticated"),
        extra=(("authentication.kubernetes.io/pod-name", ("scraper-0",)),),
    )
    review = access_review(user, path)
    allowed = allowed_by(reviewed(installed, ACCESS, review), **WHERE)
    store = ReviewStore()
    store.allow(NAMESPACE, "hvprobe-scraper", "/metrics")
    store.allow(NAMESPACE, "hvprobe-fleet", "/snapshot", "/doctor", "/why/*")
    body = json.dumps(store.review(ACCESS, review)).encode()
    assert allowed is allowed_by(Answer(status=201, body=body, retry_after_s=None), **WHERE)
    assert allowed is (
        path == "/metrics"
        if account == "hvprobe-scraper"
        else path in ("/snapshot", "/why/vms/alpha")
    )


def test_who_is_answered(installed: Cluster) -> None:
    """The scraper gets /metrics, another account 403, and a client without a token 401."""
    scraper = f"Authorization: Bearer {scraper_token(installed)}"
    other = f"Authorization: Bearer {token_of(installed, 'default', OTHER)}"
    assert status(installed, "/metrics", scraper) == 200
    assert status(installed, "/snapshot", scraper) == 403
    assert status(installed, "/metrics", other) == 403
    assert status(installed, "/metrics", "Authorization: Bearer made.up.token") == 401
    assert status(installed, "/metrics") == 401
    assert status(installed, "/healthz") == status(installed, "/readyz") == 200


def test_a_token_for_agents(installed: Cluster) -> None:
    """It works in both headers; one for the API server works in the ordinary header only."""
    token = token_of(installed, NAMESPACE, "hvprobe-fleet", "hvprobe")
    for header in ("Authorization: Bearer ", "X-Hvprobe-Token: "):
        assert status(installed, "/snapshot", header + token) == 200
    token = token_of(installed, NAMESPACE, "hvprobe-fleet")
    assert status(installed, "/snapshot", f"Authorization: Bearer {token}") == 200
    assert status(installed, "/snapshot", f"X-Hvprobe-Token: {token}") == 401


def test_kubectl_hvprobe_shows_a_token(installed: Cluster) -> None:
    """Through the real pod proxy it is answered, because its token is in a header that passes.

    The administrator's own token does not pass: the agent's 401 reaches kubectl.
    """
    done = installed.hvprobe("fleet", "-o", "json", code_root=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["vmis"]
    assert {(row["namespace"], row["name"]) for row in rows} == {(VMS, ALPHA), (VMS, BETA)}
    raw = installed.kubectl_try(
        *("get", "--raw"),
        f"/api/v1/namespaces/{NAMESPACE}/pods/{agent_pod(installed)['metadata']['name']}:9747"
        "/proxy/metrics",
    )
    assert raw.returncode != 0
    assert "You must be logged in to the server" in raw.stderr


def test_a_right_that_is_granted_works_soon(installed: Cluster) -> None:
    """A refusal is forgotten after seconds."""
    other = f"Authorization: Bearer {token_of(installed, 'default', OTHER)}"
    assert status(installed, "/doctor", other) == 403
    account = f"default:{OTHER}"
    words = ("clusterrolebinding", "other-reader", "--clusterrole", "hvprobe-reader")
    installed.kubectl("create", *words, "--serviceaccount", account)
    try:
        wait_for(lambda: status(installed, "/doctor", other) == 200, "it is answered", 40)
    finally:
        installed.kubectl("delete", "clusterrolebinding", "other-reader")
