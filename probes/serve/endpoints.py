# SPDX-License-Identifier: Apache-2.0
"""EDGE: what the agent serves, by path.

Owns the answers and the readiness. Must not know how a look is taken, nor sockets and TLS.
"""

from collections.abc import Callable, Iterator
from http import HTTPStatus

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import generate_latest as in_text
from prometheus_client.openmetrics.exposition import generate_latest as in_openmetrics

from probes.render.exposition import Exposition, Family, Format, Histogram
from probes.render.metrics import families, health_families, refresh_families, tls_families
from probes.render.page import CONTENT_SECURITY_POLICY, page
from probes.report.vocabulary import watch_error
from probes.serve.http.listen import TlsState
from probes.serve.http.routes import Handler, Request, Response, plain_text, prefers_openmetrics
from probes.serve.refresh import RefreshCache, Seen

LAST_KNOWN_S = 60.0
"""How long VMs are shown as last seen when looks fail, from the first failure on.

Not from the last success: where scrapes are rarer than this, one lost look would drop every VM.
Long enough that one look lost to a busy node breaks no graph and resets no pending alert; short
enough that nobody is told for long of a VM that is gone.
"""

HTML = "text/html; charset=utf-8"

OPEN_TO_ALL = frozenset({"/healthz", "/readyz"})
"""What kubelet's probes ask for. They have no client certificate, and learn nothing of any VM."""

_VARY = (("Vary", "Accept"),)
_PAGE_HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)


class Endpoints:
    """The agent's pages."""

    def __init__(self, look: RefreshCache, *, tls: Callable[[], TlsState] | None = None) -> None:
        """Serve what look reports. tls: how the certificates in use are; None without TLS.

        No ``_created`` series: they would double the counters, and process_start_time_seconds
        already says when hvprobe began to count.
        """
        self._look = look
        self._tls = tls
        self._registry = CollectorRegistry()
        """Of the process, its Python and its memory; all other metrics are in metrics.py."""
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._exposition = Exposition()
        self._seen: Seen | None = None
        self._answers: dict[str, Response] = {}
        """What was rendered of _seen, by content type."""

    @property
    def routes(self) -> dict[str, Handler]:
        """Handlers by path."""
        return {
            "/": self._page,
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    async def _page(self, _: Request) -> Response:
        return self._shared(await self._look.seen(), HTML, self._page_of)

    async def _metrics(self, request: Request) -> Response:
        form = Format.OPENMETRICS if prefers_openmetrics(request.accept) else Format.TEXT
        return self._shared(await self._look.seen(), form, self._metrics_of)

    def _shared(
        self, seen: Seen, content_type: str, render: Callable[[Seen, str], Response]
    ) -> Response:
        """The answer that all get who were told the same: rendered, and compressed, once."""
        if seen is not self._seen:
            self._seen = seen
            self._answers.clear()
        answer = self._answers.get(content_type)
        if answer is None:
            answer = self._answers[content_type] = render(seen, content_type)
        return answer

    @staticmethod
    def _page_of(seen: Seen, content_type: str) -> Response:
        body = page(
            seen.report, previous=seen.previous, failure=seen.failure, last_known_s=LAST_KNOWN_S
        )
        return Response(content_type=content_type, body=body, headers=_PAGE_HEADERS)

    def _metrics_of(self, seen: Seen, content_type: str) -> Response:
        """The report first, then the agent, then the process, which prometheus_client writes."""
        form = Format(content_type)
        pieces = self._exposition.write(self._families(seen), form)
        encode = in_openmetrics if form is Format.OPENMETRICS else in_text
        pieces.append(encode(self._registry).decode())
        return Response(content_type=form.value, body="".join(pieces).encode(), headers=_VARY)

    def _families(self, seen: Seen) -> Iterator[Family | Histogram]:
        if seen.report is not None:
            known = seen.failing_s < LAST_KNOWN_S
            yield from (families if known else health_families)(seen.report)
        if self._tls is not None:
            yield from tls_families(self._tls())
        yield from refresh_families(
            failed=seen.failure is not None,
            failures=self._look.failures,
            durations=self._look.durations,
            total_s=self._look.durations_s,
        )

    async def _healthz(self, _: Request) -> Response:
        return plain_text(HTTPStatus.OK, "alive")

    async def _readyz(self, _: Request) -> Response:
        seen = await self._look.seen()
        if seen.failure is not None:
            return plain_text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {seen.failure}")
        watch = seen.report.health.vmi_watch if seen.report else None
        if watch is not None and not watch.synced:
            why = watch_error(watch)
            return plain_text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: no VMI names: {why}")
        return plain_text(HTTPStatus.OK, "ready")
