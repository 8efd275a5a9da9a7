# SPDX-License-Identifier: Apache-2.0
"""A cluster for ``hvprobe fleet``: an API server, and real agents' endpoints in its pods."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import count

from probes.render.doctor import ability, checks
from probes.render.doctor_json import doctor_json
from probes.report.model import NodeReport, VmiReport
from probes.serve.authorization import Authorization
from probes.serve.endpoints import Endpoints
from probes.serve.refresh import RefreshCache
from probes.serve.routes import Handler
from probes.vmi.kube.credentials import Kubeconfig
from probes.vmi.kube.reviewer import Reviewer
from tests.support.apiserver import ApiServer
from tests.support.certificates import Authority
from tests.support.facts import CAPABLE
from tests.support.rich_report import rich_report
from tests.support.serving import LOG, Serving
from tests.support.vmi_objects import vmi

VERSION = "0.1.0"


def report_of(
    node: str, *names: str, version: str = VERSION, of: tuple[VmiReport, ...] | None = None
) -> NodeReport:
    """The report of a node, with those VMs of the rich report that have these names."""
    plain = rich_report()
    vmis = of if of is not None else tuple(one for one in plain.vmis if one.vm.name in names)
    processes = tuple(one for one in plain.processes if one.vm is not None and one.vm.name in names)
    return replace(plain, node=node, vmis=vmis, processes=processes, version=version)


class FleetWorld:
    """A cluster whose agents serve reports of the test; ends with its stack."""

    def __init__(self, api: ApiServer, stack: ExitStack, authority: Authority) -> None:
        self.api = api
        self.authority = authority
        self._stack = stack

    def node(
        self,
        report: NodeReport,
        *,
        https: bool = False,
        listed: bool = True,
        authorized: bool = False,
        client_ca: bool = False,
    ) -> None:
        """Add a node whose agent serves this report, and its VMs to the API server.

        authorized: the agent runs with ``--authorization kubernetes``. client_ca: with HTTPS it
        also asks for client certificates.
        """
        taken_s = count(int(report.taken_unix_s))

        def refresh() -> NodeReport:
            return replace(report, taken_unix_s=float(next(taken_s)))

        endpoints = Endpoints(
            RefreshCache(refresh),
            examine=lambda found: doctor_json(checks(found, CAPABLE), ability(found)),
        )
        routes = endpoints.routes
        self.agent(report.node, routes, https=https, authorized=authorized, client_ca=client_ca)
        for each in report.vmis if listed else ():
            self.vm(each.vm.name, node=report.node)

    def agent(
        self,
        node: str,
        routes: dict[str, Handler],
        *,
        https: bool = False,
        authorized: bool = False,
        client_ca: bool = False,
    ) -> None:
        """Add a node whose agent has these routes."""
        ca = self.authority.cert if client_ca else None
        tls = self.authority.server_files(f"agent-{node}", client_ca=ca) if https else None
        gate = None
        if authorized:
            reviewer = Reviewer(Kubeconfig(file=self.api.kubeconfig()))
            gate = Authorization(reviewer.review, log=LOG).refusal
        serving = self._stack.enter_context(Serving(routes, tls=tls, gate=gate))
        self.api.pods.add(node, port=serving.port, https=https)

    def vm(self, name: str, *, node: str | None, phase: str = "Running") -> None:
        """Add a VM that no agent need report."""
        self.api.store.create(vmi(name, node=node, phase=phase))
