# SPDX-License-Identifier: Apache-2.0
"""``hvprobe agent --authorization kubernetes`` as a process that asks an API server."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apiserver import ApiServer
from tests.support.certificates import Authority
from tests.support.kernel_agent import Agent
from tests.support.kernel_world import DEADLINE_S


@pytest.fixture
def agents(api: ApiServer) -> Iterator[list[Agent]]:
    """Agents that end with the test."""
    started: list[Agent] = []
    yield started
    for agent in started:
        agent.kill()


def status(agent: Agent, path: str, token: str | None, context: ssl.SSLContext | None) -> int:
    """The status of the agent's answer to a client with this token."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(agent.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S, context=context) as answer:
            found: int = answer.status
            return found
    except urllib.error.HTTPError as err:
        with err:
            return err.code


@pytest.mark.parametrize("https", [False, True], ids=["http", "https"])
def test_the_agent_asks_for_tokens(
    https: bool, api: ApiServer, agents: list[Agent], tmp_path: Path
) -> None:
    """A scraper with the right is answered, others get 401 and 403; /healthz and /readyz are open.

    Without TLS the log says that tokens travel unencrypted.
    """
    words = ["--kubeconfig", str(api.kubeconfig()), "--node", "node-a"]
    context = None
    if https:
        authority = Authority(tmp_path / "agents", "hvprobe")
        files = authority.server_files()
        words += ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
        context = authority.client_context()
    agents.append(Agent(*words, "--authorization", "kubernetes"))
    (agent,) = agents
    assert any("tokens unencrypted" in line for line in agent.log) is not https
    api.reviews.allow("monitoring", "scraper", "/metrics")
    scraper, other = api.reviews.token(), api.reviews.token(name="other")
    assert status(agent, "/metrics", scraper, context) == 200
    assert status(agent, "/", scraper, context) == 403
    assert status(agent, "/metrics", other, context) == 403
    assert status(agent, "/metrics", "made.up.token", context) == 401
    assert status(agent, "/metrics", None, context) == 401
    for path in ("/healthz", "/readyz"):
        assert status(agent, path, None, context) == 200
