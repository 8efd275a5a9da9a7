# SPDX-License-Identifier: Apache-2.0
"""The limits of the HTTP server: what a peer may take, and for how long. Pure."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits for a peer, in seconds, bytes and counts."""

    connections_max: int = 256
    """Connections that are served at once. The next one replaces the longest waiting one.

    An idle connection costs 5 KiB, with TLS 23 KiB, and before the handshake ends 50 KiB (measured
    with 200, 500 and 1000 of them).
    """
    refusals_max: int = 16
    """Connections beyond ``connections_max`` that are answered 503 if no connection waits."""
    header_deadline_s: float = 10.0
    """Time from the opening of the connection to its first request, with the TLS handshake."""
    idle_deadline_s: float = 150.0
    """Time from a response to the next request. It exceeds usual scrape intervals."""
    handler_deadline_s: float = 10.0
    """Time for a handler; then the answer is 503. Prometheus gives a scrape 10 s by default."""
    write_deadline_s: float = 30.0
    write_grace_s: float = 1.0
    """A connection whose response takes longer than this counts as waiting for a slow reader."""
    linger_deadline_s: float = 1.0
    """How long a refused peer may continue to send, so that it can read the answer."""
    stop_grace_s: float = 1.0
    """How long requests in flight may take when the server stops."""
    header_bytes_max: int = 16 * 1024

    def within(self, descriptors: int) -> Self:
        """Reduce the limits, because of so many descriptors 64, or half, are kept for refreshes."""
        room = descriptors - min(64, descriptors // 2)
        refusals = min(self.refusals_max, room // 8)
        connections = max(1, min(self.connections_max, room - refusals))
        return replace(self, connections_max=connections, refusals_max=refusals)
