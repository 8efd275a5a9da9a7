# SPDX-License-Identifier: Apache-2.0
"""EDGE: keeps the VMIs of one node current in a thread, by list and watch.

Owns when to list, when to watch, and what to do after each way in which they can end. Must not know
how the API server is reached (client.py), what its bytes mean (listwatch.py), how long to wait
(timing.py), what is read of a VMI (vmi_object.py, cache.py), nor processes, pods, verdicts.

A watch continues from the end of the last one only if that ended in order, or if the server refused
to begin it. After anything else (a lost connection, half an event, an ERROR event, silence) the
VMIs are listed again, so that deletions are known whenever the watch is up.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import urllib3

from probes.vmi.kube.cache import VmiCache
from probes.vmi.kube.client import ApiReader, interrupt
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.listwatch import (
    NODE_LABEL,
    RESOURCE,
    ApiError,
    EventType,
    Verb,
    WatchEvent,
    decode_event,
    failure_of_error_event,
    lines_of,
    walk_list,
)
from probes.vmi.kube.timing import Backoff, Failure, WatchTiming
from probes.vmi.kube.vmi_object import Json
from probes.vmi.model import Vmi, VmiIndex, WatchStatus

_CHUNK_BYTES = 1 << 16
_STOP_WAIT_S = 0.5
_BRIEF_WATCH_S = 1.0
"""A watch that ends in order but sooner than this is followed by a pause, to avoid a busy loop."""


class VmiWatch:
    """The VMIs that run on ``node``, kept current by one daemon thread.

    Any thread may call ``index()`` and ``status()``, which never wait for the network. ``on_log``
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
        # Only the watch's thread uses these.
        self._backoff = Backoff(self._timing)
        self._resource_version: str | None = None
        self._list_unpaged = False
        self._last_watch_s: int | None = None

    def start(self) -> None:
        """Start to follow the API server; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch; returns within 1 s even while the thread waits for the server."""
        self._stopping.set()
        with self._lock:
            response = self._response
        if response is not None:
            interrupt(response)
        if self._thread.ident is not None:
            # A connection that is being opened cannot be interrupted. The daemon thread then ends
            # with its own time-out and reads nothing more.
            self._thread.join(_STOP_WAIT_S)

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait for the first complete list. Returns False if it did not arrive in time."""
        return self._cache.wait_synced(timeout_s)

    def index(self) -> VmiIndex:
        """Return the VMIs known now; it is the same object until something changes."""
        return self._cache.index()

    def status(self) -> WatchStatus:
        """Return the state of the watch."""
        return self._cache.status()

    def _run(self) -> None:
        why: str | None = (
            "the watch ended because of a defect in hvprobe; see the traceback in the log"
        )
        try:
            self._follow()
            why = None
        finally:
            self._cache.lost(why)

    def _follow(self) -> None:
        """List, watch and recover until stopped."""
        while not self._stopping.is_set():
            try:
                self._list_and_watch()
            except ApiError as err:
                if self._stopping.is_set():
                    break
                self._cache.lost(str(err))
                self._last_watch_s = None
                if err.failure is not Failure.REFUSED:
                    self._resource_version = None
                pause_s = self._backoff.pause_s(err.failure, err.retry_after_s, self._random())
                self._stopping.wait(pause_s)

    def _list_and_watch(self) -> None:
        """Follow one watch to its orderly end, after a list if one is due.

        Raises ApiError when the list fails, or when the watch ends in any other way.
        """
        # Read the credentials each time: token, CA and address may have been replaced.
        api = ApiReader(
            self._config,
            connect_timeout_s=self._timing.connect_timeout_s,
            answer_deadline_s=self._backoff.answer_deadline_s,
        )
        try:
            if self._resource_version is None:
                self._list(api)
            self._watch(api)
        finally:
            api.close()

    def _list(self, api: ApiReader) -> None:
        """Read all VMIs of the node, page by page, and replace those known."""
        vmis: list[Vmi] = []

        def keep(obj: Json) -> None:
            vmi = self._cache.parse(obj)
            if vmi is not None:
                vmis.append(vmi)

        params = {"labelSelector": self._selector}
        if not self._list_unpaged:
            params["limit"] = str(self._timing.page_limit)
        while True:
            try:
                with self._opened(api, Verb.LIST, params) as response:
                    page = walk_list(response.read(), keep)
            except ApiError as err:
                # If pages expire faster than they are read, read all at once, as client-go does.
                self._list_unpaged = err.failure is Failure.EXPIRED
                raise
            if page.continue_token is None:
                break
            params["continue"] = page.continue_token
        self._list_unpaged = False
        self._resource_version = page.resource_version
        self._cache.replace_all(vmis)

    def _watch(self, api: ApiReader) -> None:
        """Follow one watch to its orderly end. Raises ApiError when it ends in any other way."""
        watch_s = self._timing.watch_s(self._last_watch_s, self._random())
        params = {
            "labelSelector": self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._resource_version or "",
            "timeoutSeconds": str(watch_s),
        }
        silence_s = self._timing.silence_s(watch_s)
        delivers = False
        began_s = time.monotonic()
        with self._opened(api, Verb.WATCH, params, silence_s) as response:
            for line in lines_of(response.stream(_CHUNK_BYTES)):
                self._apply(api, decode_event(line))
                if not delivers:
                    # Not earlier, because the first line may be an ERROR that says 410.
                    delivers = True
                    self._recovered()
        if self._stopping.is_set():
            return
        lasted_s = time.monotonic() - began_s
        if not delivers and lasted_s < watch_s / 2:
            raise ApiError(
                f"API server {api.server} closed the watch of {RESOURCE} at once", Failure.BROKEN
            )
        self._last_watch_s = watch_s
        self._recovered()
        self._cache.confirm()
        if lasted_s < min(_BRIEF_WATCH_S, watch_s / 2):
            self._stopping.wait(self._timing.backoff_base_s)

    def _recovered(self) -> None:
        self._backoff.recovered()
        self._cache.opened()

    def _apply(self, api: ApiReader, event: WatchEvent) -> None:
        match event.type:
            case EventType.ERROR:
                raise failure_of_error_event(api.server, event.object)
            case EventType.ADDED | EventType.MODIFIED:
                self._cache.put(event.object)
            case EventType.DELETED:
                if not self._cache.drop(event.object):
                    line = f"API server {api.server} deleted an unnamed VMI: listing again"
                    raise ApiError(line, Failure.EXPIRED)
            case EventType.BOOKMARK:
                self._cache.confirm()
        self._resource_version = event.resource_version or self._resource_version

    @contextmanager
    def _opened(
        self,
        api: ApiReader,
        verb: Verb,
        params: Mapping[str, str],
        silence_s: float | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Open an answer that stop() can interrupt, and turn its errors into ApiError."""
        with api.reading(verb):
            response = api.get(verb, params, silence_s=silence_s)
            self._backoff.answered()
            try:
                with self._lock:
                    self._response = response
                if self._stopping.is_set():
                    raise ApiError("stopped")
                yield response
            except ValueError as err:
                if not self._stopping.is_set():
                    raise
                # ssl raises this when its socket is shut down during a read.
                raise ApiError("stopped") from err
            finally:
                with self._lock:
                    self._response = None
                # Do not return it to the pool: a half-read answer would spoil the connection.
                response.close()
