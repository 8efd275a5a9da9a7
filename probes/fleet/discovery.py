# SPDX-License-Identifier: Apache-2.0
"""Finds the agents and the VMIs of a cluster in the lists of the API server. Pure.

Owns which lists are requested, and which right a user needs for each. Must not know sockets:
requests go through a function of the caller.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import msgspec

from probes.fleet.model import AgentPod, ClusterVmis, FleetError
from probes.fleet.options import DEFAULT_NAMESPACE
from probes.fleet.pods import PodError, namespaces_of, parse_pod
from probes.fleet.proxy import Proxied
from probes.vmi.foreign_text import one_line
from probes.vmi.kube.listwatch import RESOURCE, PayloadError, status_message, walk_list
from probes.vmi.kube.vmi_object import MalformedVmi, parse_vmi
from probes.vmi.model import Vmi

_PAGE_LIMIT = "500"
_PAGES_MAX = 1000
_MANY_LISTED = 5

Get = Callable[[str, Mapping[str, str]], Proxied]
"""Sends a GET request for a path with parameters. Raises FleetError when there is no answer."""


class ForbiddenError(FleetError):
    """The user has no right to list something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of objects that can be listed."""

    group: str
    plural: str
    resource: str
    """What RBAC calls it."""

    def path(self, namespace: str | None) -> str:
        """Return the path of the list in a namespace; None: in all."""
        where = f"/namespaces/{quote(namespace, safe='')}" if namespace is not None else ""
        return f"{self.group}{where}/{self.plural}"


_PODS = _Kind(group="/api/v1", plural="pods", resource="pods")
_VMIS = _Kind(group="/apis/kubevirt.io/v1", plural="virtualmachineinstances", resource=RESOURCE)


def find_agents(get: Get, *, namespace: str | None, selector: str) -> tuple[AgentPod, ...]:
    """Return the pods of agents. Raises FleetError when there are none, or it is not clear which.

    Without a namespace, the one of deploy/ is tried first, and only if it has no agent are all
    namespaces. So a user needs no right to list the pods of others, and a pod that a tenant labels
    like an agent is not taken for one beside the real ones.
    """
    found = _pods(get, namespace or DEFAULT_NAMESPACE, selector)
    if found:
        return found
    if namespace is not None:
        raise FleetError(
            f"no pod has the label {selector} in namespace {namespace}: check --agent-namespace "
            "and --agent-selector"
        )
    try:
        found = _pods(get, None, selector)
    except ForbiddenError as err:
        raise FleetError(
            f"no agent is in namespace {DEFAULT_NAMESPACE}: name theirs with --agent-namespace, "
            f"because you are {err}"
        ) from err
    namespaces = namespaces_of(found)
    if not found:
        raise FleetError(
            f"no pod has the label {selector} in any namespace: install hvprobe's agents, or give "
            "--agent-selector"
        )
    if len(namespaces) > 1:
        raise FleetError(
            f"pods with the label {selector} are in several namespaces "
            f"({', '.join(namespaces[:_MANY_LISTED])}): say which ones are hvprobe's agents with "
            "--agent-namespace"
        )
    return found


def list_vmis(get: Get, namespaces: Iterable[str]) -> ClusterVmis:
    """Return the VMIs of some namespaces, or of all if none is given.

    Without the right to list them the view has only what agents report, and says so.
    """
    vmis: list[Vmi] = []

    def keep(item: msgspec.Raw) -> None:
        try:
            vmis.append(parse_vmi(item))
        except MalformedVmi:
            return  # the agents log it

    try:
        for namespace in sorted(namespaces) or (None,):
            _walk(get, _VMIS, namespace, {}, keep)
    except FleetError as err:
        return ClusterVmis(
            error=f"nodes without an agent, and VMs that no agent reports, are not shown: {err}"
        )
    return ClusterVmis(vmis=tuple(vmis))


def node_of_vmi(get: Get, namespace: str, name: str) -> str | None:
    """Return the node on which a VMI runs; None: it is not known, or the user may not ask."""
    path = f"{_VMIS.path(namespace)}/{quote(name, safe='')}"
    try:
        answer = get(path, {})
        return parse_vmi(answer.body).node_name if answer.status == HTTPStatus.OK else None
    except (FleetError, MalformedVmi):
        return None


def _pods(get: Get, namespace: str | None, selector: str) -> tuple[AgentPod, ...]:
    pods: list[AgentPod] = []

    def keep(item: msgspec.Raw) -> None:
        try:
            pods.append(parse_pod(item))
        except PodError as err:
            raise PayloadError(f"a pod cannot be decoded: {err}") from err

    fields = {"labelSelector": selector}
    _walk(get, _PODS, namespace, fields, keep)
    return tuple(pods)


def _walk(
    get: Get,
    kind: _Kind,
    namespace: str | None,
    fields: Mapping[str, str],
    keep: Callable[[msgspec.Raw], None],
) -> None:
    """Pass each item of a list to keep. Raises FleetError when the list is refused."""
    path, resource = kind.path(namespace), kind.resource
    token: str | None = None
    for _ in range(_PAGES_MAX):
        page = {"limit": _PAGE_LIMIT, **fields, **({"continue": token} if token else {})}
        answer = get(path, page)
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer, resource, namespace)
        try:
            token = walk_list(answer.body, keep).continue_token
        except PayloadError as err:
            raise FleetError(f"the API server sent an invalid list of {resource}: {err}") from err
        if token is None:
            return
    raise FleetError(f"the API server's list of {resource} has no end")


def _refusal(answer: Proxied, resource: str, namespace: str | None) -> FleetError:
    where = f"in namespace {namespace}" if namespace is not None else "in all namespaces"
    text = one_line(status_message(answer.body) or "")
    said = f"; the API server says: {text}" if text else ""
    match answer.status:
        case HTTPStatus.FORBIDDEN:
            return ForbiddenError(
                f"not allowed to list {resource} {where}: grant the verb list on the resource "
                f"{resource} (deploy/components/fleet){said}"
            )
        case HTTPStatus.UNAUTHORIZED:
            return FleetError(
                "the API server refuses the credentials (401 Unauthorized): log in again, and "
                "check that kubectl works with the same kubeconfig"
            )
        case HTTPStatus.NOT_FOUND:
            return FleetError(f"the API server has no {resource}: is KubeVirt installed?")
    return FleetError(f"cannot list {resource} {where}: HTTP {answer.status}{said}")
