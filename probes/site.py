"""EDGE. What the agent serves, by path: one look shared by all who ask within a second.

Owns the sharing and the readiness. Must not know how a look is taken, nor sockets and TLS.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from probes.metrics import families
from probes.report import NodeReport
from probes.routes import Handler, Request, Response

SHARED_FOR_S = 1.0
"""Two scrapes within this time share one look."""
STOP_GRACE_S = 1.0
"""How long a look that is under way may take when the agent is told to stop."""


class SharedLook:
    """One look at a time, in a thread of its own, shared by all who ask within a second."""

    def __init__(self, look: Callable[[], NodeReport], *, durations: Histogram) -> None:
        self._look = look
        self._durations = durations
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="look")
        self._last: NodeReport | None = None
        self._taken_s = -SHARED_FOR_S

    async def report(self) -> NodeReport:
        """A report not older than SHARED_FOR_S."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._taken_s >= SHARED_FOR_S:
                loop = asyncio.get_running_loop()
                self._last = await loop.run_in_executor(self._executor, self._timed_look)
                self._taken_s = time.monotonic()
            return self._last

    async def stop(self) -> None:
        """Let a look under way end, for a while."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_S), self._lock:
                pass

    def _timed_look(self) -> NodeReport:
        with self._durations.time():
            return self._look()


class Site:
    """The agent's pages."""

    def __init__(self, look: Callable[[], NodeReport]) -> None:
        """Serve what look() reports.

        No ``_created`` series: they would double the counters, and process_start_time_seconds
        already tells when hvprobe began to count.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        durations = Histogram(
            "hvprobe_refresh_duration_seconds",
            "Time one refresh took: reading the kernel table and /proc, judging, naming.",
            registry=self._registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.look = SharedLook(look, durations=durations)

    @property
    def routes(self) -> dict[str, Handler]:
        """Handlers by path."""
        return {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    async def _metrics(self, request: Request) -> Response:
        report = await self.look.report()
        encode, content_type = choose_encoder(request.accept or "")
        body = encode(_Exposition(report, self._registry))
        return Response(status=HTTPStatus.OK, content_type=content_type, body=body)

    async def _healthz(self, _: Request) -> Response:
        return _text(HTTPStatus.OK, "alive\n")

    async def _readyz(self, _: Request) -> Response:
        await self.look.report()
        return _text(HTTPStatus.OK, "ready\n")


class _Exposition(Collector):
    """What prometheus_client's encoders take for a registry: the report first, then ourselves."""

    def __init__(self, report: NodeReport, registry: CollectorRegistry) -> None:
        self._report = report
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Prometheus families, as the encoders want them."""
        yield from families(self._report)
        yield from self._registry.collect()


def _text(status: HTTPStatus, body: str) -> Response:
    return Response(status=status, content_type="text/plain; charset=utf-8", body=body.encode())
