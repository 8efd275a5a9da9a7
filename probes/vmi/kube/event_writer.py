# SPDX-License-Identifier: Apache-2.0
"""EDGE: writes Events to the API server in a thread.

Owns the thread, and which failure is logged. Must not know how the server is reached (client.py),
what its answers mean (event_api.py), what is written when (event_queue.py), or when there is an
event.

Nothing depends on an Event: the thread that hands one over never waits, and a failure costs log
lines only. A refusal that an administrator or a developer has to end is logged once while the agent
runs, an outage once until it ends.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from probes.vmi.event import VmiEvent
from probes.vmi.kube.client import ApiReader
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.event_api import EVENTS, Fate, body_of, meaning_of
from probes.vmi.kube.event_queue import EventQueue, EventTiming
from probes.vmi.kube.listwatch import ApiError, Verb

_STOP_WAIT_S = 0.5


class EventWriter:
    """Writes events by one daemon thread.

    ``on_log`` gets one line per change of state, from the writer's own thread, and at the end one
    from ``stop`` if events were lost.
    """

    def __init__(
        self,
        config: InCluster | Kubeconfig,
        on_log: Callable[[str], None] = lambda _line: None,
        *,
        timing: EventTiming | None = None,
    ) -> None:
        self._config = config
        self._on_log = on_log
        self._timing = timing or EventTiming()
        self._random = random.SystemRandom().random
        self._changed = threading.Condition()
        self._queue = EventQueue(self._timing)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="event-writer", daemon=True)
        # Only the writer's thread writes these.
        self._said: set[Fate] = set()
        self._failing = False
        self._loss_said = False

    def start(self) -> None:
        """Start to write; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the writer; returns within 1 s even while the thread waits for the server.

        Events that still wait are not written. The next agent finds the same ones.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
            lost = self._queue.lost if self._loss_said else 0
        if self._thread.ident is not None:
            # A request cannot be interrupted. The daemon thread then ends with its time-out.
            self._thread.join(_STOP_WAIT_S)
        if lost:
            self._on_log(f"Events: {lost} were lost since the start of the agent")

    def write(self, event: VmiEvent) -> None:
        """Have an event written; returns at once. Too many events at a time are lost."""
        with self._changed:
            self._queue.put(event, time.monotonic())
            self._changed.notify()

    def _run(self) -> None:
        while (event := self._next()) is not None:
            self._send(event)

    def _next(self) -> VmiEvent | None:
        """Wait for the next event and take it. None: the writer is to end."""
        with self._changed:
            while not self._stopping:
                wait_s = self._queue.wait_s(time.monotonic())
                if wait_s == 0:
                    return self._queue.take()
                self._changed.wait(wait_s)
        return None

    def _send(self, event: VmiEvent) -> None:
        """Write one event, and decide what becomes of it."""
        fate, line, retry_after_s = Fate.LATER, None, None
        try:
            fate, line, retry_after_s = self._tried(event)
        except ApiError as err:
            line = str(err)
        with self._changed:
            now_s = time.monotonic()
            match fate:
                case Fate.DONE | Fate.REJECTED:
                    self._queue.done()
                case Fate.NOT_ALLOWED:
                    self._queue.not_allowed(now_s)
                case Fate.LATER:
                    self._queue.failed(now_s, retry_after_s, self._random())
            stopping, lost = self._stopping, self._queue.lost
        if not stopping:
            self._say(fate, line)
            if lost and fate is not Fate.NOT_ALLOWED:
                self._say_loss(lost)

    def _tried(self, event: VmiEvent) -> tuple[Fate, str | None, float | None]:
        """Send one request. Raises ApiError when it is not answered."""
        # Read the credentials each time: token, CA and address may have been replaced.
        api = ApiReader(
            self._config,
            connect_timeout_s=self._timing.connect_timeout_s,
            answer_deadline_s=self._timing.answer_deadline_s,
        )
        try:
            with api.reading(Verb.CREATE, EVENTS):
                answer = api.create_event(event.namespace, body_of(event))
        finally:
            api.close()
        meaning = meaning_of(
            answer, server=api.server, credentials=api.credentials, namespace=event.namespace
        )
        return meaning.fate, meaning.line, answer.retry_after_s

    def _say(self, fate: Fate, line: str | None) -> None:
        """Log a failure unless it is known, and its end."""
        if fate is Fate.DONE:
            if self._failing:
                self._on_log("Events: they are written now")
            self._failing = False
            self._said.discard(Fate.LATER)
        elif fate not in self._said:
            self._said.add(fate)
            self._failing = self._failing or fate is not Fate.REJECTED
            self._on_log(f"Events: {line}")

    def _say_loss(self, lost: int) -> None:
        """Log once that events are lost.

        Where they are not allowed, the line that says so is enough.
        """
        if not self._loss_said:
            self._loss_said = True
            self._on_log(
                f"Events: {lost} are lost, because {self._timing.capacity} others waited, or they "
                f"waited for {self._timing.max_age_s:g} s; later losses are counted until the end"
            )
