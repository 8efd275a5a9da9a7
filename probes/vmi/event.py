# SPDX-License-Identifier: Apache-2.0
"""Holds what hvprobe has to report about a VMI once, as a Kubernetes Event. Pure.

Owns the value that the reports' history (report/emulation_events.py) hands to the writer. Must not
know when there is something to report, nor what an Event looks like in the API (kube/event_api.py).
"""

from dataclasses import dataclass
from enum import StrEnum

NOTE_MAX_BYTES = 1024
"""The longest note that the API server accepts. It counts bytes, not characters."""


class EventType(StrEnum):
    """The types of Events that Kubernetes knows."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmiEvent:
    """One event in the life of a VMI."""

    namespace: str
    name: str
    """Name of the VMI."""
    uid: str
    """Uid of the VMI."""
    node: str
    """The node on which hvprobe saw it."""
    type: EventType
    reason: str
    """One word in CamelCase, for programs and for the column REASON."""
    note: str
    """The sentences for people, of at most NOTE_MAX_BYTES bytes in UTF-8."""
    happened_unix_s: float
    identity: tuple[str, ...]
    """What distinguishes it from other events of the same VMI, node and reason. An agent that was
    restarted arrives at the same words, so that it reports nothing twice."""
