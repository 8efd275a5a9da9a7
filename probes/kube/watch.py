"""EDGE: the thread that keeps the VMIs of one node, by list and watch.

Owns: when to list, when to watch, what to do after each way it can end, and how long to wait. Must
not know: how the API server is reached (kube.py), what its bytes mean (listwatch.py), what is kept
of a VMI (vmi.py, vmicache.py), nor processes, pods, verdicts.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import urllib3

from probes.kube.cache import VmiCache
from probes.kube.client import ApiReader, interrupt
from probes.kube.credentials import InCluster, Kubeconfig
from probes.kube.listwatch import (
    NODE_LABEL,
    RESOURCE,
    ApiError,
    EventType,
    Verb,
    WatchEvent,
    backoff_s,
    decode_event,
    failure_of_error_event,
    lines_of,
    walk_list,
)
from probes.vmi import Vmi, VmiIndex, WatchStatus

_CHUNK_BYTES = 1 << 16
_STOP_WAIT_S = 0.5
_HASTY_WATCH_S = 1.0
"""A watch that ends sooner and without a word is a failure; asking again at once would spin."""
_RETRY_AFTER_CAP_S = 300.0
_SUSPECT_FAILURES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTiming:
    """How patient a watch is. The defaults are for production."""

    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    connect_timeout_s: float = 5.0
    idle_deadline_s: float = 90.0
    """Silence after which a watch is taken for dead; the server sends a bookmark every minute."""
    watch_timeout_s: int = 300
    """Asked of the server, which ends a watch after this, or up to twice this."""
    page_limit: int = 100
    """VMIs in one list page, which is then about 1.5 MB."""


class VmiWatch:
    """The VMIs that run on `node`, kept up to date by one daemon thread.

    `index()` and `status()` may be called from any thread and never wait for the network. `on_log`
    gets one line per change of state, from the watch's own thread.
    """

    def __init__(
        self,
        config: InCluster | Kubeconfig,
        node: str,
        on_log: Callable[[str], None] = lambda _line: None,
        *,
        timing: WatchTiming | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._selector = f"{NODE_LABEL}={node}"
        self._timing = timing or WatchTiming()
        self._cache = VmiCache(on_log, clock)
        self._random = random.SystemRandom().random
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmi-watch", daemon=True)
        self._lock = threading.Lock()
        self._response: urllib3.BaseHTTPResponse | None = None
        # Only the thread touches these.
        self._resource_version: str | None = None
        self._whole_list = False
        self._heard = False

    def start(self) -> None:
        """Begin to follow the API server; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch; returns within 1 s even while the thread waits for the server."""
        self._stopping.set()
        with self._lock:
            response = self._response
        if response is not None:
            interrupt(response)
        if self._thread.ident is not None:
            # A connection still being opened cannot be interrupted: the daemon thread then ends by
            # its own time-out, and reads nothing any more.
            self._thread.join(_STOP_WAIT_S)

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait for the first complete list; False: it did not come in time."""
        return self._cache.wait_synced(timeout_s)

    def index(self) -> VmiIndex:
        """Return the VMIs known now; the same object until something changes."""
        return self._cache.index()

    def status(self) -> WatchStatus:
        """Tell how the watch is doing now."""
        return self._cache.status()

    def _run(self) -> None:
        why: str | None = "the watch ended by a defect of hvprobe: see the traceback in the log"
        try:
            self._follow()
            why = None
        finally:
            self._cache.lost(why)

    def _follow(self) -> None:
        """List, watch, recover, until stopped."""
        api: ApiReader | None = None
        failures = 0
        while not self._stopping.is_set():
            try:
                api = api or self._reader()
                if self._resource_version is None:
                    self._list(api)
                self._watch(api)
                failures = 0
            except ApiError as failure:
                if self._stopping.is_set():
                    break
                failures = 0 if self._heard else failures
                self._heard = False
                self._cache.lost(str(failure))
                if failure.expired or (failure.suspect and failures >= _SUSPECT_FAILURES):
                    self._resource_version = None
                elif api is not None:
                    # Anew: the token or the CA may have been rotated, the address changed.
                    api.close()
                    api = None
                self._stopping.wait(self._delay_s(failure, failures))
                failures += 1
        if api is not None:
            api.close()

    def _reader(self) -> ApiReader:
        return ApiReader(
            self._config,
            connect_timeout_s=self._timing.connect_timeout_s,
            idle_deadline_s=self._timing.idle_deadline_s,
        )

    def _delay_s(self, failure: ApiError, failures: int) -> float:
        timing = self._timing
        if failure.at_once and failures == 0:
            return 0.0
        wait_s = backoff_s(failures, timing.backoff_base_s, timing.backoff_cap_s, self._random())
        if failure.retry_after_s is None:
            return wait_s
        return max(wait_s, min(failure.retry_after_s, _RETRY_AFTER_CAP_S))

    def _list(self, api: ApiReader) -> None:
        """Read all VMIs of the node, page by page, and put them in place of those known."""
        vmis: list[Vmi] = []

        def keep(obj: object) -> None:
            vmi = self._cache.parse(obj)
            if vmi is not None:
                vmis.append(vmi)

        params = {"labelSelector": self._selector}
        if not self._whole_list:
            params["limit"] = str(self._timing.page_limit)
        while True:
            try:
                with self._opened(api, Verb.LIST, params) as response:
                    page = walk_list(response.read(), keep)
            except ApiError as failure:
                # Pages that expire faster than we turn them: then all at once, as client-go does.
                self._whole_list = failure.expired
                raise
            if page.continue_token is None:
                break
            params["continue"] = page.continue_token
        self._whole_list = False
        self._resource_version = page.resource_version
        self._cache.replace_all(vmis)

    def _watch(self, api: ApiReader) -> None:
        """Follow one watch to its orderly end; raises ApiError at any other."""
        asked_s = self._timing.watch_timeout_s
        params = {
            "labelSelector": self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._resource_version or "",
            # Spread, so that not all agents of a cluster come back at the same time.
            "timeoutSeconds": str(asked_s + int(self._random() * asked_s)),
        }
        began = time.monotonic()
        with self._opened(api, Verb.WATCH, params) as response:
            self._cache.opened()
            for line in lines_of(response.stream(_CHUNK_BYTES)):
                self._apply(api, decode_event(line))
                self._heard = True
        if self._stopping.is_set():
            return
        if not self._heard and time.monotonic() - began < _HASTY_WATCH_S:
            raise ApiError(
                f"API server {api.server} closed the watch of {RESOURCE} at once", at_once=True
            )
        self._heard = False
        self._cache.confirm()

    def _apply(self, api: ApiReader, event: WatchEvent) -> None:
        match event.type:
            case EventType.ERROR:
                raise failure_of_error_event(api.server, event.object)
            case EventType.ADDED | EventType.MODIFIED:
                self._cache.put(event.object)
            case EventType.DELETED:
                if not self._cache.drop(event.object):
                    raise ApiError(f"API server {api.server} deleted an unnamed VMI", expired=True)
            case EventType.BOOKMARK:
                self._cache.confirm()
        self._resource_version = event.resource_version or self._resource_version

    @contextmanager
    def _opened(
        self, api: ApiReader, verb: Verb, params: Mapping[str, str]
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Hold a successful answer that stop() can interrupt; its troubles become ApiError."""
        with api.reading(verb):
            response = api.get(verb, params)
            try:
                with self._lock:
                    self._response = response
                if self._stopping.is_set():
                    raise ApiError("stopped")
                yield response
            except ValueError as error:
                if not self._stopping.is_set():
                    raise
                # What ssl says when its socket is shut under a read.
                raise ApiError("stopped") from error
            finally:
                with self._lock:
                    self._response = None
                # Not back to the pool: a half-read answer would spoil the connection.
                response.close()
