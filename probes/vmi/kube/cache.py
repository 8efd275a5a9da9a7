# SPDX-License-Identifier: Apache-2.0
"""Holds what the watch has learnt, for the thread that learns it and the threads that read it.

Owns the current VMIs of this node, how fresh they are and the state of the watch, under one lock.
Must not know HTTP, the list-and-watch protocol, or who reads. Losing the API server changes the
state and the age, never the content.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from probes.vmi.kube.vmi_object import Json, MalformedVmi, parse_vmi, vmi_key
from probes.vmi.model import EMPTY_INDEX, Vmi, VmiIndex, WatchStatus


class VmiCache:
    """The VMIs of one node. Readers get immutable values; one thread writes."""

    def __init__(self, on_log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._on_log = on_log
        self._clock = clock
        self._lock = threading.Lock()
        self._vmis: dict[tuple[str, str], Vmi] = {}
        self._index: VmiIndex | None = EMPTY_INDEX
        self._last_skip: str | None = None
        self._last_loss: str | None = None
        self._broken = False
        self._first_list = threading.Event()
        self._status = WatchStatus(
            up=False,
            synced=False,
            last_sync_unix_s=None,
            restarts=0,
            error=None,
            malformed_total=0,
        )

    def status(self) -> WatchStatus:
        """Return the state of the watch."""
        with self._lock:
            return self._status

    def wait_synced(self, timeout_s: float) -> bool:
        """Wait for the first complete list. Returns False if it did not arrive in time."""
        return self._first_list.wait(timeout_s)

    def index(self) -> VmiIndex:
        """Return the VMIs known now; it is the same object until something changes."""
        with self._lock:
            if self._index is None:
                # The index is built on demand, so a burst of events costs one index per scrape.
                self._index = VmiIndex.of(self._vmis.values())
            return self._index

    def replace_all(self, vmis: Iterable[Vmi]) -> None:
        """Replace all VMIs by a complete list."""
        fresh = {vmi.key: vmi for vmi in vmis}
        with self._lock:
            if fresh != self._vmis:
                self._vmis = fresh
                self._index = None
            self._confirm()
        self._first_list.set()

    def parse(self, obj: Json) -> Vmi | None:
        """Parse the VMI in an object.

        None: it holds none, which is counted, and logged once.
        """
        try:
            return parse_vmi(obj)
        except MalformedVmi as err:
            self._skip(str(err))
            return None

    def put(self, obj: Json) -> None:
        """Store an object that was added or changed.

        Most changes concern fields that are not kept, so they leave the index unchanged. A
        malformed object is skipped, as in a list: what was known about that VMI is no longer true,
        so it is removed.
        """
        vmi = self.parse(obj)
        if vmi is None:
            self.drop(obj)
            return
        with self._lock:
            if self._vmis.get(vmi.key) != vmi:
                self._vmis[vmi.key] = vmi
                self._index = None
            self._confirm()

    def drop(self, obj: Json) -> bool:
        """Remove an object that was deleted, or that the node selector no longer matches.

        Returns False if the object does not say which VMI it is.
        """
        try:
            key = vmi_key(obj)
        except MalformedVmi as err:
            self._skip(str(err))
            return False
        with self._lock:
            if self._vmis.pop(key, None) is not None:
                self._index = None
            self._confirm()
        return True

    def confirm(self) -> None:
        """Record that the server has reported all changes so far."""
        with self._lock:
            self._confirm()

    def opened(self) -> None:
        """Record that an open watch delivers events, or has ended in order."""
        with self._lock:
            status = self._status
            self._status = replace(
                status, up=True, error=None, restarts=status.restarts + self._broken
            )
            self._broken = False
            recovered, self._last_loss = self._last_loss is not None, None
        if recovered:
            self._on_log("VMI watch: up again")

    def lost(self, line: str | None) -> None:
        """Record that no watch is open. ``line`` says why; None: it was stopped on purpose."""
        with self._lock:
            self._broken = self._broken or self._status.up
            self._status = replace(self._status, up=False, error=line)
            news = line is not None and line != self._last_loss
            self._last_loss = line
        if line is not None and news:
            self._on_log(f"VMI watch: {line}")

    def _confirm(self) -> None:
        self._status = replace(self._status, synced=True, last_sync_unix_s=self._clock())

    def _skip(self, line: str) -> None:
        with self._lock:
            self._status = replace(self._status, malformed_total=self._status.malformed_total + 1)
            news, self._last_skip = line != self._last_skip, line
        if news:
            self._on_log(f"VMI watch: skipped a malformed object: {line}")
