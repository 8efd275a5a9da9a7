# SPDX-License-Identifier: Apache-2.0
"""EDGE: answers requests for the agent's paths.

Owns the answers and the readiness. Must not know how a refresh works, nor sockets and TLS.
"""

import json
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from http import HTTPStatus
from urllib.parse import unquote

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import generate_latest as in_text
from prometheus_client.openmetrics.exposition import generate_latest as in_openmetrics

from probes.render.exposition import Exposition, Family, Format, Histogram
from probes.render.metrics import families, health_families, refresh_families, tls_families
from probes.render.page import page
from probes.render.page_frame import CONTENT_SECURITY_POLICY, VMI_FOLDER, is_refreshing
from probes.render.snapshot_json import served_snapshot
from probes.render.why_page import why_page
from probes.report.model import NodeReport
from probes.report.vocabulary import watch_error
from probes.report.why import Explanation, absence, explain, names_are_known
from probes.report.why_json import why_json
from probes.serve.examination import EXAMINATION_DEADLINE_S, Examiner
from probes.serve.listen import TlsState
from probes.serve.refresh import Latest, RefreshCache
from probes.serve.routes import (
    BELOW,
    Handler,
    Request,
    Response,
    plain_text,
    prefers_openmetrics,
    unavailable,
)
from probes.vmi.attribution import VmName, valid_vm_name

LAST_KNOWN_S = 60.0
"""How long VMs are shown as last known while refreshes fail, counted from the first failure.

Not from the last success: if scrapes are rarer than this, one failed refresh would remove every VM.
It is long enough that one refresh lost to a busy node breaks no graph and resets no pending alert,
and short enough that a stopped VM does not linger.
"""

HTML = "text/html; charset=utf-8"
JSON = "application/json"

WHY_FOLDER = "why"

OPEN_TO_ALL = frozenset({"/healthz", "/readyz"})
"""Paths that kubelet's probes request. They have neither client certificate nor token, and the
paths reveal nothing about any VM."""

_VARY = (("Vary", "Accept"),)
_JSON_HEADERS = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))
_PAGE_HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)


