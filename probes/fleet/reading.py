# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads a cluster: its agents, each in its turn and within its deadline, and its VMIs.

Owns the order of the requests and how many are under way at once. Must not know what an answer
means for a VM (merge.py), nor what is shown of it.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from probes.fleet.answers import (
    AnswerError,
    DoctorAnswer,
    Explained,
    decode_doctor,
    decode_snapshot,
    decode_why,
)
from probes.fleet.api import NO_HEADERS, FleetApi, RequestError
from probes.fleet.discovery import find_agents, list_vmis, node_of_vmi
from probes.fleet.merge import NO_AGENT, in_both, unreported, with_silent_nodes
from probes.fleet.model import AgentPod, ClusterVmis, FleetError, NodeAnswer
from probes.fleet.parallel import in_parallel
from probes.fleet.pods import by_node
from probes.fleet.proxy import (
    NoAnswerError,
    Proxied,
    ask_agent,
    token_of,
    token_path,
    token_request,
)
from probes.vmi.agent_token import AGENT_HEADER
from probes.vmi.attribution import VmName

LIST_DEADLINE_S = 30.0
"""How long one page of a list may take."""

TOKEN_DEADLINE_S = 5.0
"""How long the API server may take to make a token."""

_AT_ONCE_S = 2.0
"""How long a user waits for what completes a command line."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How agents are found and asked."""

    namespace: str | None
    """The agents' namespace; None: it is searched for."""
    selector: str
    account: str
    """Service account in the agents' namespace, whose token agents get that want one."""
    deadline_s: float
    """How long one node may take."""
    parallel: int
    """How many nodes are asked at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Receives the progress: how many nodes there are, and each that is done."""

    begin: Callable[[int], None]
    step: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried(Generic[_T]):
    """What one node said, decoded, or why it did not."""

    node: str
    agent: AgentPod
    said: _T | None
    refused: NoAnswerError | None


class Tokens:
    """The tokens that agents get, of which one is requested for each namespace."""

    def __init__(self, api: FleetApi, account: str) -> None:
        self._api = api
        self._account = account
        self._lock = threading.Lock()
        self._answers: dict[str, Proxied] = {}

    def of(self, namespace: str) -> str:
        """Return the token for the agents of a namespace. Raises NoAnswerError without one."""
        with self._lock:
            answer = self._answers.get(namespace)
            if answer is None:
                answer = self._answers[namespace] = self._requested(namespace)
        return token_of(answer, namespace, self._account)

    def _requested(self, namespace: str) -> Proxied:
        path = token_path(namespace, self._account)
        try:
            answer = self._api.create(path, token_request(), deadline_s=TOKEN_DEADLINE_S)
        except RequestError as err:
            raise NoAnswerError(str(err)) from err
        return Proxied(status=answer.status, body=answer.body, content_type=answer.content_type)


def vmis_at_once(api: FleetApi, namespaces: frozenset[str]) -> ClusterVmis:
    """Return the VMIs of these namespaces (empty: of all) if they can be read in a moment."""
    end_s = time.monotonic() + _AT_ONCE_S

    def get(path: str, fields: Mapping[str, str]) -> Proxied:
        return _listed(api, path, fields, deadline_s=max(end_s - time.monotonic(), 0.0))

    return list_vmis(get, namespaces)


def _listed(api: FleetApi, path: str, fields: Mapping[str, str], *, deadline_s: float) -> Proxied:
    try:
        answer = api.get(path, fields, deadline_s=deadline_s)
    except RequestError as err:
        raise FleetError(str(err)) from err
    return Proxied(status=answer.status, body=answer.body, content_type=answer.content_type)


