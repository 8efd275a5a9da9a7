# SPDX-License-Identifier: Apache-2.0
"""Asks an agent through the API server's pod proxy, and says why there is no answer. Pure.

Owns the path of a request and the meaning of each kind of answer: the agent's own refusals are
text, those of the API server are Status objects. Must not know sockets: requests go through a
function of the caller.

The API server removes the Authorization header from what it proxies, and shows agents no client
certificate. An agent that wants a certificate and accepts no token cannot be asked in this way, and
one that wants a token gets one in another header (agent_token.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import msgspec

from probes.fleet.model import AgentPod
from probes.vmi.agent_token import AGENT_AUDIENCE, AGENT_TOKEN_S
from probes.vmi.foreign_text import one_line
from probes.vmi.kube.listwatch import status_message

RIGHT = "the verb get on the resource pods/proxy in namespace {namespace}"
_SAID_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxied:
    """What came back through the proxy."""

    status: int
    body: bytes
    content_type: str

    @property
    def by_api_server(self) -> bool:
        """Whether the API server itself refused, and not the agent."""
        return self.status != HTTPStatus.OK and self.content_type.startswith("application/json")


class NoAnswerError(Exception):
    """A node has no answer that can be used.

    The message is one line: why. It may hold foreign text.
    """

    def __init__(
        self,
        line: str,
        *,
        forbidden: bool = False,
        absent: bool = False,
        wants_token: bool = False,
    ) -> None:
        super().__init__(line)
        self.forbidden = forbidden
        """Whether the user has no right to use the proxy."""
        self.absent = absent
        """Whether the agent answered that it knows no such thing."""
        self.wants_token = wants_token
        """Whether the agent wants a token."""


class _TokenStatus(msgspec.Struct, frozen=True):
    token: str = ""


class _TokenRequest(msgspec.Struct, frozen=True):
    status: _TokenStatus


_TOKEN = msgspec.json.Decoder(_TokenRequest)

Ask = Callable[[str], Proxied]
"""Sends a GET request for a path of the API server. Raises NoAnswerError."""


def path_of(agent: AgentPod, path: str) -> str:
    """Return the API server's path for a path of an agent."""
    pod = f"{'https:' if agent.https else ''}{agent.name}:{agent.port}"
    return (
        f"/api/v1/namespaces/{quote(agent.namespace, safe='')}/pods/{quote(pod, safe=':')}"
        f"/proxy{path}"
    )


def ask_agent(ask: Ask, agent: AgentPod, path: str) -> bytes:
    """Return the body of an agent's answer. Raises NoAnswerError when it has none."""
    if agent.not_running is not None:
        raise NoAnswerError(agent.not_running)
    answer = ask(path_of(agent, path))
    if answer.status == HTTPStatus.OK:
        return answer.body
    raise _refusal(agent, path, answer)


def token_path(namespace: str, account: str) -> str:
    """Return the path at which the token of a service account is requested."""
    where = f"{quote(namespace, safe='')}/serviceaccounts/{quote(account, safe='')}"
    return f"/api/v1/namespaces/{where}/token"


def token_request() -> bytes:
    """Return the request for a token that only agents accept, for a short time."""
    spec = {"audiences": [AGENT_AUDIENCE], "expirationSeconds": AGENT_TOKEN_S}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return msgspec.json.encode(request)


def token_of(answer: Proxied, namespace: str, account: str) -> str:
    """Return the token in the answer to a request for one. Raises NoAnswerError when there is none.

    The line says which right or object is missing.
    """
    where = f"its agent wants a token, and service account {account} in namespace {namespace}"
    said = one_line(status_message(answer.body) or "", longest=_SAID_MAX)
    match answer.status:
        case HTTPStatus.CREATED:
            try:
                token = _TOKEN.decode(answer.body).status.token
            except (ValueError, RecursionError):
                token = ""
            if token.isascii() and token.isprintable() and token:
                return token
            raise NoAnswerError(f"{where} got none from the API server")
        case HTTPStatus.FORBIDDEN:
            raise NoAnswerError(
                f"{where} is not yours to use: grant the verb create on the resource "
                f"serviceaccounts/token; the API server says: {said}"
            )
        case HTTPStatus.NOT_FOUND:
            raise NoAnswerError(f"{where} does not exist: apply deploy/components/fleet")
    raise NoAnswerError(f"{where} got none: HTTP {answer.status}{f': {said}' if said else ''}")


def _refusal(agent: AgentPod, path: str, answer: Proxied) -> NoAnswerError:
    where = f"its agent {agent.namespace}/{agent.name}"
    said = one_line(status_message(answer.body) or "", longest=_SAID_MAX)
    if answer.by_api_server:
        return _server_refusal(agent, where, answer.status, said)
    match answer.status:
        case HTTPStatus.NOT_FOUND if said in ("", "not found"):
            return NoAnswerError(f"{where} does not know {path.split('/')[1]!a}: it is too old")
        case HTTPStatus.NOT_FOUND:
            return NoAnswerError(said, absent=True)
        case HTTPStatus.UNAUTHORIZED:
            return NoAnswerError(
                f"{where} wants a token and does not accept the one of the service account",
                wants_token=True,
            )
        case HTTPStatus.FORBIDDEN:
            return NoAnswerError(
                f"{where} refuses what the API server passes on ({said or 'forbidden'}): see "
                "docs/operators.md, What passes the proxy"
            )
    return NoAnswerError(f"{where} answers {answer.status}{f': {said}' if said else ''}")


def _server_refusal(agent: AgentPod, where: str, status: int, said: str) -> NoAnswerError:
    if status == HTTPStatus.FORBIDDEN:
        right = RIGHT.format(namespace=agent.namespace)
        return NoAnswerError(
            f"not allowed to ask agents: grant {right}; the API server says: {said}", forbidden=True
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return NoAnswerError("the API server refuses the credentials (401 Unauthorized)")
    return NoAnswerError(f"{where} cannot be reached: {said or f'HTTP {status}'}")