class Endpoints:
    """The agent's endpoints."""

    def __init__(
        self,
        cache: RefreshCache,
        *,
        tls: Callable[[], TlsState] | None = None,
        examine: Callable[[NodeReport], dict[str, object]] | None = None,
    ) -> None:
        """Serve the reports of a cache.

        tls returns the state of the certificates; None: no TLS. examine returns what ``hvprobe
        doctor --json`` prints of a report, and may take long; None: there is no such path.

        There are no ``_created`` series: they would double the counters, and
        process_start_time_seconds already says when hvprobe began to count.
        """
        self._cache = cache
        self._tls = tls
        self._examiner = Examiner(examine) if examine else None
        self._registry = CollectorRegistry()
        """Metrics of the process, its Python and its memory; all other metrics are in
        metrics.py."""
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._exposition = Exposition()
        self._latest: Latest | None = None
        self._answers: dict[Hashable, Response] = {}
        """Answers rendered from _latest: by content type, and of the page by whether it refreshes
        itself, so there are five at most."""

    @property
    def routes(self) -> dict[str, Handler]:
        """The handlers by path."""
        examined = {"/doctor": self._doctor} if self._examiner else {}
        return examined | {
            "/": self._page,
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/snapshot": self._snapshot,
            f"/{VMI_FOLDER}{BELOW}": self._vmi,
            f"/{WHY_FOLDER}{BELOW}": self._why,
        }

    async def _page(self, request: Request) -> Response:
        refreshing = is_refreshing(request.query)
        render = partial(self._page_of, refreshing=refreshing)
        return self._shared(await self._cache.latest_two(), (HTML, refreshing), render)

    async def _vmi(self, request: Request) -> Response:
        refreshing = is_refreshing(request.query)

        def shown(explanation: Explanation, failure: str | None) -> Response:
            body = why_page(
                explanation, failure=failure, last_known_s=LAST_KNOWN_S, refreshing=refreshing
            )
            return Response(content_type=HTML, body=body, headers=_PAGE_HEADERS)

        return await self._explained(request, VMI_FOLDER, shown)

    async def _why(self, request: Request) -> Response:
        return await self._explained(
            request, WHY_FOLDER, lambda explanation, _: _json(why_json(explanation))
        )

    async def _explained(
        self, request: Request, folder: str, show: Callable[[Explanation, str | None], Response]
    ) -> Response:
        """Answer what is known about the VM that the path names, with why it may be outdated."""
        vm = vm_of_path(request.path)
        if vm is None:
            return plain_text(HTTPStatus.NOT_FOUND, f"not found: use /{folder}/NAMESPACE/NAME")
        latest = await self._cache.latest()
        if latest.report is None:
            return unavailable(latest.failure or "there is no data yet")
        explanation = explain(latest.report, vm)
        if explanation is None and not names_are_known(latest.report):
            return unavailable(f"the VMs of node {latest.report.node} are not known yet")
        if explanation is None:
            return plain_text(HTTPStatus.NOT_FOUND, absence(latest.report, vm))
        return show(explanation, latest.failure)

    async def _snapshot(self, _: Request) -> Response:
        latest = await self._cache.latest_two()
        if latest.report is None or latest.failure is not None:
            # An old report would look like a new one to a program.
            return unavailable(latest.failure or "there is no data yet")
        return self._shared(latest, JSON, self._snapshot_of)

    @staticmethod
    def _snapshot_of(latest: Latest) -> Response:
        if latest.report is None:
            return unavailable("there is no data yet")
        return _json(served_snapshot(latest.report, latest.previous))

    async def _doctor(self, _: Request) -> Response:
        latest = await self._cache.latest()
        if latest.report is None or self._examiner is None:
            return unavailable(latest.failure or "there is no data yet")
        found = await self._examiner.examined(latest.report)
        if found is None:
            return unavailable(f"the node was not examined within {EXAMINATION_DEADLINE_S:g} s")
        report = latest.report
        return _json(found | {"version": report.version, "node": report.node})

    async def _metrics(self, request: Request) -> Response:
        form = Format.OPENMETRICS if prefers_openmetrics(request.accept) else Format.TEXT
        render = partial(self._metrics_of, form=form)
        return self._shared(await self._cache.latest(), form, render)

    def _shared(
        self, latest: Latest, variant: Hashable, render: Callable[[Latest], Response]
    ) -> Response:
        """Return the answer that requests for the same data share.

        It is rendered, and compressed, once.
        """
        if latest is not self._latest:
            self._latest = latest
            self._answers.clear()
        answer = self._answers.get(variant)
        if answer is None:
            answer = self._answers[variant] = render(latest)
        return answer

    @staticmethod
    def _page_of(latest: Latest, *, refreshing: bool) -> Response:
        body = page(
            latest.report,
            previous=latest.previous,
            failure=latest.failure,
            last_known_s=LAST_KNOWN_S,
            refreshing=refreshing,
        )
        return Response(content_type=HTML, body=body, headers=_PAGE_HEADERS)

    def _metrics_of(self, latest: Latest, *, form: Format) -> Response:
        """Write the report, then the agent, then the process, which prometheus_client writes."""
        pieces = self._exposition.write(self._families(latest), form)
        encode = in_openmetrics if form is Format.OPENMETRICS else in_text
        pieces.append(encode(self._registry).decode())
        return Response(content_type=form.value, body="".join(pieces).encode(), headers=_VARY)

    def _families(self, latest: Latest) -> Iterator[Family | Histogram]:
        if latest.report is not None:
            known = latest.failing_s < LAST_KNOWN_S
            yield from (families if known else health_families)(latest.report)
        if self._tls is not None:
            yield from tls_families(self._tls())
        yield from refresh_families(
            failed=latest.failure is not None,
            failures=self._cache.failures,
            durations=self._cache.durations,
            total_s=self._cache.durations_s,
        )

    async def _healthz(self, _: Request) -> Response:
        return plain_text(HTTPStatus.OK, "alive")

    async def _readyz(self, _: Request) -> Response:
        latest = await self._cache.latest()
        if latest.failure is not None:
            return plain_text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {latest.failure}")
        watch = latest.report.health.vmi_watch if latest.report else None
        if watch is not None and not watch.synced:
            why = watch_error(watch)
            return plain_text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: no VMI names: {why}")
        return plain_text(HTTPStatus.OK, "ready")


def _json(found: dict[str, object]) -> Response:
    body = json.dumps(found, separators=(",", ":")).encode()
    return Response(content_type=JSON, body=body, headers=_JSON_HEADERS)


def vm_of_path(path: str) -> VmName | None:
    """Return the VM of ``/FOLDER/NAMESPACE/NAME``; None: the path names none that can exist.

    Each part is decoded once, after the path is split, so an encoded slash separates nothing.
    """
    parts = path.split("/")
    if len(parts) != 4:
        return None
    try:
        namespace, name = (unquote(part, errors="strict") for part in parts[2:])
    except UnicodeDecodeError:
        return None
    return valid_vm_name(namespace, name)