class Cluster:
    """The agents of a cluster, found once."""

    def __init__(self, api: FleetApi, reach: Reach, progress: Progress) -> None:
        """Find the agents. Raises FleetError when there are none, or the user may not list them."""
        self._api = api
        self._reach = reach
        self._progress = progress
        self._tokens = Tokens(api, reach.account)
        pods = find_agents(self._get, namespace=reach.namespace, selector=reach.selector)
        self._agents: Mapping[str, AgentPod] = by_node(pods)

    def vmis(self, namespaces: frozenset[str]) -> ClusterVmis:
        """Return the VMIs of these namespaces; empty: of all."""
        return list_vmis(self._get, namespaces)

    def snapshots(
        self, namespaces: frozenset[str], nodes: frozenset[str]
    ) -> tuple[tuple[NodeAnswer, ...], ClusterVmis]:
        """Return what each node answers, and the VMIs that ran throughout.

        nodes are those that are asked; empty: all. Raises FleetError when the user may not ask.
        """
        before = _on(nodes, self.vmis(namespaces))
        tried = self._ask_all("/snapshot", decode_snapshot, nodes)
        answers = tuple(
            NodeAnswer(node=one.node, agent=one.agent, snapshot=one.said, failure=_line(one))
            for one in tried
        )
        answers = with_silent_nodes(answers, before, nodes)
        if unreported(answers, before):
            return answers, in_both(before, _on(nodes, self.vmis(namespaces)))
        return answers, before

    def doctors(
        self, nodes: frozenset[str]
    ) -> tuple[Sequence[tuple[NodeAnswer, DoctorAnswer | None]], str | None]:
        """Return the checks of each node, and why nodes without an agent are not known, if so."""
        cluster = _on(nodes, self.vmis(frozenset()))
        tried = self._ask_all("/doctor", decode_doctor, nodes)
        checks = {one.node: one.said for one in tried}
        answers = with_silent_nodes(
            [NodeAnswer(node=one.node, agent=one.agent, failure=_line(one)) for one in tried],
            cluster,
            nodes,
        )
        return [(answer, checks.get(answer.node)) for answer in answers], cluster.error

    def why(self, vm: VmName) -> tuple[Explained | None, Mapping[str, str]]:
        """Return the explanation of a VM, and why nodes that may run it do not answer.

        The node that the VMI's status names is asked. Where it is not known, all are.
        """
        node = node_of_vmi(self._get, vm.namespace, vm.name)
        nodes = frozenset({node} if node is not None else ())
        if node is not None and node not in self._agents:
            return None, {node: NO_AGENT}
        tried = self._ask_all(f"/why/{vm.namespace}/{vm.name}", decode_why, nodes)
        said = next((one.said for one in tried if one.said is not None), None)
        failures = {
            one.node: str(one.refused)
            for one in tried
            if one.refused is not None and not one.refused.absent
        }
        return said, failures

    def _ask_all(
        self, path: str, decode: Callable[[bytes], _T], nodes: frozenset[str]
    ) -> Sequence[_Tried[_T]]:
        """Ask the agents of these nodes, or all. Raises FleetError when the user may not."""
        asked = [
            (node, agent)
            for node, agent in sorted(self._agents.items())
            if not nodes or node in nodes
        ]
        self._progress.begin(len(asked))

        def ask(one: tuple[str, AgentPod]) -> _Tried[_T]:
            node, agent = one
            try:
                said = decode(self._body(agent, path))
            except NoAnswerError as err:
                return _Tried(node=node, agent=agent, said=None, refused=err)
            except AnswerError as err:
                return _Tried(node=node, agent=agent, said=None, refused=NoAnswerError(str(err)))
            return _Tried(node=node, agent=agent, said=said, refused=None)

        tried = in_parallel(asked, ask, parallel=self._reach.parallel, on_done=self._progress.step)
        refused = [one.refused for one in tried]
        # One agent could pretend to be the API server, so only all of them are believed.
        if refused and all(err is not None and err.forbidden for err in refused):
            raise FleetError(str(refused[0]))
        return tried

    def _body(self, agent: AgentPod, path: str) -> bytes:
        """Return the body of an agent's answer; an agent that wants a token is shown one."""
        try:
            return ask_agent(self._ask, agent, path)
        except NoAnswerError as err:
            if not err.wants_token:
                raise
        token = self._tokens.of(agent.namespace)
        headers = {AGENT_HEADER: token}
        return ask_agent(partial(self._ask, headers=headers), agent, path)

    def _ask(self, path: str, headers: Mapping[str, str] = NO_HEADERS) -> Proxied:
        try:
            answer = self._api.get(path, deadline_s=self._reach.deadline_s, headers=headers)
        except RequestError as err:
            raise NoAnswerError(str(err)) from err
        return Proxied(status=answer.status, body=answer.body, content_type=answer.content_type)

    def _get(self, path: str, fields: Mapping[str, str]) -> Proxied:
        return _listed(self._api, path, fields, deadline_s=LIST_DEADLINE_S)


def _line(one: _Tried[_T]) -> str | None:
    return str(one.refused) if one.refused is not None else None


def _on(nodes: frozenset[str], cluster: ClusterVmis) -> ClusterVmis:
    """Return the VMIs on these nodes; empty: all."""
    if not nodes:
        return cluster
    vmis = tuple(vmi for vmi in cluster.vmis if vmi.node_name in nodes)
    return ClusterVmis(vmis=vmis, error=cluster.error)
